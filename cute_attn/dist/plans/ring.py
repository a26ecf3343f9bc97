"""The plan of a ring, of Ulysses, and of both together on a 2-D mesh: one plan, of `ring_size x ulysses_size` ranks.

Rank `r = ring_rank * ulysses_size + ulysses_rank`. The ranks of one ring position exchange heads for rows: each then
holds all rows of its ring position for `heads_q / ulysses_size` query heads. Between ring positions keys rotate.
Ulysses alone is `ring_size == 1`, the ring alone `ulysses_size == 1`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ...mask import IntervalMask
from ..checks import check_int
from ..placing.placement import Placement
from .placed import PlacedMask

__all__ = ["RingPlan", "RingStep", "plan_placed_ring", "plan_ring"]


@dataclass(frozen=True, eq=False)
class RingStep:
    """One step: attend the held block of keys while the rows that someone further along needs travel on.

    mask: `(1, layers, query rows of the ring position)` over the held block.
    key_positions: int64 `(keys,)`, ascending: global positions of the held block.
    send_index: int64, rows of the held block that go to ring position `ring_rank + 1`; they are its next block.
    receive_rows: rows that come from ring position `ring_rank - 1`; they are this rank's next block.
    Both may be 0 on their own: then that half of the exchange does not take place, on both sides.
    end_index: int64, the other rows of the held block, ascending: their journey ends here.
    home_index: int64, those of the ring position's own keys, in ascending order, whose journey ends as many ring
        positions further as this step has steps before it.
    """

    mask: IntervalMask
    key_positions: torch.Tensor
    send_index: torch.Tensor
    receive_rows: int
    end_index: torch.Tensor
    home_index: torch.Tensor

    @property
    def area(self) -> int:
        return self.mask.area()

    def to(self, device: torch.device | str) -> RingStep:
        names = ("mask", "send_index", "end_index", "home_index")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


@dataclass(frozen=True, eq=False)
class RingPlan:
    """What one rank does: `held = own; for step: start sending held[send_index], attend(held), held = received`.

    The first step's block is the ring position's own keys. Every rank has the same number of steps. Backward: K and V
    rotate as in the forward while blocks are recomputed, and the gradient of a block follows it. After a step s > 0 the
    gradient of `held[send_index]`, what earlier ranks gave to it included, goes on to `ring_rank + 1`, and that of
    `held[end_index]` home to `ring_rank - s`; from `ring_rank + s` comes that of own keys `home_index`.

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
    placed = PlacedMask(mask, query, key)
    rank, world = check_int("rank", rank, 0, query.world), query.world
    ulysses_size = check_int("ulysses_size", ulysses_size, 1)
    if world % ulysses_size:
        raise ValueError(f"ulysses_size must divide the world of {world}, got {ulysses_size}")
    return plan_placed_ring(placed, rank, ulysses_size)


def plan_placed_ring(placed: PlacedMask, rank: int, ulysses_size: int) -> RingPlan:
    """plan_ring of what has been checked."""
    query, key, ring = placed.query, placed.key, placed.ring(ulysses_size)
    here, reach = rank // ulysses_size, ring.reach
    members = range(here * ulysses_size, (here + 1) * ulysses_size)
    query_positions = torch.cat([query.positions(r) for r in members])
    gathered = torch.cat([key.positions(r) for r in members])
    rows = placed.rows_at(query_positions)
    held, by_position = gathered.sort()
    key_index = None if torch.equal(held, gathered) else by_position
    journey = reach.at(held)
    steps = []
    for step in range(1 + reach.steps):
        goes_on = reach.at(held) > step
        arriving = reach.block((here - step - 1) % ring.world, step + 1, ring.key)
        sent, ending, home = (x.nonzero().squeeze(1) for x in (goes_on, ~goes_on, journey == step))
        steps.append(RingStep(rows.remap(held), held, sent, len(arriving), ending, home))
        held = arriving
    return RingPlan(rank, ring.world, ulysses_size, query, key, query_positions, key_index, tuple(steps))
