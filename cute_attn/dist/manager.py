"""What stands behind a key: the mask, where its rows are, and the plans made for it so far."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from weakref import WeakSet

import torch

from ..mask import IntervalMask
from ..mask.ranges import RangesLike, ranges_tensor, types_tensor
from .cast import GroupCast
from .config import DistAttnConfig
from .cost import CostModel
from .groups import Groups
from .heads import HeadExchange
from .placement import Placement
from .plan import plan_group_cast
from .predict import choose_mover
from .ring import plan_ring, ulysses_heads
from .rotate import Ring, home_indices
from .rows import RollPlan, plan_roll
from .runtime import Route

__all__ = ["CAPACITY", "DistAttnRuntimeKey", "Manager", "Registry", "content_digest", "ulysses_size_of"]

CAPACITY = 64  # plans kept for each process group besides those of keys that are still held


@dataclass(frozen=True)
class DistAttnRuntimeKey:
    """One mask on one placement over one group of ranks; equal content makes equal keys.

    Made by `magi_attn_flex_key` and its sisters, on every rank of the group alike. A key keeps its plan alive.
    """

    groups: Groups
    mask_digest: str
    total_seqlen_q: int
    total_seqlen_k: int
    pad_size: int
    chunk_size: int
    dist_attn_config: DistAttnConfig
    is_same_source: bool
    is_q_permutable: bool
    is_k_permutable: bool
    placed_by: DistAttnRuntimeKey | None = None
    manager: Manager | None = field(default=None, compare=False, repr=False)


def content_digest(q_ranges: RangesLike | IntervalMask, k_ranges: RangesLike | None, types: object) -> str:
    """A digest of a mask as it was given: of the numbers, whatever tensors or lists hold them."""
    if isinstance(q_ranges, IntervalMask):
        kind, tensors = "intervals", [q_ranges.lo, q_ranges.hi]
    else:
        assert k_ranges is not None  # checked by the caller
        q, k = ranges_tensor("q_ranges", q_ranges, "cpu"), ranges_tensor("k_ranges", k_ranges, "cpu")
        kind, tensors = "slices", [q, k, types_tensor("attn_mask_type", types, len(q), "cpu")]
    digest = hashlib.sha256(kind.encode())
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


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
    """The placements of a mask, and the routes of tensors, planned at the first call that needs them and kept."""

    def __init__(
        self, groups: Groups, mask: IntervalMask, query: Placement, key: Placement, config: DistAttnConfig
    ) -> None:
        self.groups, self.mask, self.config = groups, mask, config
        self._placements = {"q": query, "k": key}
        self._routes: dict[tuple[CostModel, torch.device], Route] = {}
        self._rolls: dict[tuple[str, int, torch.device], RollPlan] = {}

    def placement(self, side: str) -> Placement:
        return self._placements[side]

    def roll_plan(self, side: str, shift: int, device: torch.device) -> RollPlan:
        name = (side, shift, device)
        if name not in self._rolls:
            self._rolls[name] = plan_roll(self.placement(side), self.groups.rank, shift).to(device)
        return self._rolls[name]

    def route(self, cost: CostModel, device: torch.device) -> Route:
        """The way of tensors of the shape that `cost` tells.

        Raises ValueError where the mover cannot split so many heads.
        """
        if (cost, device) not in self._routes:
            mover = self._choose_mover(cost)
            make = self._group_cast if mover == "group_cast" else self._ring
            self._routes[cost, device] = make(mover, cost, device)
        return self._routes[cost, device]

    def _choose_mover(self, cost: CostModel) -> str:
        if self.config.mover != "auto":
            return self.config.mover
        ulysses = self.groups.ulysses
        ulysses_size = None if ulysses is None else ulysses.size()
        query, key = self._placements.values()
        return choose_mover(self.mask, query, key, self.config.overlap_config, cost, ulysses_size)

    def _group_cast(self, mover: str, cost: CostModel, device: torch.device) -> Route:
        query, key = self._placements.values()
        plan = plan_group_cast(self.mask, query, key, self.groups.rank, self.config.overlap_config, cost)
        return Route(GroupCast(plan.to(device), self.groups.whole), None, self.groups.whole)

    def _ring(self, mover: str, cost: CostModel, device: torch.device) -> Route:
        """The ring, Ulysses, or both: one plan serves all three."""
        groups, (query, key) = self.groups, self._placements.values()
        ulysses_size = ulysses_size_of(mover, groups)
        heads = ulysses_heads(cost.heads_q, cost.heads_k, ulysses_size)
        plan = plan_ring(self.mask, query, key, groups.rank, ulysses_size)
        home = [index.to(device) for index in home_indices(self.mask, plan)]
        plan = plan.to(device)
        if mover == "ring":
            return Route(Ring(plan, home, groups.whole), None, groups.whole)
        # Of Ulysses alone the ring has one position, which sends nothing.
        ulysses = groups.ulysses if mover == "ulysses_ring" and groups.ulysses is not None else groups.whole
        exchange = HeadExchange(heads, cost.heads_k, plan.key_index, ulysses)
        return Route(Ring(plan, home, groups.ring or groups.whole), exchange, groups.whole)


class Registry:
    """Keys by content, the most recently asked for of each process group.

    Only making a key counts as asking: every rank of a group makes the same keys in the same order, so every rank
    keeps the same ones. And a key holds its own plan, so one that is no longer kept still works, on any rank.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._keys: dict[Groups, OrderedDict[DistAttnRuntimeKey, DistAttnRuntimeKey]] = {}
        self._managers: WeakSet[Manager] = WeakSet()
        self._most_recent: DistAttnRuntimeKey | None = None

    def key(self, content: DistAttnRuntimeKey, make: Callable[[], Manager]) -> DistAttnRuntimeKey:
        """The key with this content; `make` plans it if it is not kept."""
        kept = self._keys.setdefault(content.groups, OrderedDict())
        key = kept.get(content)
        if key is None:
            manager = make()
            key = replace(content, manager=manager)
            self._managers.add(manager)
            kept[key] = key
            if len(kept) > self._capacity:
                kept.popitem(last=False)
        else:
            kept.move_to_end(key)
        self._most_recent = key
        return key

    def manager(self, key: DistAttnRuntimeKey) -> Manager:
        """Raises TypeError for what is no key, ValueError for a key that was not made here since the last `clear`."""
        if not isinstance(key, DistAttnRuntimeKey):
            raise TypeError(f"key must be a DistAttnRuntimeKey, got {type(key).__name__}")
        if key.manager is None or key.manager not in self._managers:
            raise ValueError(
                "key is unknown: it must come from magi_attn_flex_key, magi_attn_varlen_key or their sisters in this "
                f"process, after the last clear_cache, got {key}"
            )
        return key.manager

    def most_recent(self) -> DistAttnRuntimeKey:
        if self._most_recent is None:
            raise ValueError("there is no most recent key: none has been made since the start or the last clear_cache")
        return self._most_recent

    def clear(self) -> None:
        self._keys.clear()
        self._managers.clear()
        self._most_recent = None
