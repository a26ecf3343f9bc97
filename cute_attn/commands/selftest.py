"""`cute-attn selftest`: the command line of `python -m cute_attn.selftest`, which needs no click."""

from __future__ import annotations

import click

from ..selftest.command import main

__all__ = ["command"]


@click.command("selftest", context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> int:
    """The kernels on this machine's GPU against float64."""
    return main(arguments, "cute-attn selftest")
