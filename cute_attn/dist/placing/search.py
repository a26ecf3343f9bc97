"""The search for locality on many ranks: first among groups of ranks in blocks of chunks, then inside each group."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .locality import local_search
from .needs import Spans

__all__ = ["MOST_RANKS", "Start", "find_owner", "in_blocks", "largest_divisor", "of_chunks"]

Start = Callable[[torch.Tensor, int], torch.Tensor]  # (areas of chunks, world) to the rank of each chunk

MOST_RANKS = 64  # searched at once
MOST_CHUNKS = 16  # a rank, likewise; more are searched in blocks first
GROUP_BLOCKS = 16  # blocks a group of ranks, about


def find_owner(
    areas: torch.Tensor,
    needs: Spans,
    start: Start,
    world: int,
    limit: float,
    key_owner: torch.Tensor | None,
    chunk_size: int,
) -> torch.Tensor:
    """int64 `(chunks,)`, the rank of each chunk: few rows needed, no rank's area over `limit` where that can be.

    areas: int64 `(chunks,)`. needs: by chunk. start: where a search begins. key_owner: int64, rank of each key chunk
    of `chunk_size` rows where keys stay (ranks outside [0, world) are elsewhere); None where they follow queries.
    """
    if world == 1:
        return torch.zeros(len(areas), dtype=torch.int64, device="cpu")
    groups = largest_divisor(world, MOST_RANKS // 2) if world > MOST_RANKS else 1
    if groups == 1:
        return _find_at_once(areas, needs, start, world, limit, key_owner, chunk_size)
    size = world // groups
    group_keys = (
        None if key_owner is None else torch.where((key_owner >= 0) & (key_owner < world), key_owner // size, -1)
    )
    # Half of the slack is for the groups, the rest for the ranks in them.
    group_limit = size * (limit + float(areas.sum()) / world) / 2
    chunks = len(areas) // groups
    block = chunks // largest_divisor(chunks, GROUP_BLOCKS)
    blocks = in_blocks(areas, needs, block)
    group = local_search(*blocks, start(blocks[0], groups), groups, group_limit, group_keys, chunk_size)
    group = group.repeat_interleave(block)
    owner = torch.empty_like(group)
    for index in range(groups):
        inside = group == index
        keys = None if key_owner is None else key_owner - index * size
        found = find_owner(areas[inside], of_chunks(needs, inside), start, size, limit, keys, chunk_size)
        owner[inside] = index * size + found
    return owner


def _find_at_once(
    areas: torch.Tensor,
    needs: Spans,
    start: Start,
    world: int,
    limit: float,
    key_owner: torch.Tensor | None,
    chunk_size: int,
) -> torch.Tensor:
    chunks = len(areas) // world
    block = chunks // largest_divisor(chunks, MOST_CHUNKS)
    if block > 1:
        blocks = in_blocks(areas, needs, block)
        owner = local_search(*blocks, start(blocks[0], world), world, limit, key_owner, chunk_size)
        owner = owner.repeat_interleave(block)
        if float(torch.zeros(world, dtype=torch.int64, device="cpu").index_add_(0, owner, areas).max()) <= limit:
            return owner
    else:
        owner = start(areas, world)
    return local_search(areas, needs, owner, world, limit, key_owner, chunk_size)


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor up to `most`; the number itself where the only one is 1."""
    best = max(n for n in range(1, min(number, most) + 1) if number % n == 0)
    return best if best > 1 else number


def in_blocks(areas: torch.Tensor, needs: Spans, block: int) -> tuple[torch.Tensor, Spans]:
    """Areas and needs of every `block` consecutive chunks together."""
    bound = int(needs.hi.max()) if len(needs.hi) else 0
    return areas.view(-1, block).sum(1), needs.merged(block, bound)


def of_chunks(needs: Spans, inside: torch.Tensor) -> Spans:
    """The needs of some chunks, numbered anew."""
    keep = inside[needs.group]
    return Spans((inside.cumsum(0) - 1)[needs.group[keep]], needs.lo[keep], needs.hi[keep])
