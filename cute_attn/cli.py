"""The command `cute-attn`: the list of what it does; the code of a command is loaded when it runs."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import Any

import click

from .errors import Unavailable, in_words

__all__ = ["Suggesting", "main"]

# Each is `command` in cute_attn/commands/NAME.py.
COMMANDS = {
    "demo": "Attention under a mask on this machine: the result checked, the time taken, the mask drawn.",
    "show": "A mask as text and PNG, with its tiles counted.",
    "plan": "How a sequence would be split over many GPUs: balance, bytes, stages, who holds what.",
    "inspect": "What a kernel costs, read off its machine code: registers, spills, issue slots of its loops.",
    "predict": "How long a kernel should take on a GPU that is not there: predicted by a model, with its error bar.",
    "verify": "Whether a kernel can hang: simulated in every schedule, all orders of its barriers searched.",
    "autotune": "The fastest tiles for given shapes: searched, measured, written where the kernels look them up.",
    "build": "Kernels compiled ahead into a bundle, for machines without a compiler.",
    "package": "The library as a folder for another loader: the Hugging Face Hub's.",
    "cache": "Compiled kernels on disk: listed, verified, pruned.",
    "selftest": "The kernels on this machine's GPU against float64: run it after every installation.",
    "doctor": "What this machine has, and what of cute_attn runs on it.",
}


class Suggesting(click.Group):
    """Says which command may have been meant by a name that is none."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        names = self.list_commands(ctx)
        if args[0] not in names and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], names, n=1)
            ctx.fail(f"No such command {args[0]!r}{f'; did you mean {near[0]!r}?' if near else ''}")
        return super().resolve_command(ctx, args)


class Commands(Suggesting):
    """Lists its commands without loading them; what a user or this machine lacks ends with one line and exit code 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"cute_attn.commands.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> Any:  # type: ignore[override]
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure") and not str(stream.encoding).lower().startswith("utf"):
                stream.reconfigure(errors="replace")  # a letter that the terminal lacks ends no command
        try:
            code = super().main(args, prog_name, **{**extra, "standalone_mode": False})
        except click.ClickException as error:
            where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "cute-attn"
            sys.exit(_fail(where, error.format_message()))
        except click.Abort:
            sys.exit(130)
        except OSError as error:
            sys.exit(_fail("cute-attn", in_words(error)))
        except (ValueError, NotImplementedError, Unavailable) as error:  # how the library refuses what it is given
            sys.exit(_fail("cute-attn", str(error)))
        sys.exit(code if isinstance(code, int) else 0)


def _fail(where: str, message: str) -> int:
    click.echo(f"{where}: {' '.join(message.split())}", err=True)
    return 2


@click.group(cls=Commands, invoke_without_command=True)
@click.version_option(package_name="cute-attn", prog_name="cute-attn")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Exact attention under irregular masks on NVIDIA Hopper, on one GPU or many."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
