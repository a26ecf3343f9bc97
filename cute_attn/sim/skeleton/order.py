"""One order proves all: if every step is tied, by what happens before it, to the phase that it meets.

A run of all warps orders their steps: those of a warp, and a wait behind all that ended the phase for which it waits.
Suppose that in one run, for every barrier,

- an event of a phase comes behind the end of the phase before,
- a wait comes behind the end of the phase before the one for which it waits, and before an event of the next,
- bytes are expected before an arrival of their phase, and
- the barrier is initialised before any of this.

Then any other run takes the same steps in another order that this one allows: by induction, whatever warp goes on next,
its step falls into the phase that it has here. So none ends in a deadlock, none in too many arrivals or bytes.
Waits for counters that only grow need no such order: what has let them pass once always will.
"""

from __future__ import annotations

from ..state.steps import Thing
from .barriers import Barrier, Clock, Phase


class Race(Exception):
    """A step that may meet another phase in another order."""

    def __init__(self, thing: Thing, warp: int, what: str):
        super().__init__(f"{thing}: {what}")
        self.thing, self.warp = thing, warp


def joined(first: Clock, second: Clock) -> Clock:
    if not first:
        return second
    return tuple(map(max, first, second)) if second else first


def _knows(clock: Clock, events: tuple[tuple[int, int], ...]) -> bool:
    return all(clock[warp] >= step for warp, step in events)


def _knows_one(clock: Clock, events: tuple[tuple[int, int], ...]) -> bool:
    return any(clock[warp] >= step for warp, step in events)


def _over(clock: Clock, phase: Phase, passes: tuple[tuple[int, int], ...]) -> bool:
    """Whether the end of a phase comes before: somebody who waited told so, or all its events are known."""
    return _knows_one(clock, passes) or (not phase.copied and _knows(clock, phase.arrivals + phase.expects))


def used(barrier: Barrier, clock: Clock) -> None:
    if barrier.initialised is not None and not _knows(clock, (barrier.initialised,)):
        raise Race(barrier.thing, barrier.initialised[0], "it may be used before it is initialised")


def took_part(barrier: Barrier, warp: int, clock: Clock, what: str) -> None:
    """An event of the phase that is under way: "arrivals", "expects" or "copied"."""
    used(barrier, clock)
    now = barrier.now
    if barrier.phase and not _over(clock, barrier.last, now.passes):
        raise Race(barrier.thing, warp, "an arrival, or bytes, may come before the end of the phase before theirs")
    event = (warp, clock[warp])
    now = now._replace(told=joined(now.told, clock))
    if what == "arrivals":
        now = now._replace(arrivals=(*now.arrivals, event), arrived=joined(now.arrived, clock))
    elif what == "expects":
        now = now._replace(expects=(*now.expects, event))
    else:
        now = now._replace(copied=True)
    barrier.now = now


def ended(barrier: Barrier) -> None:
    """The phase that was under way has ended."""
    now = barrier.now
    for warp, step in now.passes if barrier.thing.kind == "mbarrier" else ():  # others wait for a phase by its number
        if now.told[warp] < step:
            raise Race(barrier.thing, warp, "a wait may miss its phase: the next may end before")
    if now.expects and not (now.arrived and _knows(now.arrived, now.expects)):
        raise Race(barrier.thing, now.expects[0][0], "a phase may end before bytes of it are expected")
    barrier.before, barrier.last, barrier.now = barrier.last, now, Phase()


def passed(barrier: Barrier, warp: int, clock: Clock) -> Clock:
    """A wait by parity passes; what the warp knows behind it."""
    used(barrier, clock)
    told_before = (*barrier.now.passes, *barrier.last.passes)
    if barrier.phase > 1 and not _over(clock, barrier.before, told_before):
        raise Race(barrier.thing, warp, "a wait may pass a phase, or two, too early")
    behind = joined(clock, barrier.last.told)
    barrier.now = barrier.now._replace(passes=(*barrier.now.passes, (warp, behind[warp])))
    return behind


def met(barrier: Barrier, token: int, warp: int, clock: Clock) -> Clock:
    """A wait for the phase `token`, in which the warp came, passes; what the warp knows behind it.

    That the warps of a warpgroup multiply together is no barrier: each starts by itself.
    """
    since = barrier.phase - token
    if since > 2:
        return clock
    phase = barrier.last if since == 1 else barrier.before
    behind = clock if barrier.thing.kind == "products" else joined(clock, phase.told)
    event = (warp, behind[warp])
    if since == 1:
        barrier.now = barrier.now._replace(passes=(*barrier.now.passes, event))
    else:
        barrier.last = barrier.last._replace(passes=(*barrier.last.passes, event))
    return behind
