"""What options of several commands have in common."""

from __future__ import annotations

import click
from click.core import ParameterSource

__all__ = ["TileSize", "Tokens", "given"]

SUFFIXES = {"k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def given(context: click.Context) -> set[str]:
    """The names of the parameters that stand on the command line."""
    return {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}


class TileSize(click.ParamType):
    """ROWSxKEYS."""

    name = "tile"

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        parts = value.lower().split("x")
        if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
            self.fail(f"expected ROWSxKEYS such as 128x128, got {value!r}", param, ctx)
        return int(parts[0]), int(parts[1])


class Tokens(click.ParamType):
    """A number of tokens, perhaps with a suffix."""

    name = "tokens"

    def convert(self, value, param, ctx):
        if isinstance(value, int):
            return value
        text = value.lower().rstrip("kmgi")
        suffix = value.lower()[len(text) :]
        if not text.isdigit() or int(text) < 1 or (suffix and suffix not in SUFFIXES):
            self.fail(f"expected a number such as 65536, 64Ki, 1Mi or 10M, got {value!r}", param, ctx)
        return int(text) * SUFFIXES.get(suffix, 1)
