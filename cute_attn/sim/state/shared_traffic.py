"""What was accessed of the shared memory of a CTA, and by whom: which accesses nothing orders one behind the other.

Of each unit of bytes it keeps the last store, by lanes or by a copy, and of every warp the last load and the last
atomic operation. What the async proxy reads or writes are whole granules of 16 bytes. A copy into shared memory is over
for whoever knows that phase of its mbarrier, one out of it and a product for whoever knows that a warp waited for it.
Of the four warps of a product one is enough: its groups are the warpgroup's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from .epochs import AGENT_SHIFT, CLOCK_SHIFT, IN_FLIGHT, packed
from .fault import Fault
from .findings import Findings
from .order import Order

_SITES = (1 << CLOCK_SHIFT) - 1
LOAD, STORE, ATOMIC = "load", "store", "atomic operation"
Selector = Any  # granules: a slice, or an array of their numbers
Group = tuple[int, ...]  # warps that wait as one


class Conflict(NamedTuple):
    """An earlier access that nothing orders before one that comes."""

    lane: int  # of those that come; 0 for a copy or a product
    byte: int
    epoch: int  # its agent is a warp or an mbarrier of the cluster
    kind: str
    other: int | None = None  # of stores that come at once: the lane of the other


class SharedTraffic:
    """The accesses to one shared memory. Epochs name warps, and mbarriers, of its cluster."""

    def __init__(self, size: int, unit: int, order: Order, explain: Callable[[Order, str, Conflict], Fault]):
        self._unit, self._order, self._explain = unit, order, explain
        self._stores = np.zeros((size // 16, 16 // unit), np.int64)  # [granule, unit]
        self._lanes: dict[str, np.ndarray] = {}  # by kind, [warp, granule, unit]: clock and site
        self._newest: dict[str, np.ndarray] = {}  # by kind, [warp]: the time of the last
        self._read: dict[Group, np.ndarray] = {}  # [warp, granule]: clock and site, by the async proxy
        self._newest_read: dict[Group, np.ndarray] = {}

    # ------------------------------------------------------------------ lanes: flat arrays, an element each

    def access(
        self, warps: np.ndarray, sites: Any, starts: np.ndarray, size: int, kind: str, when: int | None = None
    ) -> Iterator[Conflict]:
        """Lanes access `size` bytes each: what that conflicts with. It is noted when the last of them was asked for."""
        units = starts[:, None] // self._unit + np.arange(size // self._unit)
        distinct = warps[:1] if warps[0] == warps[-1] else np.unique(warps)
        known = self._known(distinct)
        yield from self._behind_stores(warps, units)
        if kind != ATOMIC:
            yield from self._behind_lanes(ATOMIC, warps, units, known)
        if kind != LOAD:
            yield from self._behind_lanes(LOAD, warps, units, known)
            yield from self._behind_reads(warps, units * self._unit // 16, known)
        clocks = self._order.clock[warps] if when is None else when
        if kind == STORE:
            yield from self._put(units, packed(warps, clocks, sites), warps)
            return
        if kind not in self._lanes:
            self._lanes[kind] = np.zeros((self._order.first_barrier, *self._stores.shape), np.int64)
            self._newest[kind] = np.zeros(self._order.first_barrier, np.int64)
        table = self._lanes[kind].reshape(self._order.first_barrier, -1)
        table[warps[:, None], units] = packed(warps * 0, clocks, sites)[:, None]
        self._newest[kind][distinct] = self._order.clock[distinct]

    def settle(self, warp: int, starts: np.ndarray, size: int) -> None:
        """The warp has waited for copies of its own (cp.async): stores that were in flight."""
        units = starts[:, None] // self._unit + np.arange(size // self._unit)
        stores = self._stores.reshape(-1)
        there = stores[units]
        own = (there >> AGENT_SHIFT == warp) & (there >> CLOCK_SHIFT & IN_FLIGHT == IN_FLIGHT)
        stores[units] = np.where(own, packed(warp, int(self._order.clock[warp]), there & _SITES), there)

    def _known(self, warps: np.ndarray) -> np.ndarray:
        """[warp]: what all of these warps know of each other one; of themselves all."""
        seen = self._order.seen[warps, 0, : self._order.first_barrier]
        seen[np.arange(warps.size), warps] = IN_FLIGHT
        return seen.min(0)

    def _limits(self, warps: np.ndarray, who: int) -> np.ndarray:
        """For each of these warps the first clock and site of another that it does not know."""
        known = self._order.seen[warps, 0, who]
        known[warps == who] = IN_FLIGHT
        return packed(0, known + 1, 0)

    def _put(self, units: np.ndarray, epochs: np.ndarray, warps: np.ndarray) -> Iterator[Conflict]:
        """Stores at once: of a place for which several warps have one, only one remains."""
        stores = self._stores.reshape(-1)
        stores[units] = epochs[:, None]
        if warps[0] != warps[-1]:
            lost = stores[units] != epochs[:, None]
            if lost.any():
                last = {unit: lane for lane, row in enumerate(units.tolist()) for unit in row}
                for lane, column in np.argwhere(lost).tolist():
                    unit = int(units[lane, column])
                    if warps[last[unit]] != warps[lane]:
                        yield Conflict(lane, unit * self._unit, int(stores[unit]), STORE, last[unit])

    def _behind_stores(self, warps: np.ndarray, units: np.ndarray) -> Iterator[Conflict]:
        before = self._stores.reshape(-1)[units]
        first = int(before.flat[0])
        if first == int(before.min()) == int(before.max()):  # most often: all by one access
            before, warps = before[:, :1], warps[:, None]
        else:
            warps = np.broadcast_to(warps[:, None], before.shape)
        agents, when = before >> AGENT_SHIFT, before >> CLOCK_SHIFT & IN_FLIGHT
        late = when > self._order.seen[warps, 0, agents]
        if late.any():
            late &= (agents != warps) | (when == IN_FLIGHT)
            for lane, column in np.argwhere(late).tolist():
                yield Conflict(lane, int(units[lane, column]) * self._unit, int(before[lane, column]), STORE)

    def _behind_lanes(self, kind: str, warps: np.ndarray, units: np.ndarray, known: np.ndarray) -> Iterator[Conflict]:
        if kind in self._lanes:
            for who in np.flatnonzero(self._newest[kind] > known).tolist():
                there = self._lanes[kind][who].reshape(-1)[units]
                late = there >= self._limits(warps, who)[:, None]
                if late.any():
                    lane, column = np.argwhere(late)[0].tolist()
                    epoch = packed(who, 0, int(there[lane, column]))
                    yield Conflict(lane, int(units[lane, column]) * self._unit, epoch, kind)

    def _behind_reads(self, warps: np.ndarray, granules: Selector, known: np.ndarray) -> Iterator[Conflict]:
        """Of the async proxy. granules: [element, granule], or a selector of all that one warp accesses."""
        for group, tables in self._read.items():
            if not (self._newest_read[group] > known[list(group)]).all():
                continue
            late: Any = True
            for who, table in zip(group, tables, strict=True):
                there = table[granules]
                late = late & (there >= self._limits(warps, who).reshape(-1, *[1] * (there.ndim - 1)))
            if late.any():
                at = tuple(np.argwhere(late)[0].tolist())
                granule = int(np.arange(tables.shape[1])[granules][at])
                epoch = packed(group[0], 0, int(tables[0][granule]), proxy=True)
                yield Conflict(at[0] if len(at) > 1 else 0, 16 * granule, epoch, LOAD)

    # ------------------------------------------------------------------ the async proxy: granules

    def demand(
        self, findings: Findings, said: str, warps: Sequence[int], selector: Selector, *, writes: bool = False
    ) -> None:
        """Finds fault with what the async proxy does to granules for warps; check_ordered does with stores of lanes."""
        for warp in warps:
            conflict = self._copied(warp, selector)
            if conflict is None and writes:
                conflict = next(self._accessed(np.array([warp]), selector), None)
            if conflict:
                findings.found(self._explain(self._order, said, conflict))
                return

    def _copied(self, warp: int, selector: Selector) -> Conflict | None:
        before = self._stores[selector][..., 0].reshape(-1)
        if before.size and before[0] == before[-1] and not (before != before[0]).any():  # most often: all by one copy
            before = before[:1]
        agents = before >> AGENT_SHIFT
        late = before >> CLOCK_SHIFT & IN_FLIGHT > self._order.seen[warp, 0, agents]
        late &= agents >= self._order.first_barrier
        if not late.any():
            return None
        at = int(late.argmax())
        return Conflict(0, 16 * self._number(selector, at), int(before[at]), STORE)

    def _accessed(self, warp: np.ndarray, selector: Selector) -> Iterator[Conflict]:
        known = self._known(warp)
        for kind, newest in self._newest.items():
            for who in np.flatnonzero(newest > known).tolist():
                there = self._lanes[kind][who][selector].reshape(-1, self._stores.shape[1])
                late = (there >= self._limits(warp, who)).any(-1)
                if late.any():
                    at = int(late.argmax())
                    epoch = packed(who, 0, int(there[at].max()))
                    yield Conflict(0, 16 * self._number(selector, at), epoch, kind)
        yield from self._behind_reads(warp, selector, known)

    def _number(self, selector: Selector, at: int) -> int:
        return int(np.arange(len(self._stores))[selector].reshape(-1)[at])

    def note_copy(self, barrier: int, clock: int, site: int, first: int, last: int) -> None:
        """A copy into these bytes is over for whoever knows this time of an mbarrier."""
        units = slice(first // self._unit, -(-last // self._unit))
        self._stores.reshape(-1)[units] = packed(barrier, clock, site, proxy=True)

    def note_read(self, warp: int, group: Group, site: int, selector: Selector) -> None:
        """A warp, of those that wait as one, has waited for the async proxy to read these granules."""
        if group not in self._read:
            self._read[group] = np.zeros((len(group), len(self._stores)), np.int64)
            self._newest_read[group] = np.zeros(len(group), np.int64)
        clock, number = int(self._order.clock[warp]), group.index(warp)
        self._read[group][number][selector] = packed(0, clock, site)
        self._newest_read[group][number] = clock
