"""The dispatch algorithms: from areas and needs of chunks to the rank of each."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from ..config import (
    ContiguousDispatchAlg,
    DispatchAlg,
    LocalityDispatchAlg,
    MinHeapDispatchAlg,
    ZigzagDispatchAlg,
)
from ..cost import CostModel
from .fastest import Problem, find_fastest
from .locality import local_search
from .needs import Spans, rank_needs, remote_needs
from .placement import Placement
from .search import MOST_RANKS, Start, find_owner
from .spread import spread_senders
from .traffic import cast_traffic, relayed_traffic

__all__ = ["DispatchProblem", "Prediction", "min_heap", "solve", "zigzag"]

FEW_CHUNKS = 1024  # whose rows are saved in 0.1 s of CPU time, of packed documents on 64 ranks
WORTH_A_TRY, WORTH_MORE = 1.1, 1.25  # times what even area takes, over which that is tried; of more chunks


@dataclass(frozen=True, eq=False)
class Prediction:
    """Forward time of a placement of the queries: the slowest rank's compute, of `area`, and the part of the busiest
    rank's traffic, `sending` seconds, that it cannot hide."""

    query: Placement
    area: int
    sending: float
    seconds: float


@dataclass(frozen=True, eq=False)
class DispatchProblem:
    """What a dispatch algorithm sees.

    areas: int64 `(chunks,)`, attended pairs of each chunk of query rows.
    needs: the keys each chunk needs.
    contiguous: the contiguous placement of the queries.
    keys_for: the placement of the keys, given that of the queries.
    is_same_source: whether that is the placement of the queries.
    key_owner: int64 `(key chunks,)` where keys stay on their ranks whatever the queries do; else None.
    """

    areas: torch.Tensor
    needs: Spans
    contiguous: Placement
    keys_for: Callable[[Placement], Placement]
    is_same_source: bool
    key_owner: torch.Tensor | None

    @property
    def world(self) -> int:
        return self.contiguous.world

    def placed(self, owner: torch.Tensor) -> Placement:
        """The placement that gives chunk c to rank `owner[c]`."""
        chunks = owner.argsort(stable=True).reshape(self.world, -1)
        return Placement(self.contiguous.length, self.contiguous.chunk_size, chunks)

    @cached_property
    def simple(self) -> list[Placement]:
        """The placements of STARTS."""
        return [self.placed(start(self.areas, self.world)) for start in STARTS]

    def largest_area(self, query: Placement) -> int:
        return int(
            torch.zeros(self.world, dtype=torch.int64, device="cpu").index_add_(0, query.owner(), self.areas).max()
        )

    def limit(self, epsilon: float) -> float:
        """The largest area that a rank may have."""
        return (1 + epsilon) * float(self.areas.sum()) / self.world

    def remote(self, query: Placement, key: Placement) -> Spans:
        """By rank, the keys that each rank needs and does not hold."""
        return remote_needs(rank_needs(self.needs, query, key.padded_length), key)

    def total_rows(self, query: Placement) -> int:
        """Key rows that all ranks receive."""
        return self.remote(query, self.keys_for(query)).rows

    def predicted(self, query: Placement, cost: CostModel) -> Prediction:
        key = self.keys_for(query)
        needs = rank_needs(self.needs, query, key.padded_length)
        remote, node_size = remote_needs(needs, key), cost.node_size(self.world)
        sending = cast_traffic(remote, key, node_size).seconds(cost)
        if 1 < node_size < self.world:
            sending = min(sending, relayed_traffic(needs, remote, key, node_size).seconds(cost))
        area = self.largest_area(query)
        return Prediction(query, area, sending, cost.total_seconds(cost.compute_seconds(area), sending))


def solve(problem: DispatchProblem, alg: DispatchAlg, cost: CostModel) -> Placement:
    """The placement of the queries that `alg` chooses."""
    world = problem.world
    if isinstance(alg, ContiguousDispatchAlg):
        return problem.contiguous
    if isinstance(alg, ZigzagDispatchAlg):
        return problem.placed(zigzag(problem.areas, world))
    if isinstance(alg, MinHeapDispatchAlg):
        return problem.placed(min_heap(problem.areas, world))
    if isinstance(alg, LocalityDispatchAlg):
        return _locality(problem, alg.epsilon)
    best = _faster(*[problem.predicted(placement, cost) for placement in problem.simple])
    found = _fastest(problem, cost, best.seconds)
    if found is not None:
        best = _faster(best, problem.predicted(found, cost))
    if problem.key_owner is None and world <= MOST_RANKS:
        even = cost.compute_seconds(float(problem.areas.sum()) / world)
        if best.seconds > (WORTH_A_TRY if len(problem.areas) <= FEW_CHUNKS else WORTH_MORE) * even:
            best = _faster(best, problem.predicted(_more_local(problem, best, cost), cost))
    return best.query


def _faster(*predictions: Prediction) -> Prediction:
    """The first among equals."""
    return min(predictions, key=lambda prediction: prediction.seconds)


def _fastest(problem: DispatchProblem, cost: CostModel, known: float) -> Placement | None:
    """What the search makes of the simple placements, None if none is faster than `known` seconds."""
    if problem.key_owner is not None:  # ranks near such keys are found by rows, not by the busiest rank
        return _locality(problem, LocalityDispatchAlg().epsilon)
    chunks, size = len(problem.areas), problem.contiguous.chunk_size
    places = torch.arange(chunks, device="cpu") if problem.is_same_source else None
    leaving = torch.zeros(chunks, dtype=torch.float64, device="cpu")
    owner = find_fastest(
        Problem(problem.areas, problem.needs, places, size, leaving), STARTS[:2], problem.world, cost, known
    )
    return None if owner is None else problem.placed(owner)


def _locality(problem: DispatchProblem, epsilon: float) -> Placement:
    """Fewest rows received among the simple placements and what the search makes of them, within the limit of area.

    Min-heap, the last of them, has no locality to keep: the search goes from there only if it must.
    """
    world, size, limit = problem.world, problem.contiguous.chunk_size, problem.limit(epsilon)
    searched: list[Placement] = []
    for start in STARTS:
        if start is min_heap and any(problem.largest_area(x) <= limit for x in searched):
            break
        owner = find_owner(problem.areas, problem.needs, start, world, limit, problem.key_owner, size)
        searched.append(_spread(problem, owner, limit))
    return min(
        [*problem.simple, *searched], key=lambda x: (max(float(problem.largest_area(x)), limit), problem.total_rows(x))
    )


def _more_local(problem: DispatchProblem, found: Prediction, cost: CostModel) -> Placement:
    """What the search for locality makes of a placement of queries that keys follow: area is evened out no further than
    what hides behind the traffic anyway, since that costs rows."""
    world, size = problem.world, problem.contiguous.chunk_size
    hidden = cost.overlap * found.sending / cost.compute_seconds(1.0)
    limit = max(problem.limit(LocalityDispatchAlg().epsilon), min(hidden, found.area))
    owner = local_search(problem.areas, problem.needs, found.query.owner(), world, limit, None, size)
    return _spread(problem, owner, limit)


def _spread(problem: DispatchProblem, owner: torch.Tensor, limit: float) -> Placement:
    """The placement, its busiest sender relieved where it is known who sends."""
    if problem.is_same_source:
        size = problem.contiguous.chunk_size
        owner = spread_senders(problem.areas, problem.needs, owner, problem.world, limit, size)
    return problem.placed(owner)


def contiguous(areas: torch.Tensor, world: int) -> torch.Tensor:
    """int64 `(chunks,)`: rank r holds the r-th consecutive part."""
    return torch.arange(world, device="cpu").repeat_interleave(len(areas) // world)


def zigzag(areas: torch.Tensor, world: int) -> torch.Tensor:
    """int64 `(chunks,)`: rank r holds the r-th part from the front and the r-th from the back."""
    back = len(areas) // world // 2
    front = len(areas) // world - back
    ranks = torch.arange(world, device="cpu")
    return torch.cat([ranks.repeat_interleave(front), ranks.flip(0).repeat_interleave(back)])


def min_heap(areas: torch.Tensor, world: int) -> torch.Tensor:
    """int64 `(chunks,)`, the rank of each chunk: largest first, each to the rank with least area that has room."""
    capacity = len(areas) // world
    owner = [0] * len(areas)
    heap = [(0, 0, rank) for rank in range(world)]  # (area, chunks, rank)
    values = areas.tolist()
    for chunk in areas.argsort(descending=True, stable=True).tolist():
        area, count, rank = heap[0]
        owner[chunk] = rank
        if count + 1 < capacity:
            heapq.heapreplace(heap, (area + values[chunk], count + 1, rank))
        else:
            heapq.heappop(heap)
    return torch.tensor(owner, dtype=torch.int64, device="cpu")


STARTS: tuple[Start, ...] = (contiguous, zigzag, min_heap)
