"""The dispatch algorithms: from areas and needs of chunks to the rank of each."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .config import (
    ContiguousDispatchAlg,
    DispatchAlg,
    LocalityDispatchAlg,
    MinHeapDispatchAlg,
    ZigzagDispatchAlg,
)
from .cost import CostModel
from .locality import local_search
from .needs import Spans, rank_needs, remote_needs, rows_sent
from .placement import Placement

__all__ = ["DispatchProblem", "min_heap", "solve", "zigzag"]


@dataclass(frozen=True, eq=False)
class DispatchProblem:
    """What a dispatch algorithm sees.

    areas: int64 `(chunks,)`, attended pairs of each chunk of query rows.
    needs: the keys each chunk needs.
    contiguous: the contiguous placement of the queries.
    keys_for: the placement of the keys, given that of the queries.
    key_owner: int64 `(key chunks,)` where keys stay on their ranks whatever the queries do; else None.
    """

    areas: torch.Tensor
    needs: Spans
    contiguous: Placement
    keys_for: Callable[[Placement], Placement]
    key_owner: torch.Tensor | None

    @property
    def world(self) -> int:
        return self.contiguous.world

    def placed(self, owner: torch.Tensor) -> Placement:
        """The placement that gives chunk c to rank `owner[c]`."""
        chunks = owner.argsort(stable=True).reshape(self.world, -1)
        return Placement(self.contiguous.length, self.contiguous.chunk_size, chunks)

    def largest_area(self, query: Placement) -> int:
        return int(torch.zeros(self.world, dtype=torch.int64).index_add_(0, query.owner(), self.areas).max())

    def remote(self, query: Placement, key: Placement) -> Spans:
        """By rank, the keys that each rank needs and does not hold."""
        return remote_needs(rank_needs(self.needs, query, key.padded_length), key)

    def total_rows(self, query: Placement) -> int:
        """Key rows that all ranks receive."""
        return self.remote(query, self.keys_for(query)).rows

    def predicted_seconds(self, query: Placement, cost: CostModel) -> float:
        """Forward time: the slowest rank's compute, and the part of the busiest rank's traffic that it cannot hide."""
        key = self.keys_for(query)
        remote = self.remote(query, key)
        rows = int(torch.maximum(remote.rows_by_group(self.world), rows_sent(remote, key)).max())
        compute = cost.compute_seconds(self.largest_area(query))
        return cost.total_seconds(compute, cost.send_seconds(rows * cost.key_bytes))


def solve(problem: DispatchProblem, alg: DispatchAlg, cost: CostModel) -> Placement:
    """The placement of the queries that `alg` chooses."""
    world, chunks = problem.world, len(problem.areas)
    if isinstance(alg, ContiguousDispatchAlg):
        return problem.contiguous
    if isinstance(alg, ZigzagDispatchAlg):
        return problem.placed(zigzag(world, chunks))
    if isinstance(alg, MinHeapDispatchAlg):
        return problem.placed(min_heap(problem.areas, world))
    simple = [problem.contiguous, *(problem.placed(x) for x in (zigzag(world, chunks), min_heap(problem.areas, world)))]
    if isinstance(alg, LocalityDispatchAlg):
        return _locality(problem, simple, alg.epsilon)
    near = _locality(problem, simple, LocalityDispatchAlg().epsilon)
    return min([*simple, near], key=lambda placement: problem.predicted_seconds(placement, cost))


def _locality(problem: DispatchProblem, starts: list[Placement], epsilon: float) -> Placement:
    """Fewest rows received among the starts and what the search makes of them, within the limit of area if any is.

    Min-heap, the last of the starts, has no locality to keep: the search goes from there only if it must.
    """
    limit = (1 + epsilon) * float(problem.areas.sum()) / problem.world
    found = list(starts)
    for start in starts:
        if start is starts[-1] and any(problem.largest_area(x) <= limit for x in found[len(starts) :]):
            break
        owner = local_search(
            problem.areas, problem.needs, start.owner(), problem.world, epsilon, problem.key_owner, start.chunk_size
        )
        found.append(problem.placed(owner))
    return min(found, key=lambda x: (max(float(problem.largest_area(x)), limit), problem.total_rows(x)))


def min_heap(areas: torch.Tensor, world: int) -> torch.Tensor:
    """int64 `(chunks,)`, the rank of each chunk: largest first, each to the rank with least area that has room."""
    capacity = len(areas) // world
    owner = torch.empty(len(areas), dtype=torch.int64)
    heap = [(0, 0, rank) for rank in range(world)]  # (area, chunks, rank)
    values = areas.tolist()
    for chunk in areas.argsort(descending=True, stable=True).tolist():
        area, count, rank = heapq.heappop(heap)
        owner[chunk] = rank
        if count + 1 < capacity:
            heapq.heappush(heap, (area + values[chunk], count + 1, rank))
    return owner


def zigzag(world: int, chunks: int) -> torch.Tensor:
    """int64 `(chunks,)`: rank r holds the r-th part from the front and the r-th from the back."""
    back = chunks // world // 2
    front = chunks // world - back
    ranks = torch.arange(world)
    return torch.cat([ranks.repeat_interleave(front), ranks.flip(0).repeat_interleave(back)])
