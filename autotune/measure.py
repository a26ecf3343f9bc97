"""Timing candidates fairly: warmed up, in turns, the best ones interleaved, the default kept unless clearly beaten."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

from cute_attn.spec.tiles import Tile

from .problem import Problem

__all__ = ["EFFORTS", "MARGIN", "Device", "Effort", "Lost", "Timings", "choose", "measure"]

MARGIN = 1.02  # the default stays unless it takes longer than this times the best
FINALISTS = 3


class Lost(Exception):
    """The GPU serves this process no more: a kernel hangs, or left an error behind."""


class Device(Protocol):
    """A GPU with a clock, or what stands for one in a test. Preparing and timing raise RuntimeError where a candidate
    fails, Lost where nothing that comes after it can run."""

    gpu: str
    sms: int
    metadata: dict[str, Any]

    def lock(self) -> contextlib.AbstractContextManager[object]:
        """Held while measuring: one measurement at a time on a GPU."""

    def prepare(self, problem: Problem, tile: Tile) -> Any:
        """Compiles, allocates and captures one call, ready to be timed."""

    def seconds(self, run: Any) -> float:
        """Of one prepared call that finds nothing of its data in L2."""

    def now(self) -> float:
        """Seconds on a clock that never goes back."""


@dataclass(frozen=True)
class Effort:
    """candidates: how many besides the default are compiled, None for all; the rest count calls of a candidate."""

    candidates: int | None
    warm_up: int
    repeats: int
    rounds: int


EFFORTS = {"quick": Effort(8, 3, 7, 15), "full": Effort(None, 10, 25, 50)}


@dataclass
class Timings:
    """Every timing in seconds, in order. `final` are the interleaved ones; `failed` and `skipped` have none."""

    screening: dict[Tile, list[float]] = field(default_factory=dict)
    final: dict[Tile, list[float]] = field(default_factory=dict)
    failed: dict[Tile, str] = field(default_factory=dict)
    skipped: list[Tile] = field(default_factory=list)


def measure(
    device: Device,
    problem: Problem,
    tiles: Sequence[Tile],
    effort: Effort,
    deadline: float | None = None,
    done: Callable[[], None] = lambda: None,
) -> Timings:
    """Times tiles, the default first, one at a time under the GPU's lock, then the best three and the default in turns.

    deadline: on the device's clock; after it no further tile is begun, the default and the finals always are.

    Raises RuntimeError if the default itself cannot run, Lost, naming the tile, if one takes the GPU along.
    """
    default = problem.default
    timings = Timings()
    with device.lock():
        for tile in (default, *(t for t in tiles if t != default)):
            if tile != default and deadline is not None and device.now() >= deadline:
                timings.skipped.append(tile)
            else:
                _screen(device, problem, tile, effort, timings)
            done()
        if default in timings.failed:
            raise RuntimeError(f"the default tile {default} cannot run {problem}: {timings.failed[default]}")
        best = sorted(timings.screening, key=lambda t: median(timings.screening[t]))[:FINALISTS]
        finalists = {}
        for tile in dict.fromkeys((default, *best)):
            with _naming(problem, tile):
                finalists[tile] = device.prepare(problem, tile)
        timings.final = {tile: [] for tile in finalists}
        for number in range(effort.warm_up + effort.rounds):
            for tile, run in finalists.items():
                with _naming(problem, tile):
                    seconds = device.seconds(run)
                timings.final[tile] += [seconds] * (number >= effort.warm_up)
    return timings


def choose(default: Tile, final: dict[Tile, list[float]]) -> Tile:
    """The tile with the least median, if the default takes more than MARGIN times that; else the default."""
    best = min(final, key=lambda tile: median(final[tile]))
    return best if median(final[default]) > MARGIN * median(final[best]) else default


def _screen(device: Device, problem: Problem, tile: Tile, effort: Effort, timings: Timings) -> None:
    try:
        with _naming(problem, tile):
            run = device.prepare(problem, tile)
            for _ in range(effort.warm_up):
                device.seconds(run)
            timings.screening[tile] = [device.seconds(run) for _ in range(effort.repeats)]
    except RuntimeError as error:  # what CUDA and the compiler raise
        timings.failed[tile] = str(error)


@contextlib.contextmanager
def _naming(problem: Problem, tile: Tile) -> Iterator[None]:
    """Says in Lost whose kernel it was."""
    try:
        yield
    except Lost as error:
        raise Lost(f"the tile {tile} of {problem}: {error}") from error
