"""How long compiled candidates should take, by the model of `cute-attn predict`: off their machine code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cute_attn.predict.call import predict
from cute_attn.predict.machine import H200
from cute_attn.predict.ours import call_of
from cute_attn.spec.tiles import Tile

from .problem import Problem
from .profile import Profile

__all__ = ["GPU", "Predictions", "predictions_of"]

GPU = H200.name  # whose times these are, with as many multiprocessors as are asked for


@dataclass(frozen=True)
class Predictions:
    """seconds: of a call, best first; what the model does not tell apart stays in the order in which it was given.
    unknown: why there are none of the other candidates."""

    seconds: dict[Tile, float] = field(default_factory=dict)
    unknown: dict[Tile, str] = field(default_factory=dict)

    @property
    def ranked(self) -> list[Tile]:
        """All of them; last, as they were given, those without a prediction."""
        return [*self.seconds, *self.unknown]


def predictions_of(
    problem: Problem, tiles: Sequence[Tile], profiles: Mapping[Tile, Profile], multiprocessors: int
) -> Predictions:
    """Of tiles of a problem."""
    machine = replace(H200, multiprocessors=multiprocessors)
    mask, heads = problem.intervals(), (problem.heads_q, problem.heads_k)
    seconds: dict[Tile, float] = {}
    unknown: dict[Tile, str] = {}
    for tile in tiles:
        profile = profiles[tile]
        if profile.unknown:
            unknown[tile] = profile.unknown
            continue
        try:
            call = call_of(problem.spec(tile), profile.code, mask, heads, problem.batch)
            seconds[tile] = predict(call, machine).seconds
        except (ValueError, RuntimeError) as error:  # a call that it does not lay out; steps that it cannot play
            unknown[tile] = str(error)
    return Predictions(dict(sorted(seconds.items(), key=lambda item: item[1])), unknown)
