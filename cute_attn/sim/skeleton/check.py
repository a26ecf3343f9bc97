"""Whether a launch can hang: the search within its clusters, then among them."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..state.steps import Thing
from .counterexample import Counterexample
from .program import Cluster, Program, Skeleton
from .residency import Residency, residency
from .search import MOST_STATES, Searched, search


@dataclass
class Checked:
    """What was found of a launch.

    searches: one for each kind of cluster, with how many clusters are of it. residency: where clusters wait for each
    other. found: how it hangs, or meets barriers wrongly; None if it does not. complete: whether all was searched.
    """

    steps: int
    warps: int
    searches: list[tuple[Searched, int]] = field(default_factory=list)
    residency: Residency | None = None
    waits: bool = False  # whether clusters wait for each other

    @property
    def found(self) -> Counterexample | None:
        among = [self.residency.found] if self.residency else []
        return next((f for f in (*(s.found for s, _ in self.searches), *among) if f), None)

    @property
    def complete(self) -> bool:
        return all(s.complete for s, _ in self.searches) and not (self.waits and self.residency is None)

    @property
    def states(self) -> int:
        return sum(s.states for s, _ in self.searches)

    @property
    def races(self) -> dict[Thing, str]:
        return {thing: why for s, _ in self.searches for thing, why in s.races.items()}

    @property
    def verified(self) -> bool:
        return self.found is None and self.complete


def check(skeleton: Skeleton, most_states: int = MOST_STATES) -> Checked:
    """Searches every order of the steps of a launch."""
    result = Checked(skeleton.steps, sum(map(len, skeleton.clusters)), waits=bool(skeleton.waited))
    kinds: dict[object, list[Cluster]] = {}
    for cluster in skeleton.clusters:
        kinds.setdefault(_kind(cluster), []).append(cluster)
    for alike in kinds.values():
        result.searches.append((search(alike[0], most_states), len(alike)))
    if result.waits and not result.races and not result.found:
        result.residency = residency(skeleton)
    return result


def _kind(cluster: Cluster) -> object:
    """Equal for clusters that differ in nothing but their places and counters."""
    ctas = list(dict.fromkeys(warp.cta for warp in cluster))

    def steps(program: Program) -> tuple[object, ...]:
        return tuple(
            (s.what, s.thing.kind, ctas.index(s.thing.place), s.thing.number, s.number, s.extra)
            for s in program
            if s.thing.kind != "counter"
        )

    return tuple((ctas.index(warp.cta), warp.number, steps(program)) for warp, program in cluster.items())
