"""The state of a barrier in the search, and how steps change it: counts alone, as in `state/barriers.py`."""

from __future__ import annotations

import copy
from typing import NamedTuple

from ..errors import Deadlock, OutOfBounds, OverArrival, SimError, TransactionCount
from ..state.steps import Thing

Clock = tuple[int, ...]  # by warp: how many of its steps are ordered before


class Wrong(Exception):
    """What a step does wrong in this order."""

    def __init__(self, error: type[SimError], what: str):
        super().__init__(what)
        self.error, self.what = error, what


class Phase(NamedTuple):
    """What is known of one phase. Events are a warp and its step."""

    arrivals: tuple[tuple[int, int], ...] = ()
    expects: tuple[tuple[int, int], ...] = ()
    copied: bool = False  # whether copies took part
    passes: tuple[tuple[int, int], ...] = ()  # waits that passed while this phase was under way
    told: Clock = ()  # all that is ordered before one of its events
    arrived: Clock = ()  # before one of its arrivals


class Barrier:
    """An mbarrier, a named barrier or a cluster's: how far its phase is. phase: how many are over."""

    def __init__(self, thing: Thing):
        self.thing, self.phase = thing, 0
        self.expected = 0  # arrivals or threads; 0 before it is known
        self.arrived = 0
        self.bytes = self.copies = 0  # expected or delivered, and in flight
        self.everyone = False  # all that live must meet
        self.initialised: tuple[int, int] | None = None
        self.now, self.last, self.before = Phase(), Phase(), Phase()

    def copy(self) -> Barrier:
        return copy.copy(self)

    @property
    def key(self) -> tuple[int, ...]:
        return self.phase, self.expected, self.arrived, self.bytes, self.copies

    def __str__(self) -> str:
        if self.thing.kind == "mbarrier":
            outstanding = f", {self.bytes} bytes outstanding" if self.bytes else ""
            return f"{self.thing}, phase {self.phase}: {self.arrived} of {self.expected} arrivals{outstanding}"
        return f"{self.thing}: {self.arrived} of {self.expected or 'all'} threads"

    # ------------------------------------------------------------------ steps; true if the phase is over

    def check(self) -> None:
        if not self.expected:
            raise Wrong(OutOfBounds, f"{self.thing} is used before it is initialised")

    def arrive(self, count: int, expected_bytes: int) -> bool:
        self.check()
        self.bytes += expected_bytes
        if self.arrived + count > self.expected:
            raise Wrong(OverArrival, f"{count} arrivals more than {self} can take")
        self.arrived += count
        return self._settle()

    def expect(self, count: int) -> None:
        self.check()
        self.bytes += count

    def deliver(self, count: int, arrivals: int) -> bool:
        self.copies -= 1
        self.bytes -= count
        if self.arrived + arrivals > self.expected:
            raise Wrong(OverArrival, f"{arrivals} arrivals of copies more than {self} can take")
        self.arrived += arrivals
        return self._settle()

    def _settle(self) -> bool:
        if self.arrived < self.expected:
            return False
        if self.bytes < 0:
            raise Wrong(TransactionCount, f"more bytes come than are expected: {self}")
        if self.bytes:
            return False
        if self.copies:
            raise Wrong(TransactionCount, f"{self.thing} expects too few bytes: its phase ends under its copies")
        self._over()
        return True

    def meet(self, threads: int, expected: int) -> bool:
        """expected: how many must meet."""
        if self.arrived and self.expected != expected:
            raise Wrong(OverArrival, f"{expected} threads are to meet at {self}, where others expect another number")
        self.expected = expected
        self.arrived += threads
        if self.arrived > expected:
            raise Wrong(OverArrival, f"{self.arrived} threads meet where {expected} are expected: {self.thing}")
        return self.met()

    def met(self) -> bool:
        if not self.arrived or self.arrived < self.expected:
            return False
        self._over()
        return True

    def _over(self) -> None:
        self.phase += 1
        self.arrived = 0

    def passes(self, parity: int) -> bool:
        self.check()
        return self.phase & 1 != parity

    def waited(self, token: int | None) -> bool:
        """Whether the phase in which a warp came is over."""
        if token is None:
            raise Wrong(Deadlock, f"a wait at {self.thing} without having come")
        return self.phase > token
