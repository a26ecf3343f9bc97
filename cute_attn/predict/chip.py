"""The whole chip: items of work laid on its multiprocessors, with and without turns at sums of dQ."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

__all__ = ["makespan", "makespan_in_turns"]


def makespan(items: np.ndarray, multiprocessors: int, dealt: bool) -> float:
    """Cycles until the last item has ended. dealt: multiprocessors take them in rounds that go there and back again;
    else each starts on the multiprocessor that is free first, in their order."""
    if dealt:
        rounds = -(-len(items) // multiprocessors)
        padded = np.zeros(rounds * multiprocessors)
        padded[: len(items)] = items
        laid = padded.reshape(rounds, multiprocessors)
        laid[1::2] = laid[1::2, ::-1].copy()
        return float(laid.sum(0).max(initial=0.0))
    free = [0.0] * multiprocessors
    for cycles in items.tolist():
        heapq.heapreplace(free, free[0] + cycles)
    return max(free)


def makespan_in_turns(
    sums: Sequence[np.ndarray], step: float, item: float, addition: float, multiprocessors: int
) -> float:
    """The same of items whose steps add to sums one after another, in the order of the items.

    sums: for each item, the sum that each of its steps adds to. step: cycles of one. item: cycles at the end of each
    item. addition: cycles from the end of a step until the next item may add to the same sum.
    """
    free = [0.0] * multiprocessors
    added = np.zeros(1 + max((int(numbers.max(initial=0)) for numbers in sums), default=0))
    for numbers in sums:
        start, steps = free[0], np.arange(len(numbers))
        # A step ends `step` after the one before it and not before its sum is free: a running maximum.
        ends = np.maximum.accumulate(np.maximum(start + step, added[numbers] - step * steps)) + step * steps
        added[numbers] = ends + addition
        heapq.heapreplace(free, (float(ends[-1]) if len(numbers) else start) + item)
    return max(free)
