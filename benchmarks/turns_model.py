"""A model of the time that the main kernel of the backward takes, with and without turns at dQ. It measures nothing.

CTAs start in their order, one a multiprocessor, each when the first multiprocessor is free. A step, a query tile of a
head against the CTA's key tile, takes one unit of time. Then its dQ is added to a sum in global memory, which takes
`addition` units beside the next step; there is room for one dQ, so the next step ends no earlier than the addition.
With turns an addition begins when those of all CTAs before it to the same sum have ended: see `cute_attn.bwd.turns`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import numpy as np

from cute_attn.launch.order import in_turns
from cute_attn.mask import TileSchedule

__all__ = ["ctas_of", "makespan"]


def ctas_of(schedule: TileSchedule, heads_k: int, group: int, deterministic: bool) -> list[np.ndarray]:
    """For each CTA, in the order in which they are started, the sum that each of its steps adds to.

    A sum is numbered `query head * q_tiles + query tile`. group: query heads a key head. One batch element.
    """
    table = in_turns(schedule) if deterministic else schedule.backward
    runs = table.runs.tolist()
    ctas = []
    for _, _, partial_begin, full_begin, end, *_ in table.items.tolist():
        partial, full = (_tiles(runs[begin:stop]) for begin, stop in ((partial_begin, full_begin), (full_begin, end)))
        for head_k in range(heads_k):
            heads = np.arange(head_k * group, (head_k + 1) * group)[:, None] * schedule.q_tiles
            ctas.append(np.concatenate([(heads + partial).ravel(), (heads + full).ravel()]))
    return ctas


def _tiles(runs: Sequence[Sequence[int]]) -> np.ndarray:
    return np.array([tile for first, last, *_ in runs for tile in range(first, last)], dtype=np.int64)


def makespan(ctas: Sequence[np.ndarray], multiprocessors: int, turns: bool, addition: float) -> float:
    """Units of time until the last addition has ended."""
    return max(_ends(ctas, multiprocessors, turns, addition), default=0.0)


def _ends(ctas: Sequence[np.ndarray], multiprocessors: int, turns: bool, addition: float) -> Iterator[float]:
    """When each CTA ends. One pass in the order of starts does: no CTA waits for a later one."""
    free = [0.0] * multiprocessors
    added = np.zeros(1 + max((int(sums.max(initial=0)) for sums in ctas), default=0))
    pace = max(1.0, addition)
    for sums in ctas:
        start, steps = heapq.heappop(free), np.arange(len(sums))
        # computed[j + 1] = max(computed[j] + 1, arrived[j]) and arrived[j] = max(computed[j], before[j]) + addition,
        # less the pace of j steps, are running maxima.
        before = added[sums] if turns else np.zeros(len(sums))
        computed = np.maximum.accumulate(np.append(start + 1, before[:-1] + addition - pace * steps[1:])[: len(sums)])
        arrived = np.maximum(computed + pace * steps, before) + addition
        added[sums] = arrived
        end = float(arrived[-1]) if len(sums) else start
        heapq.heappush(free, end)
        yield end
