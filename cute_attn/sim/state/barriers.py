"""Named barriers of a CTA, mbarriers in shared memory, the barrier of a cluster: their counts and who waits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import OverArrival, TransactionCount
from .fault import Fault
from .groups import Group
from .order import NOBODY, Known, Order

MAX_TRANSACTION = (1 << 20) - 1


class Told:
    """What arrivals at a barrier tell those who pass it, as Order.release gives it."""

    def __init__(self) -> None:
        self.arriving: Known | None = None  # in the phase that is under way
        self.passed: Known | None = None  # in those that are over

    def tell(self, known: Known) -> None:
        self.arriving = known.joined(self.arriving)

    def complete(self) -> None:
        """The phase is over: whoever passes the barrier from now on is told."""
        if self.arriving is not None:
            self.passed = self.arriving.joined(self.passed)
            self.arriving = None

    def count(self, order: Order, barrier: int) -> None:
        """Whoever passes the mbarrier with this clock from now on knows the copies that reported to it until now."""
        order.clock[barrier] += 1
        if self.passed is None:
            self.passed = Known(np.zeros_like(order.seen[0]))
        self.passed.seen[0, barrier] = order.clock[barrier]

    def to(self, group: Group) -> None:
        """These warps pass the barrier."""
        if self.passed is not None:
            group.cta.cluster.order.acquire(group.numbers, self.passed)


@dataclass(eq=False)
class MBarrier:
    """Phases of arrivals and transaction bytes. `phase` counts completed phases; its parity is what waits test."""

    address: int
    expected: int
    pending: int = 0
    transaction: int = 0
    phase: int = 0
    waiters: list[Any] = field(default_factory=list)  # groups of lanes that are blocked on the current phase
    copies: int = 0  # asynchronous copies in flight that will report here
    expecting: tuple[int, tuple[int, ...]] | None = None  # who expected bytes last: instruction, warps
    told: Told = field(default_factory=Told)
    order: Order | None = None  # where races are looked for: who has its clock
    clock: int = NOBODY  # its place there

    def __post_init__(self) -> None:
        self.pending = self.expected

    def __str__(self) -> str:
        phase = (
            f"phase {self.phase} (parity {self.phase & 1}), {self.expected - self.pending} of {self.expected} arrivals"
        )
        transfers = f"{self.transaction} transaction bytes outstanding, {self.copies} copies in flight"
        return f"mbarrier {self.address:#x}: {phase}, {transfers}"

    @property
    def subject(self) -> str:
        return f"mbarrier {self.address:#x}"

    def arrive(self, count: int, expected_bytes: int = 0) -> list[Any]:
        """Arrivals, with bytes to expect first; returns the groups to wake."""
        self.expect(expected_bytes)
        if count > self.pending:
            what = f"{count} arrivals where {self.pending} of {self.expected} are outstanding"
            raise Fault(OverArrival, what, self.subject, [str(self)])
        self.pending -= count
        return self._settle()

    def expect(self, count: int) -> None:
        self.transaction += count
        if abs(self.transaction) > MAX_TRANSACTION:
            raise Fault(TransactionCount, f"the transaction count {self.transaction} is out of range", self.subject)

    def complete(self, count: int) -> list[Any]:
        """Bytes that a copy delivered; returns the groups to wake."""
        self.transaction -= count
        if self.transaction < 0 and self.pending == 0:
            what = f"{-self.transaction} more bytes were delivered than this phase expects"
            raise Fault(TransactionCount, what, self.subject, [str(self)])
        return self._settle()

    def _settle(self) -> list[Any]:
        if self.pending or self.transaction:
            if self.pending == 0 and self.transaction < 0:
                what = f"{-self.transaction} more bytes were delivered than this phase expects"
                raise Fault(TransactionCount, what, self.subject, [str(self)])
            return []
        if self.copies:
            what = f"the phase completes while {self.copies} of its copies are in flight: it expects too few bytes"
            raise Fault(TransactionCount, what, self.subject, [str(self)])
        self.phase += 1
        self.told.complete()
        if self.order is not None:
            self.told.count(self.order, self.clock)
        self.pending = self.expected
        woken, self.waiters = self.waiters, []
        return woken


@dataclass(eq=False)
class NamedBarrier:
    """A bar.sync / bar.arrive barrier; counts are in threads and come with each instruction."""

    number: int
    expected: int = 0
    arrived: int = 0
    waiters: list[Any] = field(default_factory=list)
    everyone: bool = False  # it came without a count: warps that end are not waited for
    told: Told = field(default_factory=Told)
    passed: Told = field(default_factory=Told)  # of the last phase alone: others may have met here before

    def __str__(self) -> str:
        return f"barrier {self.number}: {self.arrived} of {self.expected} threads"

    @property
    def subject(self) -> str:
        return f"barrier {self.number}"

    def arrive(self, threads: int, expected: int) -> list[Any] | None:
        """Threads arrive; returns whom to wake if the barrier completes, None if it does not."""
        if self.arrived and expected != self.expected:
            what = f"arrival expecting {expected} threads at a barrier where others expect {self.expected}"
            raise Fault(OverArrival, what, self.subject, [str(self)])
        self.expected = expected
        self.arrived += threads
        if self.arrived > expected:
            raise Fault(OverArrival, f"{self.arrived} threads arrive where {expected} are expected", self.subject)
        return self.complete()

    def complete(self) -> list[Any] | None:
        """Whom to wake if enough have arrived, None if not."""
        if self.arrived < self.expected:
            return None
        self.arrived, woken, self.waiters = 0, self.waiters, []
        self.passed, self.told = self.told, Told()
        self.passed.complete()
        for group in woken:
            self.passed.to(group)
        return woken
