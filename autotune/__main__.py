"""`python -m autotune`."""

from .command import command

command(prog_name="python -m autotune")
