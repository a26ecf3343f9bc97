"""CTAs that wait for each other by counters: how many must be resident, in order of their index and in any order.

Within a cluster every order is the same (`order.py`), and a counter that only grows lets pass whom it let pass before.
So what has become of the clusters that were started follows from which these are, not from the order of events: a
search over sets of clusters is one over all interleavings.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import Deadlock
from .counterexample import Counterexample, counterexample
from .program import Skeleton
from .run import Counters, Run

MOST_SETS = 3_000


@dataclass
class Residency:
    """in_order, in_any_order: the least number of clusters that must be resident; None: not found out.

    found: how it goes wrong if all are resident; too_few: with one less than in_order, too_few_in_any_order likewise.
    """

    clusters: int
    in_order: int | None = None
    in_any_order: int | None = None
    found: Counterexample | None = None
    too_few: Counterexample | None = None
    too_few_in_any_order: Counterexample | None = None
    sets: int = 0

    def __str__(self) -> str:
        if self.found:
            return "its CTAs wait for each other for ever"
        return (
            "its CTAs (or clusters) wait for each other: started in the order of their index none waits for ever "
            f"{self._if(self.in_order)}; started in any order, {self._if(self.in_any_order)}"
        )

    def _if(self, needed: int | None) -> str:
        if needed is None:
            return "not searched: too many orders"
        few = f"if at least {needed} of {self.clusters} are resident together"
        return "however few are resident" if needed == 1 else few


class Grid:
    """The clusters that were started, each as far as it can go."""

    def __init__(self, skeleton: Skeleton):
        self.skeleton = skeleton
        self.counters: Counters = dict(skeleton.counters)
        self.running: dict[int, Run] = {}
        self.ended: set[int] = set()

    def copy(self) -> Grid:
        other = Grid(self.skeleton)
        other.counters = dict(self.counters)
        other.running = {i: run.copy() for i, run in self.running.items()}
        for run in other.running.values():
            run.counters = other.counters
        other.ended = set(self.ended)
        return other

    def start(self, number: int) -> None:
        """Starts a cluster; all that run go as far as they can."""
        self.running[number] = Run(self.skeleton.clusters[number], (), self.counters)
        moved = True
        while moved:
            before = sum(run.taken for run in self.running.values()) + len(self.ended)
            for i, run in list(self.running.items()):
                run.resume()
                if run.finished:
                    self.ended.add(i)
                    del self.running[i]
            after = sum(run.taken for run in self.running.values()) + len(self.ended)
            moved = after != before

    def stuck(self, most: int) -> Counterexample:
        run = self.running[min(self.running)]
        names = ", ".join(map(str, sorted(self.running)))
        what = f"clusters {names} wait for others, {len(self.ended)} have ended, {most} may be resident"
        return counterexample(run, Deadlock, what)


def residency(skeleton: Skeleton) -> Residency:
    count = len(skeleton.clusters)
    result = Residency(count)
    result.found = _in_order(skeleton, count)
    if result.found is not None:
        return result
    result.in_order = count
    while result.in_order > 1:
        result.too_few = _in_order(skeleton, result.in_order - 1)
        if result.too_few is not None:
            break
        result.in_order -= 1
    result.in_any_order = count
    while result.in_any_order > 1:
        try:
            result.too_few_in_any_order = _in_any_order(skeleton, result.in_any_order - 1, result)
        except OverflowError:
            result.in_any_order = None
            break
        if result.too_few_in_any_order is not None:
            break
        result.in_any_order -= 1
    return result


def _in_order(skeleton: Skeleton, most: int) -> Counterexample | None:
    """With so many resident at most, started in the order of their index."""
    grid = Grid(skeleton)
    for number in range(len(skeleton.clusters)):
        if len(grid.running) == most:
            return grid.stuck(most)
        grid.start(number)
    return grid.stuck(most) if grid.running else None


def _in_any_order(skeleton: Skeleton, most: int, result: Residency) -> Counterexample | None:
    everyone = frozenset(range(len(skeleton.clusters)))
    seen: set[frozenset[int]] = set()
    left: list[tuple[Grid, frozenset[int]]] = [(Grid(skeleton), frozenset())]
    while left:
        grid, started = left.pop()
        if len(grid.running) == most and started != everyone:
            return grid.stuck(most)
        for number in sorted(everyone - started):
            now = started | {number}
            if now in seen:
                continue
            if len(seen) == MOST_SETS:
                raise OverflowError
            seen.add(now)
            result.sets += 1
            after = grid.copy()
            after.start(number)
            left.append((after, now))
    return None
