"""Races in shared memory, and what reports of any race need: who is who in a launch."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..addresses import OFFSET_MASK, RANK_SHIFT
from ..errors import Place, Race
from .barriers import MBarrier
from .epochs import IN_FLIGHT, unpacked
from .fault import Fault
from .order import NOBODY, Order
from .shared_memory import SharedMemory
from .shared_traffic import STORE, Conflict, SharedTraffic
from .translation import Translation

MOST_BARRIERS = 64  # of a CTA that get a clock


class SharedRaces:
    """The accesses to shared memory of a launch in progress, `unit` bytes the finest."""

    def __init__(self, unit: int):
        self._shared_unit = unit
        self._translation: Translation | None = None
        self._ctas: list[list[tuple[int, int, int]]] = []  # of each cluster
        self._warps = 0  # of a CTA
        self._issuers: dict[tuple[int, int], int] = {}  # by cluster and mbarrier: whose copy reported to it last

    def start(self, ctas: int, warps: int) -> Order:
        """A cluster starts: its clocks."""
        self._ctas.append([])
        self._warps = warps
        return Order(ctas, warps, len(self._ctas) - 1, MOST_BARRIERS * ctas)

    def start_cta(
        self, memory: SharedMemory, order: Order, index: tuple[int, int, int], translation: Translation
    ) -> None:
        """A CTA of it starts, with this memory."""
        self._ctas[order.number].append(index)
        self._translation = translation
        memory.traffic = SharedTraffic(memory.data.size, self._shared_unit, order, self.explain)

    def issued(self, barrier: MBarrier, warp: int) -> None:
        """A copy of this warp will report to an mbarrier: what a report says of who made it."""
        if barrier.order is not None:
            self._issuers[barrier.order.number, barrier.clock] = warp

    def watch(self, c: Any, barrier: MBarrier) -> None:
        """An mbarrier is initialised: it gets a clock of the cluster, as long as there are any."""
        clock = c.cluster.order.barrier_clock()
        if clock != NOBODY:
            barrier.order, barrier.clock = c.cluster.order, clock

    # ------------------------------------------------------------------ shared memory

    def shared(
        self,
        c: Any,
        warps: np.ndarray,
        site: Any,
        space: str,
        address: np.ndarray,
        size: int,
        kind: str,
        *,
        values: np.ndarray | None = None,
        when: int | None = None,
    ) -> None:
        """Lanes access shared memory of the cluster: they are about to store bytes [..., lanes, size]."""
        sites = sites_of(site, address)
        if warps.shape != address.shape or address.ndim > 1:
            warps, address = np.broadcast_to(warps, address.shape).reshape(-1), address.reshape(-1)
        values = values.reshape(-1, size) if values is not None else None
        if space == "shared":
            self._shared(c, c.shared, warps, sites, address - c.base, size, kind, values, when)
            return
        ranks, offsets = address >> RANK_SHIFT, address & OFFSET_MASK
        for rank in np.unique(ranks).tolist():
            here = ranks == rank
            some = sites[here] if isinstance(sites, np.ndarray) else sites
            raw = values[here] if values is not None else None
            peer = c.peer(rank, int(offsets[here][0]))
            self._shared(c, peer.shared, warps[here], some, offsets[here], size, kind, raw, when)

    def _shared(
        self,
        c: Any,
        memory: SharedMemory,
        warps: np.ndarray,
        sites: Any,
        offsets: np.ndarray,
        size: int,
        kind: str,
        values: np.ndarray | None,
        when: int | None,
    ) -> None:
        assert memory.traffic is not None
        memory.check(offsets, size)
        reported = False
        for conflict in memory.traffic.access(warps, sites, offsets, size, kind, when):
            at = conflict.lane
            if kind == conflict.kind == STORE and values is not None:
                start, other = int(offsets[at]), conflict.other
                there = memory.data[start : start + size] if other is None else values[other]
                if (there == values[at]).all():  # to store what is there does no harm
                    continue
            if not reported:
                site = int(sites[at]) if isinstance(sites, np.ndarray) else sites
                place = self.place(c.cluster.order.number, int(warps[at]), site)
                self.found(c.world, self.explain(c.cluster.order, kind, conflict), place)
                reported = True

    def explain(self, order: Order, said: str, conflict: Conflict) -> Fault:
        """What is wrong about an access to shared memory of a cluster that conflicts with an earlier one."""
        other = unpacked(conflict.epoch)
        before = self.place(order.number, self.issuer(order.number, other.agent), other.site)
        what = f"{said} of shared address {conflict.byte:#x}, and nothing orders it behind the "
        what += f"{'asynchronous ' if other.proxy else ''}{conflict.kind} of it by {before.who}"
        if other.clock == IN_FLIGHT:
            what += ", which it has not waited for"
        return Fault(Race, what, f"shared {conflict.byte:#x}", [f"the other is at {before}"])

    # ------------------------------------------------------------------ reports

    def issuer(self, cluster: int, who: int) -> int:
        """The warp that made an access: of a copy, by the mbarrier that it reports to."""
        return self._issuers.get((cluster, who), who)

    def found(self, world: Any, fault: Fault, place: Place) -> None:
        """Raises a fault, or warns of it."""
        try:
            world.findings.found(fault)
        except Fault:
            raise fault.at(place) from None
        world.warn_found(place)

    def place(self, cluster: int, warp: int, site: int) -> Place:
        """What a report says of an access by a warp, numbered through its cluster."""
        assert self._translation is not None
        rank, number = divmod(warp - 1, self._warps)
        return self._translation.place(site, self._ctas[cluster][rank], (number,))


def sites_of(site: Any, address: np.ndarray) -> Any:
    """The instruction of each element of [..., lanes], flat: one for all, or an array."""
    if isinstance(site, int) or address.ndim == 1 or len(site) != address.shape[0] or len(site) == 1:
        return site if isinstance(site, int) else site[0]
    rows = np.array(site).reshape(-1, *[1] * (address.ndim - 1))
    return np.broadcast_to(rows, address.shape).reshape(-1)
