"""Bulk and tensor copies on their way: into shared memory, out of it, from one CTA to another."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..errors import Place
from .barriers import MBarrier
from .fault import Fault
from .global_memory import GlobalMemory
from .im2col import Pixels
from .order import Accessor
from .races import Pending
from .shared_memory import IN_FLIGHT, SharedMemory, granules
from .tensor_map import Box, Span, swizzled


class Target(NamedTuple):
    """Where a copy goes in one CTA."""

    shared: SharedMemory
    first: int
    barrier: MBarrier
    accessor: Accessor  # the warp that issued it, in this memory


@dataclass(eq=False)
class Load:
    """A copy into shared memory of one or several CTAs; reports its bytes to an mbarrier of each."""

    source: Box | Pixels | Span | SharedSource | Sent
    size: int
    swizzle: int
    targets: list[Target]
    place: Place  # of the instruction, in the first CTA that it goes to
    label: str
    site: int
    under_way: bool = True  # it may not have read its source, or its tensor map
    spans: list[tuple[int, int]] = field(default_factory=list)

    def __str__(self) -> str:
        target = self.targets[0]
        where = f"shared {target.first:#x}, reports to {target.barrier.subject}"
        return f"copy of {self.source} to {where} ({self.label})"

    def begin(self, *, hold: bool) -> None:
        """Checks the destination; if the copy is held back, poisons it."""
        for shared, first, barrier, accessor in self.targets:
            last = first + self.size
            self._check(shared, first, accessor)
            if shared.traffic:
                clock = int(barrier.order.clock[barrier.clock]) + 1 if barrier.order else 0
                shared.traffic.note_copy(barrier.clock, clock, self.site, first, last)
            self._claim(shared, first)
            if hold:
                shared.code[first:last] = IN_FLIGHT
                shared.data[first:last] = 0xFF
                shared.pending.append(self)
                barrier.copies += 1
        self.spans = [(self.targets[0].first, self.targets[0].first + self.size)]

    def _check(self, shared: SharedMemory, first: int, accessor: Accessor) -> None:
        last = first + self.size
        shared.check_range(first, last, 16 if not self.swizzle else 128)
        shared.check_writable(first, last)
        shared.check_ordered(granules(first, last), accessor, "write")
        if shared.traffic:
            shared.traffic.demand(
                shared.findings, "asynchronous store", accessor.warps, granules(first, last), writes=True
            )

    def _claim(self, shared: SharedMemory, first: int) -> None:
        shared.begin_fill(first, first + self.size)

    def _put(self, shared: SharedMemory, first: int, raw: np.ndarray) -> None:
        words = raw.view(np.complex128)
        if self.swizzle:
            shared.words[16][swizzled(first, self.size // 16, self.swizzle)] = words
        else:
            shared.words[16][first >> 4 : (first + self.size) >> 4] = words
        shared.end_fill(first, first + self.size)

    def needed(self) -> bool:
        return any(target.barrier.waiters for target in self.targets)

    def deliver(self, memory: GlobalMemory, *, held: bool) -> list[Any]:
        """Moves the bytes; returns the groups that the barriers wake."""
        try:
            raw = self.source.read(memory)
        except Fault as fault:  # where it is noticed tells little: the copy may have been issued long before
            raise fault.with_note(str(self)) from None
        self.under_way = False
        woken = []
        for shared, first, barrier, _ in self.targets:
            self._put(shared, first, raw)
            if held:
                shared.pending.remove(self)
                barrier.copies -= 1
        for target in self.targets:
            woken += target.barrier.complete(self.size)
        return woken


class AsyncStore(Load):
    """The `st.async` of one lane: an ordinary store to shared memory that happens later, and reports its bytes."""

    def _check(self, shared: SharedMemory, first: int, accessor: Accessor) -> None:
        shared.check_range(first, first + self.size, self.size)
        shared.check_writable(first, first + self.size)

    def _claim(self, shared: SharedMemory, first: int) -> None:
        """It is no use of a slot anew."""

    def _put(self, shared: SharedMemory, first: int, raw: np.ndarray) -> None:
        shared.data[first : first + self.size] = raw
        shared.mark_stored(first, first + self.size)


@dataclass
class Sent:
    """The bytes that a lane sends from its registers."""

    raw: np.ndarray

    def __str__(self) -> str:
        return f"{self.raw.size} bytes of registers"

    def read(self, memory: GlobalMemory) -> np.ndarray:
        return self.raw


@dataclass
class SharedSource:
    """Consecutive bytes of a CTA's shared memory, as the source of a copy to a peer."""

    shared: SharedMemory
    first: int
    size: int

    def __str__(self) -> str:
        return f"{self.size} bytes at shared {self.first:#x}"

    def read(self, memory: GlobalMemory) -> np.ndarray:
        self.shared.check_readable(self.first, self.first + self.size)
        return self.shared.data[self.first : self.first + self.size].copy()


@dataclass(eq=False)
class Store:
    """A copy or reduction from shared to global memory; its source stays locked until it has been read."""

    shared: SharedMemory
    first: int
    size: int
    swizzle: int
    target: Box | Pixels | Span
    operation: str | None
    site: int
    label: str
    raw: np.ndarray | None = None
    written: bool = False
    noted: Pending | None = None  # where races are looked for
    waited: bool = False  # for its source to be read
    through: int = 0  # the address of the tensor map, if it is in global memory
    spans: list[tuple[int, int]] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.operation or 'store'} of shared {self.first:#x} to {self.target} ({self.label})"

    @property
    def under_way(self) -> bool:
        """Whether it may not have read its source, or its tensor map."""
        return self in self.shared.pending

    def begin(self, accessor: Accessor) -> None:
        self.shared.check_range(self.first, self.first + self.size, 16 if not self.swizzle else 128)
        self.shared.check_readable(self.first, self.first + self.size)
        self.shared.check_ordered(granules(self.first, self.first + self.size), accessor, "read")
        if self.shared.traffic:
            where = granules(self.first, self.first + self.size)
            self.shared.traffic.demand(self.shared.findings, "asynchronous load", accessor.warps, where)
        self.shared.readers[self.first >> 4 : (self.first + self.size) >> 4] += 1
        self.spans = [(self.first, self.first + self.size)]
        self.shared.pending.append(self)

    def read(self) -> None:
        """Takes the bytes out of shared memory, once."""
        if self.raw is None:
            self.shared.check_readable(self.first, self.first + self.size)
            if self.swizzle:
                self.raw = (
                    self.shared.words[16].take(swizzled(self.first, self.size // 16, self.swizzle)).view(np.uint8)
                )
            else:
                self.raw = self.shared.data[self.first : self.first + self.size].copy()

    def release(self) -> None:
        """The source may be overwritten from now on."""
        self.read()
        if self.under_way:
            self.shared.pending.remove(self)
            self.shared.readers[self.first >> 4 : (self.first + self.size) >> 4] -= 1

    def settle(self, warp: int, *, written: bool) -> None:
        """Where races are looked for: its warp has waited until it was read, or written too."""
        assert self.shared.traffic is not None
        if not self.waited:
            self.shared.traffic.note_read(warp, (warp,), self.site, granules(self.first, self.first + self.size))
        if written and self.noted:
            self.noted.settle()
        self.waited = True

    def write(self, memory: GlobalMemory) -> None:
        """Makes the bytes visible in global memory, once."""
        self.read()
        if not self.written:
            assert self.raw is not None
            try:
                self.target.write(memory, self.raw, self.operation)
            except Fault as fault:
                raise fault.with_note(str(self)) from None
            self.written = True
