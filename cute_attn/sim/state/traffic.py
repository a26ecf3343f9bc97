"""What was accessed of one buffer of global memory since a launch began, and by whom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from .epochs import first_agent, packed
from .flags import Party, Strength
from .order import Order

LOADS, STRONG_LOADS, STORES, STRONG_STORES, NARROW, ADDS = 1, 2, 4, 8, 16, 32  # kinds of accesses, as bits


@dataclass
class Access:
    """What lanes, or a copy, do to one buffer at once. Arrays are flat: an element a lane and instruction, or a run."""

    order: Order
    rank: int  # of the CTA
    warps: np.ndarray  # in the order of the cluster
    sites: Any  # of the instructions; one for all, or an array
    starts: np.ndarray  # bytes of the buffer
    size: int
    kind: int
    strength: Strength | None = None
    proxy: bool = False  # whether it is asynchronous
    values: np.ndarray | None = None  # [element, size]: what is to be stored

    @property
    def party(self) -> Party:
        return (self.order.number, self.rank)

    def epochs(self, when: int | None = None) -> Any:
        """One for each element; `when` it is over on the clock, if not now."""
        clock = self.order.clock[self.warps] if when is None else when
        epochs = packed(first_agent(self.order) + self.warps, clock, self.sites, proxy=self.proxy)
        return epochs if np.shape(epochs) == self.starts.shape else np.broadcast_to(epochs, self.starts.shape)

    def by_warp(self) -> Iterator[Access]:
        """Those of each warp."""
        if self.warps[0] == self.warps[-1]:  # in the order of lanes
            yield self
            return
        for warp in np.unique(self.warps).tolist():
            here = self.warps == warp
            sites = self.sites[here] if isinstance(self.sites, np.ndarray) else self.sites
            yield replace(self, warps=self.warps[here], sites=sites, starts=self.starts[here], values=None)


class Row(NamedTuple):
    """What of an access is looked at once its number says that it may matter."""

    starts: np.ndarray
    size: int
    party: Party
    scope: int
    ends: tuple[int, ...] = ()  # further epochs, of which any tells that a copy is over


class Traffic:
    """The accesses to one buffer: of each unit of bytes the last ordinary or bulk store, of all else rows.

    A row is what one warp loaded, or did by atomic operations and reductions, at one place of the kernel. Loads become
    rows when somebody stores: most buffers are never both loaded and stored by a launch.
    """

    def __init__(self, address: int, size: int, unit: int):
        self._unit, self._first = unit, address % 16  # units begin at multiples of their size
        self._units = (self._first + size) // unit + 1
        self._stores: np.ndarray | None = None
        self._loads: list[tuple[np.ndarray, np.ndarray, np.ndarray, int, Party, tuple[int, ...]]] = []
        self._polls: dict[tuple[int, int, int], int] = {}
        self.rows: list[Row] = []
        self.epochs, self._low, self._high, self.kinds = (np.zeros(16, np.int64) for _ in range(4))
        self.met = 0  # the kinds of all rows, as bits

    @property
    def stored(self) -> bool:
        return self._stores is not None

    @property
    def stores(self) -> np.ndarray:
        """Of each unit, the epoch of its last store."""
        if self._stores is None:
            self._stores = np.zeros(self._units, np.int64)
        return self._stores

    def units(self, a: Access) -> np.ndarray:
        """[element, unit]: those that lie whole within what is accessed."""
        starts = a.starts + self._first
        torn = a.proxy and bool((starts % self._unit).any())  # lanes access whole ones
        return -(-starts // self._unit)[:, None] + np.arange(a.size // self._unit - torn)

    def byte(self, unit: int) -> int:
        """Where in the buffer a unit begins."""
        return max(unit * self._unit - self._first, 0)

    def note(self, a: Access) -> None:
        """An ordinary load."""
        self._loads.append((a.epochs(), a.warps, a.starts, a.size, a.party, ()))
        self.met |= LOADS

    def note_copy(self, a: Access, ends: tuple[int, ...]) -> None:
        """A load by a copy, which is over for whoever knows one of its ends; if it has none, nobody looks for them."""
        if ends:
            epochs = np.full(a.starts.shape, ends[0])
            self._loads.append((epochs, a.warps, a.starts, a.size, a.party, ends[1:]))
            self.met |= LOADS

    def add(self, a: Access, when: int | None = None) -> int:
        """A row of what each warp does; the number of the last. Of the looks of a spin only the last is kept."""
        number, strength = -1, a.strength
        scope = strength.scope if strength else 0
        kind = a.kind | (NARROW if strength and strength.narrow else 0)
        for one in a.by_warp():
            epoch, row = int(one.epochs(when)[0]), Row(one.starts, a.size, a.party, scope)
            if a.kind != STRONG_LOADS or one.starts.size > 1:
                number = self._add(epoch, kind, row)
                continue
            key = (int(one.warps[0]) + first_agent(a.order), int(np.max(one.sites)), int(one.starts[0]))
            if key in self._polls:
                number = self._polls[key]
                self.epochs[number] = epoch
            else:
                number = self._polls[key] = self._add(epoch, kind, row)
        return number

    def _settle(self) -> None:
        """Makes rows of what was only noted."""
        for epochs, warps, starts, size, party, ends in self._loads:
            for warp in np.unique(warps).tolist():
                here = warps == warp
                self._add(int(epochs[here][0]), LOADS, Row(starts[here], size, party, 0, ends))
        self._loads.clear()

    def _add(self, epoch: int, kind: int, row: Row) -> int:
        number = len(self.rows)
        if number == len(self.epochs):
            self.epochs, self._low, self._high, self.kinds = (
                np.concatenate([x, np.zeros_like(x)]) for x in (self.epochs, self._low, self._high, self.kinds)
            )
        self.rows.append(row)
        self.epochs[number], self.kinds[number] = epoch, kind
        self._low[number], self._high[number] = int(row.starts.min()), int(row.starts.max()) + row.size
        self.met |= kind
        return number

    def near(self, low: int, high: int, wanted: int) -> np.ndarray:
        """The numbers of the rows of these kinds that may touch these bytes."""
        if wanted & LOADS:
            self._settle()
        n = len(self.rows)
        return np.flatnonzero((self.kinds[:n] & wanted != 0) & (self._low[:n] < high) & (self._high[:n] > low))


def meeting(first: np.ndarray, size: int, second: np.ndarray, other: int) -> tuple[int, int] | None:
    """Of runs of `size` bytes from `first` on, one that meets one of `other` bytes from `second` on; a byte of both."""
    second = np.sort(second)
    at = np.minimum(np.searchsorted(second, first - other, side="right"), second.size - 1)
    meets = np.flatnonzero((second[at] < first + size) & (second[at] + other > first))
    return (int(meets[0]), max(int(first[meets[0]]), int(second[at[meets[0]]]))) if meets.size else None
