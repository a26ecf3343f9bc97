"""From a mask to a placement: which rank holds which chunk."""

from __future__ import annotations

from dataclasses import replace

from ...checks import check_flag
from ...mask import IntervalMask
from ..checks import END, check_int, check_kind, check_one_plane
from ..config import DispatchConfig
from ..cost import CostModel
from ..functional import compute_pad_size
from .nearest import nearest_keys
from .needs import chunk_needs
from .placement import Placement, chunk_areas, split_ranks
from .solve import DispatchProblem, solve

__all__ = ["place"]


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
        cost: for AutoDispatchAlg; None means CostModel(). Its ranks_per_node must divide a larger world.
        ulysses_size: so many consecutive ranks exchange heads for rows (RingPlan): balance and traffic count between
            such groups only, and a group's rows lie on its ranks in order.
        is_same_source: queries and keys are one sequence (self-attention) and share a placement; then both
            permutability flags must be equal. Otherwise keys have their own placement.
        is_q_permutable, is_k_permutable: rows that are not permutable are placed contiguously.

    Raises ValueError for a mask of batch > 1, lengths that differ though the source is the same, a pad_size that does
    not make equal chunks, a ulysses_size that does not divide the world, or flags that contradict each other.
    """
    config = DispatchConfig() if config is None else config
    cost = CostModel() if cost is None else cost
    world, chunk_size = check_int("world", world, 1, END), check_int("chunk_size", chunk_size, 1, END)
    ulysses_size = check_int("ulysses_size", ulysses_size, 1)
    check_kind("config", config, DispatchConfig)
    check_kind("cost", cost, CostModel)
    _check(mask, world, ulysses_size, is_same_source, is_q_permutable, is_k_permutable)
    groups = world // ulysses_size
    node_size = cost.node_size(world)
    cost = replace(cost, ranks_per_node=node_size // ulysses_size if node_size % ulysses_size == 0 else 1)
    q_chunks = _chunk_count("pad_size", mask.seqlen_q, world, chunk_size, pad_size) // groups
    k_chunks = q_chunks
    if not is_same_source:
        k_chunks = _chunk_count("pad_size", mask.seqlen_k, world, chunk_size, None) // groups
    query = Placement.contiguous(mask.seqlen_q, chunk_size, groups, q_chunks)
    key = query if is_same_source else Placement.contiguous(mask.seqlen_k, chunk_size, groups, k_chunks)

    def keys_for(placed: Placement) -> Placement:
        if is_same_source:
            return placed
        return nearest_keys(chunk_needs(mask, chunk_size), placed, key) if is_k_permutable and groups > 1 else key

    if is_q_permutable and groups > 1 and q_chunks:
        areas = chunk_areas(mask, chunk_size, query.chunks.numel())
        key_owner = None if is_same_source or is_k_permutable else key.owner()
        problem = DispatchProblem(areas, chunk_needs(mask, chunk_size), query, keys_for, is_same_source, key_owner)
        query = solve(problem, config.alg, cost)
    key = keys_for(query)
    split_query = split_ranks(query, ulysses_size)
    return split_query, split_query if is_same_source else split_ranks(key, ulysses_size)


def _chunk_count(name: str, seqlen: int, world: int, chunk_size: int, pad_size: int | None) -> int:
    """Chunks of the padded sequence; at least one a rank."""
    if pad_size is None:
        pad_size = compute_pad_size(seqlen, world, chunk_size) if seqlen else world * chunk_size
    pad_size = check_int(name, pad_size)
    if seqlen + pad_size >= END:
        raise ValueError(
            f"{name} must keep the padded length below 2^31, got {pad_size} after {seqlen} tokens, for chunk_size "
            f"{chunk_size} and world {world}"
        )
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
    ulysses_size: int,
    is_same_source: bool,
    is_q_permutable: bool,
    is_k_permutable: bool,
) -> None:
    check_kind("mask", mask, IntervalMask)
    check_one_plane("mask", mask)
    for name, value in (
        ("is_same_source", is_same_source),
        ("is_q_permutable", is_q_permutable),
        ("is_k_permutable", is_k_permutable),
    ):
        check_flag(name, value)
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
