"""How far keys travel along a ring: to the last rank that needs them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..placing.needs import Spans, expand, meet
from ..placing.placement import Placement

__all__ = ["Travel", "ring_reach"]


class Travel(NamedTuple):
    """How many steps each key travels: positions `[edges[i], edges[i + 1])` travel `distance[i]` steps, int64."""

    edges: torch.Tensor
    distance: torch.Tensor

    @property
    def steps(self) -> int:
        return int(self.distance.max()) if self.distance.numel() else 0

    def at(self, positions: torch.Tensor) -> torch.Tensor:
        return self.distance[torch.searchsorted(self.edges, positions, right=True) - 1]

    def block(self, owner: int, step: int, key: Placement) -> torch.Tensor:
        """Positions of an owner's keys that travel at least `step` steps, ascending."""
        far = (self.distance >= step).nonzero().squeeze(1)
        spans = Spans(torch.zeros_like(far), self.edges[far], self.edges[far + 1])
        inside, _ = meet(spans, key.chunks[owner] * key.chunk_size, (key.chunks[owner] + 1) * key.chunk_size)
        return expand(inside.lo, inside.hi)


def ring_reach(needs: Spans, key: Placement) -> Travel:
    """The largest distance along the ring from each key's owner to a rank that needs it; `needs` is grouped by rank."""
    chunk_edges = torch.arange(key.chunks.numel() + 1, device="cpu") * key.chunk_size
    edges = torch.cat([chunk_edges, needs.lo, needs.hi]).unique()
    owner = key.owner()[edges[:-1] // key.chunk_size]
    distance = torch.zeros(len(edges) - 1, dtype=torch.int64, device="cpu")
    begins, ends = torch.searchsorted(edges, needs.lo), torch.searchsorted(edges, needs.hi)
    for rank in range(key.world):
        begin, end = torch.searchsorted(needs.group, torch.tensor([rank, rank + 1], device="cpu")).tolist()
        index = expand(begins[begin:end], ends[begin:end])
        distance[index] = torch.maximum(distance[index], (rank - owner[index]) % key.world)
    return Travel(edges, distance)
