"""Races: two accesses to the same memory of which one at least writes, and nothing orders one behind the other.

Every access is compared with those before it by what its warp knows of them (order.py): it does not matter whether a
schedule shows the race, as long as both are made. Atomic operations, reductions and other strong accesses do not race
with each other where the scope of each takes in the other. Launches are ordered: each begins anew.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..errors import MissingProxyFence, Place, Race, SimError
from .epochs import IN_FLIGHT, ends, unordered, unpacked
from .fault import Fault
from .flags import SCOPES, Flags, Strength, among
from .shared_races import SharedRaces, sites_of
from .traffic import ADDS, LOADS, NARROW, STORES, STRONG_LOADS, STRONG_STORES, Access, Row, Traffic, meeting

BULK = Strength("relaxed", SCOPES["gpu"])  # a bulk reduction of an element
_GLOBAL = -1  # the table of an order for asynchronous accesses to global memory


class Spans(Protocol):
    """The side of a bulk or tensor copy that is in global memory."""

    def spans(self) -> tuple[np.ndarray, int] | None:
        """Addresses of runs of bytes, and the length of each; None if no element is inside its tensor."""


@dataclass(eq=False)
class Pending:
    """A bulk store or reduction that its warp has not waited for: the units that it writes, or its row."""

    access: Access
    traffic: Traffic
    units: np.ndarray | None = None
    row: int = 0

    def settle(self) -> None:
        """Its warp has waited for it: what it tells others from now on holds of this too."""
        now = self.access.epochs()[:, None]
        if self.units is None:
            self.traffic.epochs[self.row] = now[0, 0]
        else:
            there = self.traffic.stores[self.units]
            own = there == self.access.epochs(IN_FLIGHT)[:, None]
            self.traffic.stores[self.units] = np.where(own, now, there)


class Races(SharedRaces):
    """The accesses of a launch in progress. `fixed_sums`: floating-point additions in no order count as races too."""

    def __init__(self, unit: int, shared_unit: int, *, fixed_sums: bool):
        super().__init__(shared_unit)
        self._unit, self._fixed_sums = unit, fixed_sums
        self.flags = Flags()
        self._traffic: dict[int, Traffic] = {}
        self._sums: dict[int, tuple[Fault, Place]] = {}  # by buffer: additions in no order, the first found

    # ------------------------------------------------------------------ loads, stores and atomic operations of lanes

    def load(
        self, c: Any, warps: np.ndarray, site: Any, address: np.ndarray, size: int, strength: Strength | None
    ) -> None:
        """Lanes have loaded at addresses [..., lanes]."""
        kind = LOADS if strength is None else STRONG_LOADS
        for index, a in self._accesses(c, warps, site, address, size, kind, strength):
            traffic = self._of(c, index)
            if strength is not None:  # first: what it acquires holds of the load itself
                self._at_flags(c, index, a, functools.partial(self.flags.observe, strength=strength))
            self._check(c, index, traffic, a)
            if strength is None:
                traffic.note(a)
            else:
                traffic.add(a)

    def store(
        self,
        c: Any,
        warps: np.ndarray,
        site: Any,
        address: np.ndarray,
        values: np.ndarray,
        strength: Strength | None,
    ) -> None:
        """Lanes are about to store bytes [..., lanes, size]."""
        kind = STORES if strength is None else STRONG_STORES
        for index, a in self._accesses(c, warps, site, address, values.shape[-1], kind, strength):
            traffic = self._of(c, index)
            if strength is None:
                a.values = values.reshape(-1, a.size) if a.starts.size == address.size else None
                units = self._check(c, index, traffic, a)
                traffic.stores[units] = a.epochs()[:, None]
                self._check_own(c, index, a, units, traffic)
                continue
            self._check(c, index, traffic, a)
            traffic.add(a)
            publish = functools.partial(self.flags.publish, strength=strength, replaces=True)
            self._at_flags(c, index, a, publish)

    def atomic(
        self,
        c: Any,
        warps: np.ndarray,
        site: Any,
        address: np.ndarray,
        size: int,
        strength: Strength,
        *,
        returns: bool,
        adds: bool,
    ) -> None:
        """Lanes make atomic operations; `adds`: floating-point additions."""
        kind = STRONG_STORES | (ADDS if adds else 0)
        for index, a in self._accesses(c, warps, site, address, size, kind, strength):
            traffic = self._of(c, index)
            if returns:
                self._at_flags(c, index, a, functools.partial(self.flags.observe, strength=strength))
            self._check(c, index, traffic, a)
            traffic.add(a)
            publish = functools.partial(self.flags.publish, strength=strength, replaces=False)
            self._at_flags(c, index, a, publish)

    def _accesses(
        self, c: Any, warps: np.ndarray, site: Any, address: np.ndarray, size: int, kind: int, strength: Any
    ) -> list[tuple[int, Access]]:
        """By buffer."""
        sites = sites_of(site, address)
        if warps.shape != address.shape or address.ndim > 1:
            warps = np.broadcast_to(warps, address.shape).reshape(-1)
        index, offset = c.world.memory.locate(address, size)
        offset = offset.reshape(-1)
        if index >= 0:
            return [(index, Access(c.cluster.order, c.rank, warps, sites, offset, size, kind, strength))]
        starts = np.array(c.world.memory.starts)
        which = np.searchsorted(starts, offset, side="right") - 1
        found = []
        for one in np.unique(which).tolist():
            here = which == one
            some = sites[here] if isinstance(sites, np.ndarray) else sites
            place = offset[here] - int(starts[one])
            found.append((one, Access(c.cluster.order, c.rank, warps[here], some, place, size, kind, strength)))
        return found

    def _at_flags(self, c: Any, index: int, a: Access, do: Callable[..., None]) -> None:
        """For every warp and every address of a strong access."""
        assert a.strength is not None
        if not self.flags.concerns(a.order, np.unique(a.warps).tolist(), a.strength):
            return
        first = c.world.memory.buffers[index].address
        for warp, start in dict.fromkeys(zip(a.warps.tolist(), a.starts.tolist(), strict=True)):
            do(c, warp, first + start)

    # ------------------------------------------------------------------ copies

    def copy_in(self, c: Any, warp: int, site: int, source: Spans, barriers: Sequence[Any]) -> None:
        """A warp starts a copy from global to shared memory that will report to an mbarrier of each of its targets."""
        found = self._copy(c, warp, site, source, LOADS)
        if found is None:
            return
        index, a = found
        traffic = self._of(c, index)
        self._check(c, index, traffic, a)
        traffic.note_copy(a, ends(a.order, barriers, site))

    def copy_out(self, c: Any, warp: int, site: int, target: Spans, *, reduces: bool, adds: bool) -> Pending | None:
        """A warp starts a copy, or a reduction, from shared to global memory."""
        kind = STRONG_STORES | (ADDS if adds else 0) if reduces else STORES
        found = self._copy(c, warp, site, target, kind, BULK if reduces else None)
        if found is None:
            return None
        index, a = found
        traffic = self._of(c, index)
        units = self._check(c, index, traffic, a)
        if reduces:
            return Pending(a, traffic, row=traffic.add(a, IN_FLIGHT))
        traffic.stores[units] = a.epochs(IN_FLIGHT)[:, None]
        return Pending(a, traffic, units)

    def _copy(
        self, c: Any, warp: int, site: int, what: Spans, kind: int, strength: Strength | None = None
    ) -> tuple[int, Access] | None:
        spans = what.spans()
        if spans is None:
            return None
        starts, size = spans
        memory = c.world.memory
        low, high = int(starts.min()), int(starts.max()) + size
        index = memory.find(low, high)
        if index is None:
            raise memory.outside(low, high)
        warps, offsets = np.full(starts.size, warp), starts - memory.buffers[index].address
        return index, Access(c.cluster.order, c.rank, warps, site, offsets, size, kind, strength, proxy=True)

    # ------------------------------------------------------------------ what they are compared with

    def _of(self, c: Any, index: int) -> Traffic:
        traffic = self._traffic.get(index)
        if traffic is None:
            buffer = c.world.memory.buffers[index]
            traffic = self._traffic[index] = Traffic(buffer.address, buffer.data.size, self._unit)
        return traffic

    def _check(self, c: Any, index: int, traffic: Traffic, a: Access) -> np.ndarray:
        """Finds fault with an access to what was accessed before in no order with it; the units that it touches."""
        wanted = self._wanted(a)
        if wanted & traffic.met:
            for one in a.by_warp():
                self._check_rows(c, index, traffic, one, wanted)
        if not traffic.stored and a.kind != STORES:
            return np.empty(0)
        units = traffic.units(a)
        before = traffic.stores[units]
        if before.any():
            self._check_stores(c, index, traffic, a, units, before)
        return units

    def _wanted(self, a: Access) -> int:
        """The kinds of rows that may race with an access."""
        if a.strength is None:
            return STRONG_STORES if a.kind == LOADS else LOADS | STRONG_LOADS | STRONG_STORES
        narrow = STRONG_STORES | STRONG_LOADS if a.strength.narrow else NARROW
        if a.kind == STRONG_LOADS:
            return narrow
        return LOADS | narrow | (ADDS if a.kind & ADDS and self._fixed_sums else 0)

    def _check_rows(self, c: Any, index: int, traffic: Traffic, a: Access, wanted: int) -> None:
        """With the loads, atomic operations and reductions before an access by one warp."""
        near = traffic.near(int(a.starts.min()), int(a.starts.max()) + a.size, wanted)
        if not near.size:
            return
        epochs = traffic.epochs[near]
        late = unordered(a.order, np.full(near.size, a.warps[0]), epochs)
        for number, epoch in zip(near[late].tolist(), epochs[late].tolist(), strict=True):
            row, kind = traffic.rows[number], int(traffic.kinds[number])
            if not (a.kind | kind) & (STORES | STRONG_STORES) or self._agree(a, row, kind):
                continue
            if row.ends and not unordered(a.order, np.full(len(row.ends), a.warps[0]), np.array(row.ends)).all():
                continue
            met = meeting(a.starts, a.size, row.starts, row.size)
            if met is not None and a.kind & kind & ADDS:
                self._sums.setdefault(index, self._fault(c, index, a, *met, epoch, kind))
            elif met is not None:
                self.found(c.world, *self._fault(c, index, a, met[0], met[1], epoch, kind))

    def _agree(self, a: Access, row: Row, kind: int) -> bool:
        """Whether an access and a row may come in any order, as their scopes take each other in."""
        if a.strength is None or kind & LOADS or (self._fixed_sums and a.kind & kind & ADDS):
            return False
        return among(a.strength.scope, a.party, row.party) and among(row.scope, row.party, a.party)

    def _check_stores(
        self, c: Any, index: int, traffic: Traffic, a: Access, units: np.ndarray, before: np.ndarray
    ) -> None:
        """With the last stores before an access. To store what is there already does no harm."""
        lanes, columns = np.nonzero(before)
        epochs = before[lanes, columns]
        late = unordered(a.order, a.warps[lanes], epochs)
        for at in np.flatnonzero(late).tolist():
            lane, epoch = int(lanes[at]), int(epochs[at])
            byte = traffic.byte(int(units[lane, columns[at]]))
            if not self._equal(c, index, a, lane):
                self.found(c.world, *self._fault(c, index, a, lane, byte, epoch, STORES))
                return
        if a.proxy:
            late = unordered(a.order, a.warps[lanes], epochs, table=_GLOBAL)
            if late.any():
                at = int(np.flatnonzero(late)[0])
                byte = traffic.byte(int(units[lanes[at], columns[at]]))
                fault = self._fault(c, index, a, int(lanes[at]), byte, int(epochs[at]), STORES, MissingProxyFence)
                self.found(c.world, *fault)

    @staticmethod
    def _equal(c: Any, index: int, a: Access, lane: int) -> bool:
        """Whether a lane is about to store what is there."""
        if a.values is None:
            return False
        start = int(a.starts[lane])
        return bool((c.world.memory.buffers[index].data[start : start + a.size] == a.values[lane]).all())

    def _check_own(self, c: Any, index: int, a: Access, units: np.ndarray, traffic: Traffic) -> None:
        """Stores of several warps at once: of a place for which two come with different values, one is lost."""
        if a.warps[0] == a.warps[-1]:
            return
        epochs = np.broadcast_to(a.epochs()[:, None], units.shape)
        lost, columns = np.nonzero(traffic.stores[units] != epochs)
        if not lost.size or a.values is None:
            return
        last = {start: lane for lane, start in enumerate(a.starts.tolist())}
        for lane, column in zip(lost.tolist(), columns.tolist(), strict=True):
            other = last[int(a.starts[lane])]
            if a.warps[lane] != a.warps[other] and (a.values[lane] != a.values[other]).any():
                byte = traffic.byte(int(units[lane, column]))
                self.found(c.world, *self._fault(c, index, a, lane, byte, int(a.epochs()[other]), STORES))
                return

    # ------------------------------------------------------------------ reports

    def _fault(
        self,
        c: Any,
        index: int,
        a: Access,
        lane: int,
        byte: int,
        epoch: int,
        kind: int,
        error: type[SimError] = Race,
    ) -> tuple[Fault, Place]:
        buffer, other = c.world.memory.buffers[index], unpacked(epoch)
        cluster, who = divmod(other.agent, len(a.order.clock))
        site = int(a.sites[lane]) if isinstance(a.sites, np.ndarray) else a.sites
        place = self.place(a.order.number, int(a.warps[lane]), site)
        before = self.place(cluster, self.issuer(cluster, who), other.site)
        what = f"{_said(a.kind, a.proxy)} of byte {byte} of {buffer.name}, and nothing orders it behind the "
        what += f"{_said(kind, other.proxy)} of it by {before.who}"
        if error is MissingProxyFence:
            what += ": no fence.proxy.async of global memory between"
        elif other.clock == IN_FLIGHT:
            what += ", which nobody has waited for"
        fault = Fault(error, what, f"global {buffer.address + byte:#x}", [f"the other is at {before}"])
        return fault, place

    def end(self, world: Any) -> None:
        """The launch is over: sums in no order are found fault with if any of the buffer was rounded."""
        for index, (fault, place) in self._sums.items():
            if world.memory.additions[index].rounded:
                self.found(world, fault, place)


def _said(kind: int, proxy: bool) -> str:
    if kind & STRONG_STORES:
        return "bulk reduction" if proxy else "atomic operation"
    return ("bulk " if proxy else "") + ("store" if kind & STORES else "load")
