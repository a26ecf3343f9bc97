"""`cute-attn cache`: what is in a cache or bundle, whether it is sound, and how it is cleaned."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from ..directories import cache_directory
from ..jit import cache
from ..jit.build import rebuild, verify
from ..jit.entry import BrokenEntry, read_manifest
from ..jit.fingerprint import key
from ..spec.operation import parse_spec
from .build import progress

__all__ = ["command"]

DAY = 86_400.0
ROOT = click.argument("root", type=click.Path(exists=True, file_okay=False, path_type=Path), required=False)


@click.group("cache")
def command() -> None:
    """Compiled kernels on disk. Each command takes a cache or bundle, by default the user's cache."""


@command.command("ls")
@ROOT
def ls(root: Path | None) -> None:
    """The kernels of a cache or bundle."""
    root = root or cache_directory()
    console = Console()
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("key", "state", "age", "size", "registers", "spills", "kernel"):
        table.add_column(name, overflow="fold", justify="left" if name in ("key", "state", "kernel") else "right")
    size = count = 0
    for path in cache.entry_directories(root):
        here = sum(file.stat().st_size for file in path.iterdir())
        table.add_row(path.name[:12], *_row(path, here))
        size, count = size + here, count + 1
    if count:
        console.print(table)
    console.print(f"{count} kernels, {size / 1e6:.1f} MB in {root}")


@command.command("verify")
@ROOT
@click.option("--rebuild", "anew", is_flag=True, help="Compile every kernel anew and compare objects and PTX by hash.")
@click.option("--workers", type=click.IntRange(1), default=os.cpu_count(), show_default="one a core")
def verify_command(root: Path | None, anew: bool, workers: int) -> int:
    """Whether every file is the one that was written; with --rebuild, whether the sources lead to it."""
    root = root or cache_directory()
    console = Console()
    paths = cache.entry_directories(root)
    wrong = {path: problem for path in paths if (problem := verify(path))}
    sound = [path for path in paths if path not in wrong]
    if anew:
        with progress(console) as bar:
            task = bar.add_task("building anew", total=len(sound))
            for outcome in rebuild(sound, workers):
                bar.advance(task)
                if problem := outcome.error or outcome.result:
                    wrong[outcome.item] = problem
    for path, problem in wrong.items():
        console.print(f"[red]{path.name[:12]}[/red]  {problem}")
    proved = ", each built anew with equal hashes" if anew and not wrong else ""
    console.print(f"{len(paths) - len(wrong)} of {len(paths)} kernels in {root} are sound{proved}")
    return 1 if wrong else 0


@command.command("prune")
@ROOT
@click.option("--days", type=click.FloatRange(0), help="Also kernels that were written longer ago.")
@click.option("--outdated", is_flag=True, help="Also kernels that this installation does not use.")
def prune(root: Path | None, days: float | None, outdated: bool) -> None:
    """Removes broken entries that were set aside and what dead writers left; more with the options."""
    root = root or cache_directory()
    removed = cache.prune(root, None if days is None else days * DAY, outdated)
    click.echo(f"removed {len(removed)} director{'y' if len(removed) == 1 else 'ies'} from {root}")


def _row(path: Path, size: int) -> tuple[str, ...]:
    age = f"{(time.time() - path.stat().st_mtime) / DAY:.1f} d"
    try:
        manifest = read_manifest(path)
        spec = parse_spec(manifest["spec"])
    except (BrokenEntry, ValueError, TypeError, KeyError) as error:
        return "broken", age, f"{size / 1e3:.0f} kB", "", "", str(error)
    state = "current" if key(spec) == path.name else "outdated"
    numbers = (manifest[name] for name in ("registers", "spill_bytes"))
    return state, age, f"{size / 1e3:.0f} kB", *map(str, numbers), str(spec)
