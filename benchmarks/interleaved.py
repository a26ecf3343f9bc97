"""Timing candidates fairly: in turns, over inputs that the L2 cannot hold, with the spread."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch

__all__ = ["Clock", "CudaClock", "Summary", "ceilings", "interleaved", "sets_needed", "summary"]

Run = Callable[[], object]


class Clock(Protocol):
    """What times a call on a GPU, or stands for it in a test."""

    def seconds(self, run: Run) -> float: ...


class CudaClock:
    """CUDA events around a call. The GPU is kept busy before it until the host has queued all of it, so that only the
    GPU's time is seen, however slow the host; the delay grows until that is so, up to a limit."""

    _LIMIT = 1 << 25  # cycles, about 20 ms: what takes longer, or waits for the GPU itself, is seen with its host

    def __init__(self) -> None:
        self._cycles = 1 << 20

    def seconds(self, run: Run) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        while True:
            torch.cuda._sleep(self._cycles)
            start.record()
            run()
            end.record()
            host_was_late = start.query()
            end.synchronize()
            if not host_was_late or self._cycles >= self._LIMIT:
                return start.elapsed_time(end) / 1e3
            self._cycles *= 2


class Summary(NamedTuple):
    """Of many timings, in seconds: the median, and between which the middle half lies."""

    median: float
    low: float
    high: float


def summary(times: Sequence[float]) -> Summary:
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Summary(median, low, high)


def sets_needed(set_bytes: int, l2_bytes: int) -> int:
    """How many sets of inputs exceed twice the L2 together; at least two."""
    return max(2, 2 * l2_bytes // set_bytes + 1)


def interleaved(
    clock: Clock,
    candidates: Mapping[str, Sequence[Run]],
    warm_up: int,
    rounds: int,
    done: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of `rounds` calls of each candidate, in turns, after `warm_up` rounds that are not counted.

    candidates: for each name, its call on each set of inputs; all have the same sets. Every call takes the set after
    that of the call before it, whoever made it: a set is used again when all others have been. Another candidate begins
    in every round. done: called after each round.
    """
    names = list(candidates)
    times: dict[str, list[float]] = {name: [] for name in names}
    calls = 0
    for number in range(warm_up + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            runs = candidates[name]
            seconds = clock.seconds(runs[calls % len(runs)])
            calls += 1
            if number >= warm_up:
                times[name].append(seconds)
        done()
    return times


def ceilings(
    clock: Clock, device: torch.device, copied_bytes: int = 1 << 30, size: int = 8192, repeats: int = 20
) -> dict[str, float]:
    """What the machine gives: bytes a second of a large copy, read and written, and FLOP a second of a bf16 product."""
    source = torch.empty(copied_bytes, dtype=torch.uint8, device=device).zero_()
    target = torch.empty_like(source)
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    runs: dict[str, list[Run]] = {"copy": [lambda: target.copy_(source)], "product": [lambda: a @ b]}
    times = interleaved(clock, runs, warm_up=3, rounds=repeats)
    copy, product = (summary(times[name]).median for name in runs)
    return {"copy, bytes a second": 2 * copied_bytes / copy, "product, FLOP a second": 2 * size**3 / product}
