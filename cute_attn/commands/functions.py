"""Functions that commands are given, as FILE:FUNCTION."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

import click

__all__ = ["MaskMod"]


class MaskMod(click.ParamType):
    """A mask_mod in a Python file, which is run."""

    name = "function"

    def convert(self, value, param, ctx):
        if callable(value):
            return value
        file, _, name = value.rpartition(":")
        if not file or not name.isidentifier():
            self.fail(f"expected FILE:FUNCTION such as masks.py:causal, got {value!r}", param, ctx)
        spec = importlib.util.spec_from_file_location(Path(file).stem, file)
        if spec is None or spec.loader is None or not Path(file).is_file():
            self.fail(f"{file} is no Python file", param, ctx)
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            self.fail(f"{file} cannot be run: {type(error).__name__}: {error}", param, ctx)
        function = getattr(module, name, None)
        if not callable(function):
            there = ", ".join(sorted(n for n, x in vars(module).items() if inspect.isfunction(x)))
            self.fail(f"{file} has no function {name!r}; there are: {there or 'none'}", param, ctx)
        return function
