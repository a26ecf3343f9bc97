"""Files and folders that commands are given: looked at before the work, not after it."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ..directories import obstacle
from ..errors import in_words

__all__ = ["Folder", "NewFolder", "Picture"]


class Folder(click.ParamType):
    """A directory that is there and may be entered."""

    name = "folder"

    def convert(self, value, param, ctx):
        path = Path(value)
        try:
            os.scandir(path).close()
        except OSError as error:
            self.fail(in_words(error), param, ctx)
        return path


class NewFolder(click.ParamType):
    """A directory to write into, which may be yet to be made."""

    name = "folder"

    def convert(self, value, param, ctx):
        path = Path(value)
        if why := obstacle(path):
            self.fail(f"{path} cannot be written to: {why}", param, ctx)
        return path


class Picture(click.ParamType):
    """A PNG file to write, in a directory that is there."""

    name = "file"

    def convert(self, value, param, ctx):
        path = Path(value)
        if path.suffix.lower() != ".png":
            self.fail(f"{path} does not end in .png, and a PNG is what would be written", param, ctx)
        was_there = os.path.lexists(path)
        try:
            path.open("ab").close()
            if not was_there:
                path.unlink()
        except OSError as error:
            self.fail(f"it cannot be written: {in_words(error)}", param, ctx)
        return path
