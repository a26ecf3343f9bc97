"""Happens-before among the warps of a launch: which accesses to memory an access may rely on.

An access is named by its warp and the time of that warp's clock. Every warp knows of every other the newest access that
is ordered before what it does itself: by program order, and by what it was told at barriers that both took part in. For
asynchronous accesses (TMA, WGMMA) an ordinary store counts only behind a fence.proxy.async somewhere on that way, so
there is a second such table, one for the memory of each CTA, as a fence may be of the own CTA's memory alone, and one
for global memory.

Where races are looked for, mbarriers have clocks too, which count their phases: they name the copies that report to
them. Warps of other clusters are known of by flags in global memory alone (see flags.py).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

NOBODY = 0  # the writer of what no ordinary store wrote; warps count from 1
_ALWAYS = np.iinfo(np.int64).max


Elsewhere = Mapping[int, np.ndarray]  # by cluster: [ordinary accesses, asynchronous ones to global memory; writer]
NOTHING: Elsewhere = {}
_ABROAD = [0, -1]  # the tables that matter to other clusters


def joined(first: Elsewhere, second: Elsewhere) -> Elsewhere:
    """What is known by one or the other."""
    if not second or first is second:
        return first
    if not first:
        return second
    both = dict(first)
    for cluster, seen in second.items():
        before = both.get(cluster)
        both[cluster] = seen if before is None or before is seen else np.maximum(before, seen)
    return both


class Known(NamedTuple):
    """What some warps know: [table, writer] of their own cluster, and of the others."""

    seen: np.ndarray
    elsewhere: Elsewhere = NOTHING

    def joined(self, other: Known | None) -> Known:
        if other is None:
            return self
        return Known(np.maximum(self.seen, other.seen), joined(self.elsewhere, other.elsewhere))


class Order:
    """The clocks of a cluster. Warps are numbered through: those of CTA 0 from 1, then those of CTA 1, ...

    Behind them may stand some of its mbarriers. `number` is that of the cluster in the order of their start.
    """

    def __init__(self, ctas: int, warps: int, number: int = 0, barriers: int = 0):
        self.ctas, self.warps, self.number = ctas, warps, number
        self.first_barrier = 1 + ctas * warps
        self.barriers = 0  # that have a clock
        self.clock = np.ones(self.first_barrier + barriers, np.int64)
        # [warp, table, writer]: table 0 of ordinary accesses, 1 + rank of asynchronous ones to the memory of that CTA,
        # the last of those to global memory
        self.seen = np.zeros((self.first_barrier, 2 + ctas, len(self.clock)), np.int64)
        self.seen[..., NOBODY] = _ALWAYS
        self.elsewhere = [NOTHING] * self.first_barrier  # by warp

    def release(self, warps: Sequence[int]) -> Known:
        """What these warps tell at a barrier: all that is ordered before now."""
        self._tick(warps)
        elsewhere = self.elsewhere[warps[0]]
        if len(warps) == 1:
            return Known(self.seen[warps[0]].copy(), elsewhere)
        for warp in warps[1:]:
            elsewhere = joined(elsewhere, self.elsewhere[warp])
        return Known(self.seen[warps].max(0), elsewhere)

    def acquire(self, warps: Sequence[int], told: Known) -> None:
        """These warps go on behind a barrier at which they were told this."""
        self.seen[warps] = np.maximum(self.seen[warps], told.seen)
        if told.elsewhere:
            self._learn(warps, told.elsewhere)

    def acquire_all(self, warps: Sequence[int]) -> None:
        """These warps may have been told anything by anybody, in a way that is not followed."""
        self._tick(range(1, self.first_barrier))
        self.acquire(warps, Known(self.seen.max(0), functools.reduce(joined, self.elsewhere)))

    def release_abroad(self, warps: Sequence[int]) -> Elsewhere:
        """What these warps tell to those who look at a flag in global memory."""
        known = self.release(warps)
        return joined(known.elsewhere, {self.number: known.seen[_ABROAD]})

    def acquire_abroad(self, warps: Sequence[int], told: Elsewhere) -> None:
        """These warps were told this by a flag in global memory."""
        own = told.get(self.number)
        if own is not None:
            for table, seen in zip(_ABROAD, own, strict=True):
                self.seen[warps, table] = np.maximum(self.seen[warps, table], seen)
        self._learn(warps, {cluster: seen for cluster, seen in told.items() if cluster != self.number})

    def fence(self, warps: Sequence[int], memories: slice) -> None:
        """fence.proxy.async by each of these warps, of the memory of these CTAs; global memory stands behind them."""
        self._tick(warps)
        for warp in warps:
            tables = self.seen[warp, 1:][memories]
            np.maximum(tables, self.seen[warp, 0], out=tables)
            if self.elsewhere[warp] and memories.stop is None:
                through = {k: np.broadcast_to(seen[0], seen.shape) for k, seen in self.elsewhere[warp].items()}
                self.elsewhere[warp] = joined(self.elsewhere[warp], through)

    def barrier_clock(self) -> int:
        """The place of the clock of an mbarrier that is initialised; NOBODY if there is none."""
        if self.first_barrier + self.barriers == len(self.clock):
            return NOBODY
        self.barriers += 1
        return self.first_barrier + self.barriers - 1

    def name(self, warp: int) -> str:
        """What a report calls a warp."""
        rank, number = divmod(warp - 1, self.warps)
        return f"warp {number}" + (f" of CTA {rank} of the cluster" if self.ctas > 1 else "")

    def _learn(self, warps: Sequence[int], elsewhere: Elsewhere) -> None:
        for warp in warps:
            self.elsewhere[warp] = joined(self.elsewhere[warp], elsewhere)

    def _tick(self, warps: Sequence[int]) -> None:
        """What these warps store from now on is not ordered before what they told or fenced until now."""
        for warp in warps:
            self.seen[warp, 0, warp] = self.clock[warp]
            self.clock[warp] += 1


class Accessor:
    """Warps that start asynchronous accesses to the memory of a CTA, and what they may rely on there."""

    def __init__(self, order: Order, warps: Sequence[int], memory: int):
        self.order, self.warps, self.memory = order, warps, memory

    @functools.cached_property
    def newest(self) -> np.ndarray:
        """By writer, of the stores behind which all of them may access asynchronously."""
        return self.order.seen[self.warps, 1 + self.memory].min(0)

    def unordered(self, writer: int, written: int) -> list[str]:
        """Those of them that may not even rely on a store with ordinary accesses."""
        seen = self.order.seen
        return [self.order.name(w) for w in self.warps if w != writer and written > seen[w, 0, writer]]
