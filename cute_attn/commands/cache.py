"""`cute-attn cache`: what is in a cache or bundle, whether it is sound, and how it is cleaned."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from ..cli import Suggesting
from ..directories import cache_directory
from ..errors import Unavailable, in_words
from ..jit import cache
from ..jit.build import rebuild, verify
from ..jit.compiler import missing_compiler
from ..jit.entry import BrokenEntry, OtherFormat, read_manifest, spec_of
from ..jit.fingerprint import key
from .build import progress
from .files import Folder

__all__ = ["command"]

DAY = 86_400.0
ROOT = click.argument("root", type=Folder(), required=False)


@click.group("cache", cls=Suggesting)
def command() -> None:
    """Compiled kernels on disk. Each command takes a cache or bundle, by default the user's cache."""


@command.command("ls")
@ROOT
def ls(root: Path | None) -> None:
    """The kernels of a cache or bundle."""
    root = _root(root)
    console = Console()
    size = count = 0
    for path in cache.entry_directories(root):
        state, seconds, here, text = _entry(path)
        age = f"{seconds / DAY:.1f} d"
        console.print(f"{path.name[:12]}  {state:10}  {age:>8}  {here / 1e3:>6.0f} kB", highlight=False)
        console.print(Padding(Text(text), (0, 0, 0, 4)))
        size, count = size + here, count + 1
    console.print(f"{count} kernels, {size / 1e6:.1f} MB in {root}", soft_wrap=True)


@command.command("verify")
@ROOT
@click.option("--rebuild", "anew", is_flag=True, help="Compile every kernel anew and compare objects and PTX by hash.")
@click.option("--workers", type=click.IntRange(1), default=os.cpu_count(), show_default="one a core")
def verify_command(root: Path | None, anew: bool, workers: int) -> int:
    """Whether every file is the one that was written; with --rebuild, whether the sources lead to it."""
    root = _root(root)
    console = Console()
    if anew and (why := missing_compiler()):
        raise Unavailable(f"--rebuild compiles: {why}")
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
    root = _root(root)
    removed = cache.prune(root, None if days is None else days * DAY, outdated)
    click.echo(f"removed {len(removed)} director{'y' if len(removed) == 1 else 'ies'} from {root}")


def _root(root: Path | None) -> Path:
    """The cache or bundle; raises UsageError for a folder that is neither. The user's cache may be yet to be made."""
    if root is None:
        return cache_directory()
    if not (root / "kernels").is_dir():
        raise click.UsageError(f"{root} is no cache and no bundle: it has no folder `kernels`")
    return root


def _entry(path: Path) -> tuple[str, float, int, str]:
    """The state of an entry, its age in seconds, its bytes, and its kernel or what is wrong with it."""
    age, size = 0.0, 0
    try:
        age = time.time() - path.stat().st_mtime
        size = sum(file.stat().st_size for file in path.iterdir())
        manifest = read_manifest(path)
        spec = spec_of(manifest)
    except OtherFormat as error:
        return "outdated", age, size, str(error)
    except (BrokenEntry, ValueError, TypeError, KeyError, NotADirectoryError) as error:
        return "broken", age, size, str(error)
    except OSError as error:
        return "unreadable", age, size, in_words(error)
    state = "current" if key(spec) == path.name else "outdated"
    return state, age, size, f"{spec}; {manifest['registers']} registers, {manifest['spill_bytes']} bytes spilled"
