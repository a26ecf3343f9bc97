"""`cute-attn autotune` and `python -m autotune`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from cute_attn.launch import tuned

from .choice import choose_candidates, why_nothing_compiles
from .measure import EFFORTS, Device, Lost
from .model import MODELLED_SMS
from .problem import PRESETS, Problem, load_shapes
from .ranks import decided_by_rank_0
from .report import NOT_MEASURED, draw, summary, table, unknown
from .results import metadata, new_directory, results_to_json, table_of, update_table, write_results
from .tune import Events, Tuning, tune

__all__ = ["command", "find_device"]


@click.command("autotune")
@click.option("--preset", "presets", type=click.Choice([*PRESETS, "all"]), multiple=True, help="Shapes by name.")
@click.option(
    "--shapes", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A JSON list of shapes, see docs."
)
@click.option("--effort", type=click.Choice(list(EFFORTS)), default="quick", show_default=True)
@click.option("--budget", type=click.FloatRange(min=0), metavar="SECONDS", help="For all shapes together.")
@click.option(
    "--workers", type=click.IntRange(1), default=os.cpu_count(), show_default="one a core", help="Compiles at a time."
)
@click.option("--dry-run", is_flag=True, help="List the candidates; compile, measure and write nothing.")
def command(
    presets: tuple[str, ...], shapes: Path | None, effort: str, budget: float | None, workers: int, dry_run: bool
) -> None:
    """The fastest tiles for given shapes: searched, measured, written where the kernels look them up.

    Without a Hopper GPU the candidates are pruned, compiled and ranked by predicted times; the defaults stay. Without
    a compiler they are the tiles that bundles and the cache hold: see cute-attn build --candidates.

    \b
    cute-attn autotune --preset causal
    cute-attn autotune --shapes shapes.json --effort full --budget 1800
    """
    problems = [p for name in presets for p in (PRESETS[name] if name != "all" else sum(PRESETS.values(), ()))]
    problems += load_shapes(shapes) if shapes else []
    problems = list(dict.fromkeys(problems))
    if not problems:
        raise click.UsageError(f"give --preset ({', '.join(PRESETS)}, all) or --shapes FILE")
    console = Console()
    try:
        if dry_run:
            for problem in problems:
                _list_candidates(console, problem, effort)
            return
        found = decided_by_rank_0(lambda: _run(console, problems, effort, budget, workers))
    except RuntimeError as error:
        raise click.ClickException(str(error)) from error
    except Lost as error:
        click.echo(f"Error: the GPU is lost to this process: {error}. What was found before is written.", err=True)
        sys.stderr.flush()
        os._exit(1)  # to end in order would wait for the kernel
    if found["entries"]:
        tuned.install(found)


def find_device() -> Device | None:
    """The GPU to measure on, or None."""
    import torch

    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        return None
    from .cuda import CudaDevice

    return CudaDevice()


class _Bars(Events):
    """A bar for each step of each problem."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def begin(self, what: str, total: int) -> None:
        self._task = self._progress.add_task(what, total=total)

    def step(self) -> None:
        if self._task is not None:
            self._progress.advance(self._task)


def _run(
    console: Console, problems: Sequence[Problem], effort: str, budget: float | None, workers: int
) -> dict[str, Any]:
    """Tunes, reports and writes; returns the table of what was measured."""
    device = find_device()
    about = metadata(device.metadata if device else None)
    directory = new_directory()  # sooner than after the work: where it cannot be made, the work would be lost
    tunings: list[Tuning] = []
    each = None if budget is None else budget / len(problems)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        for problem in problems:
            tunings.append(tune(problem, device, effort, each, workers, events=_Bars(progress)))
            path = write_results(directory, results_to_json(tunings, about))  # at once: what comes next may hang
            if device is not None:
                table_path = update_table(device.gpu, table_of(tunings[-1:], about))
    if device is None:
        console.print(NOT_MEASURED, style="bold yellow")
    for tuning in tunings:
        console.print(table(tuning))
        console.print(summary(tuning))
        if unknown(tuning):
            console.print(unknown(tuning), style="yellow", highlight=False)
        console.print()
    console.print(f"all timings: {path}", soft_wrap=True)
    _draw(console, tunings, directory / "report.png")
    if device is not None:
        console.print(f"tuned table: {table_path}", soft_wrap=True)
        tuned.forget()
    return table_of(tunings, about)


def _draw(console: Console, tunings: Sequence[Tuning], path: Path) -> None:
    try:
        draw(tunings, path)
    except ModuleNotFoundError as error:
        console.print(f"no plot: {error}", soft_wrap=True)
    else:
        console.print(f"plot: {path}", soft_wrap=True)


def _list_candidates(console: Console, problem: Problem, effort: str) -> None:
    why_not = why_nothing_compiles()
    choice = choose_candidates(problem, effort, MODELLED_SMS, why_not)
    console.print(f"[bold]{problem}[/bold]")
    kind = tuned.mask_class(problem.intervals())
    console.print(f"kind of mask: layers {kind.layers}, density 1/{2**kind.density}", highlight=False)
    for tile in choice.tiles:
        notes = ["default"] * (tile == problem.default) + ["built"] * (tile in choice.held)
        console.print(f"  {tile}" + f"  ({', '.join(notes)})" * bool(notes), highlight=False)
    console.print(
        f"{len(choice.tiles) - len(choice.held)} would be compiled, {len(choice.held)} are built, {len(choice.left)} "
        f"left out by --effort {effort}{f' and because {why_not}' * bool(why_not)}, {len(choice.refused)} do not fit\n",
        highlight=False,
    )
