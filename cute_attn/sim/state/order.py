"""Happens-before among the warps of a cluster: which ordinary stores to shared memory an access may rely on.

A store is named by its warp and the time of that warp's clock. Every warp knows of every other the newest store that is
ordered before what it does itself: by program order, and by what it was told at barriers that both took part in. For
asynchronous accesses (TMA, WGMMA) an ordinary store counts only behind a fence.proxy.async somewhere on that way, so
there is a second such table, one for the memory of each CTA, as a fence may be of the own CTA's memory alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

NOBODY = 0  # the writer of what no ordinary store wrote; warps count from 1
_ALWAYS = np.iinfo(np.int64).max


class Order:
    """The clocks of a cluster. Warps are numbered through: those of CTA 0 from 1, then those of CTA 1, ..."""

    def __init__(self, ctas: int, warps: int):
        self.ctas, self.warps = ctas, warps
        self.clock = np.ones(1 + ctas * warps, np.int64)
        # [warp, table, writer]: table 0 of ordinary accesses, 1 + rank of asynchronous ones to the memory of that CTA
        self.seen = np.zeros((1 + ctas * warps, 1 + ctas, 1 + ctas * warps), np.int64)
        self.seen[..., NOBODY] = _ALWAYS

    def release(self, warps: Sequence[int]) -> np.ndarray:
        """What these warps tell at a barrier: all that is ordered before now."""
        self._tick(warps)
        return self.seen[warps].max(0) if len(warps) > 1 else self.seen[warps[0]].copy()

    def acquire(self, warps: Sequence[int], told: np.ndarray) -> None:
        """These warps go on behind a barrier at which they were told this."""
        self.seen[warps] = np.maximum(self.seen[warps], told)

    def acquire_all(self, warps: Sequence[int]) -> None:
        """These warps may have been told anything by anybody, in a way that is not followed."""
        self._tick(range(1, len(self.clock)))
        self.acquire(warps, self.seen.max(0))

    def fence(self, warps: Sequence[int], memories: slice) -> None:
        """fence.proxy.async by each of these warps, of the memory of these CTAs."""
        self._tick(warps)
        for warp in warps:
            tables = self.seen[warp, 1:][memories]
            np.maximum(tables, self.seen[warp, 0], out=tables)

    def name(self, warp: int) -> str:
        """What a report calls a warp."""
        rank, number = divmod(warp - 1, self.warps)
        return f"warp {number}" + (f" of CTA {rank} of the cluster" if self.ctas > 1 else "")

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
