"""What stands behind a key: the mask, where its rows are, and the plans made for it so far."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch

from ..mask import IntervalMask
from .config import DistAttnConfig
from .cost import CostModel
from .groups import Groups
from .guard import Guard
from .movers.blocks import Mover
from .movers.group_cast import GroupCast
from .movers.heads import HeadExchange
from .movers.query_cast import QueryCast
from .movers.ring import Ring
from .placing.placement import Placement
from .plans.group_cast import plan_placed_group_cast
from .plans.heads import ulysses_heads
from .plans.node_cast import plan_placed_node_cast
from .plans.placed import PlacedMask
from .plans.predict import choose_mover
from .plans.query_cast import plan_placed_query_cast
from .plans.ring import plan_placed_ring
from .rows import RollPlan, plan_roll
from .runtime import Route

__all__ = ["Manager", "ulysses_size_of"]


def ulysses_size_of(mover: str, groups: Groups) -> int:
    """How many consecutive ranks exchange heads for rows under a mover.

    Raises ValueError for ulysses_ring without a 2-D mesh.
    """
    if mover == "ulysses":
        return groups.world
    if mover != "ulysses_ring":
        return 1
    if groups.ulysses is None:
        raise ValueError(
            "mover 'ulysses_ring' needs a 2-D DeviceMesh (ring, ulysses) as cp_group_or_mesh, got a single group of "
            f"{groups.world} ranks; movers group_cast, ring and ulysses work on it"
        )
    return groups.ulysses.size()


class Manager:
    """A mask on its placements, and the routes of tensors, planned at the first call that needs them and kept.

    digest: that of the key that this stands behind. number: an int64 without dimensions on the host, of this manager
    alone in this process: what graphs know it by.
    """

    _numbers = itertools.count(1)

    def __init__(
        self, groups: Groups, mask: IntervalMask, query: Placement, key: Placement, config: DistAttnConfig, digest: str
    ) -> None:
        self.groups, self.config = groups, config
        self.placed = PlacedMask(mask, query, key)
        self.guard = Guard(groups, digest, config.check_ranks)
        self.number = torch.tensor(next(Manager._numbers), device="cpu")
        self._routes: dict[tuple[CostModel, torch.device], Route] = {}
        self._rolls: dict[tuple[str, int, torch.device], RollPlan] = {}

    def placement(self, side: str) -> Placement:
        return self.placed.query if side == "q" else self.placed.key

    def roll_plan(self, side: str, shift: int, device: torch.device) -> RollPlan:
        name = (side, shift, device)
        if name not in self._rolls:
            self._rolls[name] = plan_roll(self.placement(side), self.groups.rank, shift).to(device)
        return self._rolls[name]

    def route(self, cost: CostModel, device: torch.device) -> Route:
        """The way of tensors of the shape that `cost` tells; of the machine the config tells.

        Raises ValueError where the mover cannot split so many heads.
        """
        if (cost, device) not in self._routes:
            shape = ("heads_q", "heads_k", "head_dim", "head_dim_v", "element_size")
            here = replace(self.config.cost, **{name: getattr(cost, name) for name in shape})
            mover = self._choose_mover(here)
            make = {"query_cast": self._query_cast, "group_cast": self._cast, "node_cast": self._cast}
            self._routes[cost, device] = make.get(mover, self._ring)(mover, here, device)
        return self._routes[cost, device]

    def _choose_mover(self, cost: CostModel) -> str:
        if self.config.mover != "auto":
            return self.config.mover
        ulysses = self.groups.ulysses
        ulysses_size = None if ulysses is None else ulysses.size()
        return choose_mover(self.placed, self.config.overlap_config, cost, ulysses_size)

    def _cast(self, mover: str, cost: CostModel, device: torch.device) -> Route:
        make = plan_placed_node_cast if mover == "node_cast" else plan_placed_group_cast
        plan = make(self.placed, self.groups.rank, self.config.overlap_config, cost)
        return self._route(GroupCast(plan.to(device), self.groups.whole), None)

    def _query_cast(self, mover: str, cost: CostModel, device: torch.device) -> Route:
        plan = plan_placed_query_cast(self.placed, self.groups.rank, self.config.overlap_config, cost).to(device)
        visits, whole = plan.visits, self.groups.whole
        route = self._route(GroupCast(plan.cast, whole), None)
        return route if visits is None else replace(route, queries=QueryCast(visits, whole))

    def _ring(self, mover: str, cost: CostModel, device: torch.device) -> Route:
        """The ring, Ulysses, or both: one plan serves all three."""
        groups = self.groups
        ulysses_size = ulysses_size_of(mover, groups)
        heads = ulysses_heads(cost.heads_q, cost.heads_k, ulysses_size)
        plan = plan_placed_ring(self.placed, groups.rank, ulysses_size).to(device)
        if mover == "ring":
            return self._route(Ring(plan, groups.whole), None)
        # Of Ulysses alone the ring has one position, which sends nothing.
        ulysses = groups.ulysses if mover == "ulysses_ring" and groups.ulysses is not None else groups.whole
        exchange = HeadExchange(heads, cost.heads_k, plan.key_index, ulysses)
        return self._route(Ring(plan, groups.ring or groups.whole), exchange)

    def _route(self, mover: Mover, exchange: HeadExchange | None) -> Route:
        placements, rank = (self.placed.query, self.placed.key), self.groups.rank
        rows, keys = (int((x.positions(rank) < x.length).sum()) for x in placements)
        return Route(mover, exchange, self.groups.whole, self.guard, rows, keys)
