"""The skeleton of a launch: what each warp does to synchronise, from its start to its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..state.steps import ADD, CHANGE, INIT, LOOK, UNTIL, Recorder, Step, Thing, Warp

Program = tuple[Step, ...]
Cluster = dict[Warp, Program]  # CTAs that are there together


class Refused(Exception):
    """Why a launch has no skeleton that says all of it."""


@dataclass
class Skeleton:
    """Clusters in the order of their start, and what is in the counters before.

    Raises:
        Refused: for steps whose meaning depends on more than order: looks that steer, counters that are not only added
            to or waited for until they are large enough, an mbarrier that is initialised twice.
    """

    clusters: Sequence[Cluster]
    counters: Mapping[Thing, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        steps = [step for cluster in self.clusters for program in cluster.values() for step in program]
        waited = {step.thing for step in steps if step.what == UNTIL}
        initialised: set[Thing] = set()
        for step in steps:
            if step.what == LOOK:
                raise Refused(f"a look at {step.thing} steers what follows (PTX line {step.line})")
            if step.what == INIT:
                if step.thing in initialised:
                    raise Refused(f"{step.thing} is initialised twice (PTX line {step.line})")
                initialised.add(step.thing)
            if step.what == UNTIL and step.extra not in ("ge", "gt"):
                raise Refused(f"a wait for {step.thing} may come too late (PTX line {step.line}: until {step.extra})")
            if step.thing in waited and (step.what == CHANGE or (step.what == ADD and step.number < 0)):
                raise Refused(f"{step.thing} does not only grow (PTX line {step.line})")
        self.waited = waited

    @property
    def steps(self) -> int:
        return sum(len(program) for cluster in self.clusters for program in cluster.values())


def skeleton_of(recorder: Recorder) -> Skeleton:
    """That of a recorded launch.

    Raises:
        Refused: what the steps do not tell.
    """
    if not recorder.finished:
        raise Refused("the run did not come to its end")
    if recorder.refused:
        raise Refused("; ".join(recorder.refused))
    clusters: dict[tuple[int, ...], Cluster] = {}
    for warp in sorted(recorder.steps, key=lambda w: (w.cta[::-1], w.number)):
        place = tuple(i // n for i, n in zip(warp.cta, recorder.cluster, strict=True))
        clusters.setdefault(place[::-1], {})[warp] = tuple(recorder.steps[warp])
    waited = {step.thing for steps in recorder.steps.values() for step in steps if step.what == UNTIL}
    kept = [{warp: _kept(program, waited) for warp, program in clusters[place].items()} for place in sorted(clusters)]
    return Skeleton(kept, {thing: recorder.begins[thing] for thing in waited})


def _kept(program: Program, waited: set[Thing]) -> Program:
    """Without additions to what nobody waits for."""
    return tuple(step for step in program if step.thing.kind != "counter" or step.thing in waited)


def difference(first: Skeleton, second: Skeleton) -> str:
    """Where two runs of a launch did other things, "" if nowhere: then its steps depend on times or data."""
    for one, other in zip(first.clusters, second.clusters, strict=True):
        for warp, program in one.items():
            steps, others = ([step.effect for step in p] for p in (program, other[warp]))
            if steps != others:
                pairs = zip(steps, others, strict=False)
                at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(steps), len(others)))
                line = (program[at] if at < len(program) else other[warp][at]).line
                return f"{warp} takes other steps in another run, from its step {at} (PTX line {line}) on"
    return ""
