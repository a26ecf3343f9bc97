"""`cute-attn autotune`: the command of the package `autotune`, which is built on this one."""

from __future__ import annotations

import importlib

import click

__all__ = ["command"]

command: click.Command = importlib.import_module("autotune.command").command
