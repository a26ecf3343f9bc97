"""What a user wrote, told from what is a default."""

from __future__ import annotations

import click
from click.core import ParameterSource

__all__ = ["given"]


def given(context: click.Context) -> set[str]:
    """The names of the parameters that stand on the command line."""
    return {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
