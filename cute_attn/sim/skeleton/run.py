"""One run of a cluster's skeleton: where each warp is, what its barriers hold, which copies are under way.

Steps at barriers whose order proves itself (`order.py`) are taken as soon as they can be. Steps at the others are
choices of the search, and so are the ends of copies that report there.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, MutableMapping
from typing import NamedTuple

from ..errors import OutOfBounds
from ..state.steps import (
    ADD,
    ARRIVE,
    COMPARISONS,
    COPY,
    EXPECT,
    INIT,
    MEET,
    PASS,
    UNTIL,
    WAIT,
    Step,
    Thing,
    Warp,
)
from . import order
from .barriers import Barrier, Clock, Wrong
from .program import Cluster

Counters = MutableMapping[Thing, int]


class Flight(NamedTuple):
    """A copy under way to a barrier that is searched, by whom."""

    thing: Thing
    bytes: int
    arrivals: int
    warp: int
    line: int


class Moved(NamedTuple):
    """What happened: a step of a warp, its end (None), or the end of a copy."""

    warp: int
    what: Step | Flight | None


Trail = tuple["Trail", Moved] | None
Choice = int | Flight  # a warp, or a copy


class Run:
    """A run that can be copied at every choice. counters: None where waits for them always pass."""

    def __init__(self, cluster: Cluster, searched: Collection[Thing], counters: Counters | None = None):
        self.warps: list[Warp] = list(cluster)
        self.programs = list(cluster.values())
        self.searched, self.counters = searched, counters
        count = len(self.warps)
        self.at = [0] * count
        self.over = [False] * count
        self.clocks: list[Clock] = [(0,) * count for _ in range(count)]
        self.barriers: dict[Thing, Barrier] = {}
        self.tokens: dict[tuple[int, Thing], int] = {}
        self.waiting: dict[Thing, list[int]] = {}
        self.flights: list[Flight] = []
        self.remote: list[tuple[Thing, int, int]] = []  # what warps did to barriers of other CTAs
        self.ready = list(range(count))[::-1]
        self.taken = 0
        self.trail: Trail = None

    def copy(self) -> Run:
        other = copy.copy(self)
        for name in ("at", "over", "clocks", "flights", "remote", "ready"):
            setattr(other, name, list(getattr(self, name)))
        other.barriers = {thing: barrier.copy() for thing, barrier in self.barriers.items()}
        other.tokens = dict(self.tokens)
        other.waiting = {thing: list(warps) for thing, warps in self.waiting.items()}
        return other

    @property
    def key(self) -> object:
        """What the rest of the run depends on."""
        barriers = tuple(sorted((thing, barrier.key) for thing, barrier in self.barriers.items()))
        return (
            tuple(self.at),
            tuple(self.over),
            barriers,
            tuple(sorted(self.flights)),
            tuple(sorted(self.tokens.items())),
        )

    # ------------------------------------------------------------------ what can happen

    def close(self) -> None:
        """Takes all steps that are no choices."""
        while self.ready:
            warp = self.ready.pop()
            while self._advance(warp):
                pass

    def _advance(self, warp: int) -> bool:
        if self.over[warp]:
            return False
        program, at = self.programs[warp], self.at[warp]
        if at == len(program):
            if not self._ends_freely(warp):
                return False
            self._end(warp)
            return False
        step = program[at]
        if step.thing in self.searched:
            return False
        if not self._can(warp, step):
            self.waiting.setdefault(step.thing, []).append(warp)
            return False
        self._take(warp, step)
        return True

    def choices(self) -> list[Choice]:
        """Warps that can go on at what is searched, and copies that can end: a choice of each."""
        found: list[Choice] = [warp for warp in range(len(self.warps)) if self._may_choose(warp)]
        return [*found, *dict.fromkeys(self.flights)]

    def _may_choose(self, warp: int) -> bool:
        if self.over[warp] or self.at[warp] == len(self.programs[warp]):
            return not self.over[warp]
        step = self.programs[warp][self.at[warp]]
        return step.thing in self.searched and self._can(warp, step)

    def choose(self, choice: Choice) -> None:
        """Takes a choice, and all steps that follow from it."""
        if isinstance(choice, Flight):
            self.flights.remove(choice)
            self._moved(choice.warp, choice)
            if self.barriers[choice.thing].deliver(choice.bytes, choice.arrivals):
                self._wake(choice.thing)
        elif self.at[choice] == len(self.programs[choice]):
            self._end(choice)
        else:
            self._take(choice, self.programs[choice][self.at[choice]])
            self.ready.append(choice)
        self.close()

    @property
    def finished(self) -> bool:
        return all(self.over) and not self.flights

    def resume(self) -> None:
        """Looks again at the counters, which others may have added to."""
        for thing in [thing for thing in self.waiting if thing.kind == "counter"]:
            self.ready += self.waiting.pop(thing)
        self.close()

    # ------------------------------------------------------------------ steps

    def _barrier(self, thing: Thing) -> Barrier:
        if thing not in self.barriers:
            self.barriers[thing] = Barrier(thing)
        return self.barriers[thing]

    def _can(self, warp: int, step: Step) -> bool:
        if step.what == WAIT:
            return self._barrier(step.thing).passes(step.number)
        if step.what == PASS:
            return self._barrier(step.thing).waited(self.tokens.get((warp, step.thing)))
        if step.what == UNTIL and self.counters is not None:
            return COMPARISONS[step.extra](self.counters[step.thing], step.number)
        return True

    def _moved(self, warp: int, what: Step | Flight | None) -> None:
        self.trail = (self.trail, Moved(warp, what))
        self.taken += 1

    def _take(self, warp: int, step: Step) -> None:
        self.at[warp] += 1
        clock = self.clocks[warp]
        self.clocks[warp] = clock = (*clock[:warp], clock[warp] + 1, *clock[warp + 1 :])
        self._moved(warp, step)
        if step.thing.kind == "counter":
            if step.what == ADD and self.counters is not None:
                self.counters[step.thing] += step.number
            return
        barrier, proves = self._barrier(step.thing), step.thing not in self.searched
        if step.thing.kind == "mbarrier" and step.thing.place != self.warps[warp].cta:
            self._reach_out(warp, step.thing)
        if step.what == INIT:
            barrier.expected, barrier.initialised = step.number, (warp, clock[warp])
        elif step.what == WAIT:
            if proves:
                self.clocks[warp] = order.passed(barrier, warp, clock)
        elif step.what == PASS:
            token = self.tokens.pop((warp, step.thing))
            if proves:
                self.clocks[warp] = order.met(barrier, token, warp, clock)
        elif step.what == COPY:
            self._start(warp, step, barrier)
        else:
            self._arrive(warp, step, barrier)

    def _arrive(self, warp: int, step: Step, barrier: Barrier) -> None:
        if step.thing not in self.searched:
            order.took_part(barrier, warp, self.clocks[warp], "expects" if step.what == EXPECT else "arrivals")
        if step.what == EXPECT:
            barrier.expect(step.number)
            return
        if step.what == MEET:
            self.tokens[warp, step.thing] = barrier.phase
            over = barrier.meet(step.number, step.extra or self._living(barrier))
        else:
            assert step.what == ARRIVE
            over = barrier.arrive(step.number, step.extra)
        if over:
            self._ended(barrier)

    def _start(self, warp: int, step: Step, barrier: Barrier) -> None:
        barrier.check()
        barrier.copies += 1
        if step.thing in self.searched:
            self.flights.append(Flight(step.thing, step.number, step.extra, warp, step.line))
            return
        order.took_part(barrier, warp, self.clocks[warp], "copied")
        if barrier.deliver(step.number, step.extra):
            self._ended(barrier)

    def _ended(self, barrier: Barrier) -> None:
        if barrier.thing not in self.searched:
            order.ended(barrier)
        self._wake(barrier.thing)

    def _wake(self, thing: Thing) -> None:
        self.ready += self.waiting.pop(thing, [])

    # ------------------------------------------------------------------ ends of warps and CTAs

    def _of_everyone(self, warp: int) -> Iterator[Barrier]:
        """Barriers at which some have come and all that live must, this warp among them."""
        for thing, barrier in self.barriers.items():
            if barrier.everyone and barrier.arrived and self._is_of(self.warps[warp], thing):
                yield barrier

    @staticmethod
    def _is_of(warp: Warp, thing: Thing) -> bool:
        return thing.kind == "cluster barrier" or thing.place == warp.cta

    def _ends_freely(self, warp: int) -> bool:
        """Whether the end of a warp changes nothing that is searched."""
        return not any(self._is_of(self.warps[warp], thing) for thing in self.searched)

    def _end(self, warp: int) -> None:
        self.over[warp] = True
        self._moved(warp, None)
        for barrier in self._of_everyone(warp):
            if barrier.thing not in self.searched:
                raise order.Race(barrier.thing, warp, "who ends before it need not come")
            barrier.expected -= 32
            if barrier.met():
                self._wake(barrier.thing)

    def _living(self, barrier: Barrier) -> int:
        """Threads that must meet where all do."""
        here = [i for i, warp in enumerate(self.warps) if self._is_of(warp, barrier.thing)]
        ended = [i for i in here if self.over[i]]
        if ended and barrier.thing not in self.searched:
            raise order.Race(barrier.thing, ended[0], "who ends before it need not come")
        barrier.everyone = True
        return 32 * (len(here) - len(ended))

    def _reach_out(self, warp: int, thing: Thing) -> None:
        self.remote.append((thing, warp, self.clocks[warp][warp]))
        if all(over for over, w in zip(self.over, self.warps, strict=True) if w.cta == thing.place):
            raise Wrong(OutOfBounds, f"access to {thing}: that CTA has ended, no barrier kept it")

    def check_ends(self) -> None:
        """When all have ended: whether each CTA was there as long as others used its barriers, in any order.

        Raises:
            Race: it need not have been.
        """
        for thing, warp, step in self.remote:
            owners = (i for i, w in enumerate(self.warps) if w.cta == thing.place)
            if thing not in self.searched and all(self.clocks[i][warp] < step for i in owners):
                raise order.Race(thing, warp, "its CTA may end before others are done with it")
