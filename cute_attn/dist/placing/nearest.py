"""Where keys of another source go: to the ranks whose queries need them."""

from __future__ import annotations

import torch

from .needs import Spans, meet, rank_needs
from .placement import Placement

__all__ = ["nearest_keys"]


def nearest_keys(needs: Spans, query: Placement, key: Placement) -> Placement:
    """Equal numbers of key chunks a rank, each where more of its rows are needed than elsewhere, as far as room allows.

    needs: by chunk of queries. Greedy over (chunk, rank) pairs by falling number of rows needed; ties go to the lower
    chunk, then the lower rank.
    """
    world, chunks, size = key.world, key.chunks.numel(), key.chunk_size
    edges = torch.arange(chunks, device="cpu") * size
    parts, chunk = meet(rank_needs(needs, query, key.length), edges, edges + size)
    pair = chunk * world + parts.group
    pairs, index = pair.unique(return_inverse=True)
    rows = torch.zeros(len(pairs), dtype=torch.int64, device="cpu").index_add_(0, index, parts.hi - parts.lo)
    owner = [-1] * chunks
    room = [key.chunks.shape[1]] * world
    for best in pairs[rows.argsort(descending=True, stable=True)].tolist():
        where, rank = divmod(best, world)
        if owner[where] < 0 and room[rank] > 0:
            owner[where] = rank
            room[rank] -= 1
    free = iter([rank for rank in range(world) for _ in range(room[rank])])
    owner = [rank if rank >= 0 else next(free) for rank in owner]
    return Placement(key.length, size, torch.tensor(owner, device="cpu").argsort(stable=True).reshape(world, -1))
