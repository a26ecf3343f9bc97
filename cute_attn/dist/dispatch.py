"""From a mask to a placement: which rank holds which chunk."""

from __future__ import annotations

import heapq

import torch

from ..mask import IntervalMask
from .config import (
    ContiguousDispatchAlg,
    DispatchAlg,
    DispatchConfig,
    MinHeapDispatchAlg,
    ZigzagDispatchAlg,
)
from .cost import CostModel
from .functional import compute_pad_size
from .keys import nearest_keys
from .needs import Spans, chunk_needs, rank_needs, remote_needs
from .placement import Placement

__all__ = ["chunk_areas", "place"]


def place(
    mask: IntervalMask,
    world: int,
    chunk_size: int,
    pad_size: int | None = None,
    config: DispatchConfig | None = None,
    cost: CostModel | None = None,
    *,
    ulysses_size: int = 1,
    is_same_source: bool = True,
    is_q_permutable: bool = True,
    is_k_permutable: bool = True,
) -> tuple[Placement, Placement]:
    """The placements of queries and keys; one object twice for self-attention. The same on every rank.

    Args:
        mask: batch 1.
        world: number of ranks, >= 1.
        chunk_size: rows a chunk, >= 1.
        pad_size: rows of padding after the queries, so that `seqlen_q + pad_size` is a multiple of
            `chunk_size * world`; None means the smallest. Keys of another source get the smallest of their own.
        config: the dispatch algorithm; None means DispatchConfig().
        cost: for AutoDispatchAlg; None means CostModel().
        ulysses_size: so many consecutive ranks exchange heads for rows (RingPlan): balance and traffic count between
            such groups only, and a group's rows lie on its ranks in order.
        is_same_source: queries and keys are one sequence (self-attention) and share a placement; then both
            permutability flags must be equal. Otherwise keys have their own placement.
        is_q_permutable, is_k_permutable: rows that are not permutable are placed contiguously.

    Raises ValueError for a mask of batch > 1, lengths that differ though the source is the same, a pad_size that does
    not make equal chunks, a ulysses_size that does not divide the world, or flags that contradict each other.
    """
    config, cost = config or DispatchConfig(), cost or CostModel()
    _check(mask, world, chunk_size, ulysses_size, is_same_source, is_q_permutable, is_k_permutable)
    groups = world // ulysses_size
    q_chunks = _chunk_count("pad_size", mask.seqlen_q, world, chunk_size, pad_size) // groups
    k_chunks = q_chunks
    if not is_same_source:
        k_chunks = _chunk_count("pad_size", mask.seqlen_k, world, chunk_size, None) // groups
    query = Placement.contiguous(mask.seqlen_q, chunk_size, groups, q_chunks)
    key = query if is_same_source else Placement.contiguous(mask.seqlen_k, chunk_size, groups, k_chunks)
    if is_q_permutable and groups > 1:
        query = _solve(mask, query, key, config.alg, cost, is_same_source)
        key = query if is_same_source else key
    if not is_same_source and is_k_permutable and groups > 1:
        key = nearest_keys(mask, query, key)
    split_query = _split_ranks(query, ulysses_size)
    return split_query, split_query if is_same_source else _split_ranks(key, ulysses_size)


def chunk_areas(mask: IntervalMask, chunk_size: int, chunks: int) -> torch.Tensor:
    """int64 `(chunks,)`: attended pairs of each chunk of rows."""
    area = torch.zeros(chunks * chunk_size, dtype=torch.int64)
    area[: mask.seqlen_q] = mask.row_area()[0].cpu()
    return area.view(chunks, chunk_size).sum(1)


def _solve(
    mask: IntervalMask, query: Placement, key: Placement, alg: DispatchAlg, cost: CostModel, is_same_source: bool
) -> Placement:
    """The placement of queries that `alg` chooses; `query` and `key` are the contiguous ones."""
    world, chunks = query.world, query.chunks.numel()
    areas = chunk_areas(mask, query.chunk_size, chunks)
    if isinstance(alg, ContiguousDispatchAlg):
        return query
    if isinstance(alg, ZigzagDispatchAlg):
        return _placed(query, zigzag(world, chunks))
    if isinstance(alg, MinHeapDispatchAlg):
        return _placed(query, min_heap(areas, world))
    needs = chunk_needs(mask, query.chunk_size)
    candidates = [query, _placed(query, zigzag(world, chunks)), _placed(query, min_heap(areas, world))]

    def seconds(candidate: Placement) -> float:
        return predicted_seconds(areas, needs, candidate, candidate if is_same_source else key, cost)

    return min(candidates, key=seconds)


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


def predicted_seconds(areas: torch.Tensor, needs: Spans, query: Placement, key: Placement, cost: CostModel) -> float:
    """Forward time of the slowest rank's compute and the busiest rank's traffic, partly hidden behind it."""
    area = torch.zeros(query.world, dtype=torch.int64).index_add_(0, query.owner(), areas)
    remote = remote_needs(rank_needs(needs, query, key.length), key)
    rows = int(remote.rows_by_group(query.world).max())
    return cost.total_seconds(cost.compute_seconds(int(area.max())), cost.send_seconds(rows * cost.key_bytes))


def _placed(like: Placement, owner: torch.Tensor) -> Placement:
    chunks = owner.argsort(stable=True).reshape(like.world, -1)
    return Placement(like.length, like.chunk_size, chunks)


def _split_ranks(placement: Placement, count: int) -> Placement:
    chunks = placement.chunks.reshape(placement.world * count, -1)
    return Placement(placement.length, placement.chunk_size, chunks)


def _chunk_count(name: str, seqlen: int, world: int, chunk_size: int, pad_size: int | None) -> int:
    """Chunks of the padded sequence; at least one a rank."""
    if pad_size is None:
        pad_size = compute_pad_size(seqlen, world, chunk_size) if seqlen else world * chunk_size
    if isinstance(pad_size, bool) or not isinstance(pad_size, int):
        raise TypeError(f"{name} must be an int, got {pad_size!r}")
    if pad_size < 0 or (seqlen + pad_size) % (world * chunk_size):
        raise ValueError(
            f"{name} must be >= 0 and make {seqlen} tokens a multiple of chunk_size * world = "
            f"{chunk_size} * {world}, got {pad_size}; compute_pad_size gives "
            f"{compute_pad_size(seqlen, world, chunk_size)}"
        )
    return (seqlen + pad_size) // chunk_size


def _check(
    mask: IntervalMask,
    world: int,
    chunk_size: int,
    ulysses_size: int,
    is_same_source: bool,
    is_q_permutable: bool,
    is_k_permutable: bool,
) -> None:
    if mask.batch != 1:
        raise ValueError(f"mask must have batch 1 under context parallelism, got {mask.batch}")
    for name, value in (("world", world), ("chunk_size", chunk_size), ("ulysses_size", ulysses_size)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    if world % ulysses_size:
        raise ValueError(f"ulysses_size must divide the world of {world}, got {ulysses_size}")
    if is_same_source and mask.seqlen_q != mask.seqlen_k:
        raise ValueError(
            f"queries and keys of the same source must be equally long, got {mask.seqlen_q} and {mask.seqlen_k}"
        )
    if is_same_source and is_q_permutable != is_k_permutable:
        raise ValueError(
            "is_q_permutable and is_k_permutable must be equal when queries and keys have the same source, "
            f"got {is_q_permutable} and {is_k_permutable}"
        )
