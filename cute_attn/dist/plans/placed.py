"""A mask on its placements, and what every plan asks of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch

from ...mask import IntervalMask
from ..checks import check_kind, check_one_plane
from ..config import OverlapConfig
from ..cost import CostModel
from ..placing.needs import Spans, chunk_needs, rank_needs, remote_needs
from ..placing.placement import Placement, merge_ranks, rank_areas
from ..placing.tasks import Tasks, choose_tasks, tasks_of
from ..placing.traffic import Traffic, cast_traffic, relayed_traffic
from .reach import Travel, ring_reach

__all__ = ["PlacedMask"]


@dataclass(frozen=True, eq=False)
class PlacedMask:
    """A mask, and where its rows and keys are. What follows from them is computed at the first question, once.

    mask: one plane, `query.length` rows over `key.length` keys, on any device.
    query, key: the placements; the same object for self-attention. Equal worlds.
    """

    mask: IntervalMask
    query: Placement
    key: Placement
    _rings: dict[int, PlacedMask] = field(default_factory=dict, init=False, repr=False)
    _traffic: dict[tuple[int, bool], Traffic] = field(default_factory=dict, init=False, repr=False)
    _moved: dict[tuple[bool, CostModel], torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        mask, query, key = self.mask, self.query, self.key
        check_kind("mask", mask, IntervalMask)
        check_kind("query", query, Placement)
        check_kind("key", key, Placement)
        check_one_plane("mask", mask)
        if (mask.seqlen_q, mask.seqlen_k) != (query.length, key.length):
            raise ValueError(
                f"mask of {mask.seqlen_q} rows and {mask.seqlen_k} keys does not fit placements of "
                f"{query.length} and {key.length}"
            )
        if query.world != key.world:
            raise ValueError(f"query and key must be placed on equally many ranks, got {query.world} and {key.world}")

    @property
    def world(self) -> int:
        return self.query.world

    @cached_property
    def needs(self) -> Spans:
        """By rank, the keys that any of its rows attends."""
        return rank_needs(chunk_needs(self.mask, self.query.chunk_size), self.query, self.mask.seqlen_k)

    @cached_property
    def remote(self) -> Spans:
        """By rank, the keys that it needs and does not hold."""
        return remote_needs(self.needs, self.key)

    @cached_property
    def areas(self) -> torch.Tensor:
        """int64 `(world,)`: attended pairs of each rank's rows."""
        return rank_areas(self.mask, self.query)

    def traffic(self, node_size: int, relayed: bool = False) -> Traffic:
        """Of a group cast, or of one that crosses to each node once."""
        if (node_size, relayed) not in self._traffic:
            relayed_or_direct = (
                relayed_traffic(self.needs, self.remote, self.key, node_size)
                if relayed
                else cast_traffic(self.remote, self.key, node_size)
            )
            self._traffic[node_size, relayed] = relayed_or_direct
        return self._traffic[node_size, relayed]

    @cached_property
    def tasks(self) -> Tasks:
        """What the rows of each rank attend of the keys of each."""
        return tasks_of(self.mask, self.needs, self.query, self.key)

    def moved_tasks(self, overlap: OverlapConfig, cost: CostModel) -> torch.Tensor:
        """Of which tasks the queries move, as `choose_tasks` chooses."""
        if (overlap.enable, cost) not in self._moved:
            self._moved[overlap.enable, cost] = choose_tasks(self.tasks, cost, overlap.enable)
        return self._moved[overlap.enable, cost]

    def moved_areas(self, overlap: OverlapConfig, cost: CostModel) -> torch.Tensor:
        """int64 `(world,)`: as `areas`, with those tasks moved."""
        gone = self.tasks.areas * self.moved_tasks(overlap, cost)
        return self.areas - gone.sum(1) + gone.sum(0)

    @cached_property
    def reach(self) -> Travel:
        """How far each key travels where the ranks are a ring."""
        return ring_reach(self.needs, self.key)

    def ring(self, ulysses_size: int) -> PlacedMask:
        """The same with every `ulysses_size` consecutive ranks as one, a position of the ring."""
        if ulysses_size == 1:
            return self
        if ulysses_size not in self._rings:
            query, key = (merge_ranks(x, ulysses_size) for x in (self.query, self.key))
            self._rings[ulysses_size] = PlacedMask(self.mask, query, key)
        return self._rings[ulysses_size]

    def rows_at(self, positions: torch.Tensor) -> IntervalMask:
        """The mask of the rows at some positions over all keys; rows past the mask's end are padding, without keys."""
        mask = self.mask
        lo, hi = (torch.zeros(1, mask.layers, len(positions), dtype=torch.int32, device="cpu") for _ in range(2))
        inside = positions < mask.seqlen_q
        lo[:, :, inside] = mask.lo.cpu()[:, :, positions[inside]]
        hi[:, :, inside] = mask.hi.cpu()[:, :, positions[inside]]
        return IntervalMask._made(lo, hi, self.key.padded_length)
