"""All interleavings of a cluster: in one run where its order proves itself, with branches at the barriers where not.

A barrier at which a step may meet another phase in another order is searched: whoever comes to it, and the copies that
report there, are choices. Between choices every warp goes on as far as it can, and states that were seen are not looked
at again: where a warp is tells what it knows of the other barriers, since their order is the same in every run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ..errors import Deadlock
from ..state.steps import Thing
from .barriers import Wrong
from .counterexample import Counterexample, counterexample
from .order import Race
from .program import Cluster
from .run import Choice, Flight, Run

MOST_STATES = 2_000


class TooMany(Exception):
    """The search was given up."""


@dataclass
class Searched:
    """What a search found.

    states: how many were looked at. races: of each searched barrier, why its order does not prove itself. found: what
    goes wrong. complete: whether the search came to its end.
    """

    states: int = 0
    races: dict[Thing, str] = field(default_factory=dict)
    found: Counterexample | None = None
    complete: bool = True


def search(cluster: Cluster, most_states: int = MOST_STATES) -> Searched:
    """Every order of the steps of a cluster; waits for counters may pass at any time."""
    result = Searched()
    while True:
        try:
            _explore(cluster, result, most_states)
        except Race as race:
            result.races[race.thing] = str(race)
            continue
        except TooMany:
            result.complete = False
        return result


def _explore(cluster: Cluster, result: Searched, most_states: int) -> None:
    result.states = 0
    start, races = Run(cluster, result.races.keys()), bool(result.races)
    for first in _extremes(len(cluster)) if races else ():
        if _goes_wrong(cluster, result, first):
            return
    seen: set[object] = set()
    left: list[tuple[Run, Choice | None]] = [(start, None)]
    while left:
        run, choice = left.pop()
        if choice is not None:
            run = run.copy()
        choices = _step(run, choice, result)
        if result.found:
            return
        if not choices:
            result.states += 1
            continue
        if len(seen) >= most_states:
            raise TooMany
        if run.key not in seen:
            seen.add(run.key)
            result.states += 1
            left += [(run, choice) for choice in reversed(choices)]


def _step(run: Run, choice: Choice | None, result: Searched) -> list[Choice]:
    """Takes a choice; those that there are then. Notes what goes wrong."""
    try:
        if choice is None:
            run.close()
        else:
            run.choose(choice)
        choices = run.choices()
    except Wrong as wrong:
        result.found = counterexample(run, wrong.error, wrong.what)
        return []
    if not choices:
        if run.finished:
            run.check_ends()
        else:
            result.found = counterexample(run, Deadlock, "nothing can go on")
    return choices


# ---------------------------------------------------------------------- likely orders, which are looked at first

Rank = Callable[[Choice], int]


def _extremes(warps: int) -> Iterator[Rank]:
    """Orders in which one warp comes last wherever it can, or first, and copies end early or late."""
    for copies in (-2, 2):
        for warp in range(warps):
            yield functools.partial(_rank, warp, 1, copies)
            yield functools.partial(_rank, warp, -1, copies)


def _rank(warp: int, rank: int, copies: int, choice: Choice) -> int:
    return copies if isinstance(choice, Flight) else rank * (choice == warp)


def _goes_wrong(cluster: Cluster, result: Searched, rank: Rank) -> bool:
    """Whether a run in such an order does."""
    run = Run(cluster, result.races.keys())
    choices = _step(run, None, result)
    while choices:
        choices = _step(run, min(choices, key=rank), result)
        result.states += 1
    return result.found is not None
