"""What options of several commands have in common."""

from __future__ import annotations

import click
from click.core import ParameterSource

__all__ = ["TileSize", "given"]


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
