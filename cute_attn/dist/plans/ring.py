"""The plan of a ring, of Ulysses, and of both together on a 2-D mesh: one plan, of `ring_size x ulysses_size` ranks.

Rank `r = ring_rank * ulysses_size + ulysses_rank`. The ranks of one ring position exchange heads for rows: each then
holds all rows of its ring position for `heads_q / ulysses_size` query heads. Between ring positions keys rotate.
Ulysses alone is `ring_size == 1`, the ring alone `ulysses_size == 1`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from ...mask import IntervalMask
from ..checks import check_int
from ..placing.needs import Spans, chunk_needs, expand, meet, rank_needs
from ..placing.placement import Placement
from .group_cast import check_plan_arguments, local_mask

__all__ = ["RingPlan", "RingStep", "UlyssesHeads", "plan_ring", "ring_reach", "ulysses_heads"]

MOST_HEADS = 1 << 16  # more are a mistake, and tables of them do not fit


@dataclass(frozen=True, eq=False)
class RingStep:
    """One step: attend the held block of keys while the rows that someone further along needs travel on.

    mask: `(1, layers, query rows of the ring position)` over the held block.
    key_positions: int64 `(keys,)`, ascending: global positions of the held block.
    send_index: int64, rows of the held block that go to ring position `ring_rank + 1`; they are its next block.
    receive_rows: rows that come from ring position `ring_rank - 1`; they are this rank's next block.
    Both may be 0 on their own: then that half of the exchange does not take place, on both sides.
    """

    mask: IntervalMask
    key_positions: torch.Tensor
    send_index: torch.Tensor
    receive_rows: int

    @property
    def area(self) -> int:
        return self.mask.area()

    def to(self, device: torch.device | str) -> RingStep:
        return replace(self, mask=self.mask.to(device), send_index=self.send_index.to(device))


@dataclass(frozen=True, eq=False)
class RingPlan:
    """What one rank does: `held = own; for step: start sending held[send_index], attend(held), held = received`.

    The first step's block is the ring position's own keys. Every rank has the same number of steps. Backward: K and V
    rotate as in the forward while blocks are recomputed; then gradients return the other way, last step first: from
    `ring_rank + 1` comes a gradient of `held[send_index]`, it is added (indices are unique) to this step's own
    gradient of the held block, and the sum goes on to `ring_rank - 1`; after step 0 it is the gradient of own keys.

    query_positions: int64 `(rows,)`, global positions of the ring position's query rows: ulysses rank 0's first.
    key_index: int64 `(rows,)` or None: own keys in ascending global order are `gathered[key_index]`, where gathered is
        the concatenation of the ulysses ranks' local keys, rank 0's first; `gathered` itself if None. A permutation.
    """

    rank: int
    ring_size: int
    ulysses_size: int
    query: Placement
    key: Placement
    query_positions: torch.Tensor
    key_index: torch.Tensor | None
    steps: tuple[RingStep, ...]

    @property
    def ring_rank(self) -> int:
        return self.rank // self.ulysses_size

    @property
    def ulysses_rank(self) -> int:
        return self.rank % self.ulysses_size

    @property
    def area(self) -> int:
        """Attended pairs that this rank computes, each for `heads_q / ulysses_size` heads."""
        return sum(step.area for step in self.steps)

    @property
    def rows_sent(self) -> int:
        """Key rows that leave this rank along the ring in the forward, each of the rank's share of heads."""
        return sum(len(step.send_index) for step in self.steps)

    @property
    def rows_received(self) -> int:
        return sum(step.receive_rows for step in self.steps)

    def to(self, device: torch.device | str) -> RingPlan:
        key_index = None if self.key_index is None else self.key_index.to(device)
        return replace(self, key_index=key_index, steps=tuple(step.to(device) for step in self.steps))


def plan_ring(mask: IntervalMask, query: Placement, key: Placement, rank: int, ulysses_size: int = 1) -> RingPlan:
    """The ring of one rank; `ulysses_size` divides the world and is the world itself for Ulysses alone.

    Arguments as for `plan_group_cast`. Raises ValueError where ulysses_size does not divide the world.
    """
    check_plan_arguments(mask, query, key, rank)
    world = query.world
    ulysses_size = check_int("ulysses_size", ulysses_size, 1)
    if world % ulysses_size:
        raise ValueError(f"ulysses_size must divide the world of {world}, got {ulysses_size}")
    ring_query, ring_key = (merge_ranks(x, ulysses_size) for x in (query, key))
    ring_size, here = world // ulysses_size, rank // ulysses_size
    reach = ring_reach(mask, ring_query, ring_key)
    members = range(here * ulysses_size, (here + 1) * ulysses_size)
    query_positions = torch.cat([query.positions(r) for r in members])
    gathered = torch.cat([key.positions(r) for r in members])
    rows = local_mask(mask, query_positions, key.padded_length)
    held, by_position = gathered.sort()
    key_index = None if torch.equal(held, gathered) else by_position
    steps = []
    for step in range(1 + reach.steps):
        goes_on = reach.at(held) > step
        arriving = reach.block((here - step - 1) % ring_size, step + 1, ring_key)
        index = goes_on.nonzero().squeeze(1)
        steps.append(RingStep(rows.remap(held), held, index, len(arriving)))
        held = arriving
    return RingPlan(rank, ring_size, ulysses_size, query, key, query_positions, key_index, tuple(steps))


def merge_ranks(placement: Placement, count: int) -> Placement:
    """The placement in which every `count` consecutive ranks are one."""
    chunks = placement.chunks.reshape(placement.world // count, -1).sort(dim=1).values
    return Placement(placement.length, placement.chunk_size, chunks)


class Reach(NamedTuple):
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


def ring_reach(mask: IntervalMask, query: Placement, key: Placement) -> Reach:
    """The largest distance along the ring from each key's owner to a rank that needs it."""
    needs = rank_needs(chunk_needs(mask, query.chunk_size), query, mask.seqlen_k)
    chunk_edges = torch.arange(key.chunks.numel() + 1, device="cpu") * key.chunk_size
    edges = torch.cat([chunk_edges, needs.lo, needs.hi]).unique()
    owner = key.owner()[edges[:-1] // key.chunk_size]
    distance = torch.zeros(len(edges) - 1, dtype=torch.int64, device="cpu")
    first, last = torch.searchsorted(edges, needs.lo), torch.searchsorted(edges, needs.hi)
    for rank in range(query.world):
        begin, end = torch.searchsorted(needs.group, torch.tensor([rank, rank + 1], device="cpu")).tolist()
        index = expand(first[begin:end], last[begin:end])
        distance[index] = torch.maximum(distance[index], (rank - owner[index]) % query.world)
    return Reach(edges, distance)


class UlyssesHeads(NamedTuple):
    """Which heads go where when heads are exchanged for rows.

    query: query heads a rank gets; rank u gets heads `[u * query, (u + 1) * query)`.
    key: key heads a rank gets, replicated where `heads_k` is small; `query % key == 0`, and on every rank query head h
        of its own uses key head `h // (query / key)` of its own, as everywhere.
    key_heads: `(ulysses_size, key)` ints: the global key heads each rank gets; may repeat. Forward sends
        `k[:, key_heads.flatten()]`; dK of a head sums over all its copies, in this order.
    """

    query: int
    key: int
    key_heads: torch.Tensor


def ulysses_heads(heads_q: int, heads_k: int, ulysses_size: int) -> UlyssesHeads:
    """ValueError naming both numbers and what works where heads_q is not divisible by ulysses_size."""
    heads_q, heads_k = check_int("heads_q", heads_q, 1, MOST_HEADS), check_int("heads_k", heads_k, 1)
    ulysses_size = check_int("ulysses_size", ulysses_size, 1)
    if heads_q % heads_k:
        raise ValueError(f"heads_q must be divisible by heads_k, got {heads_q} and {heads_k}")
    if heads_q % ulysses_size:
        fits = [n for n in range(1, heads_q + 1) if heads_q % n == 0]
        raise ValueError(
            f"ulysses needs heads_q divisible by its group size, got heads_q = {heads_q} and a group of "
            f"{ulysses_size}; group sizes that work: {', '.join(map(str, fits))}"
        )
    mine = heads_q // ulysses_size
    group = heads_q // heads_k
    together = math.gcd(mine, group)  # so many consecutive query heads always share one key head
    first = torch.arange(0, heads_q, together, device="cpu")
    return UlyssesHeads(mine, mine // together, (first // group).reshape(ulysses_size, -1))
