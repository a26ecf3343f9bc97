"""The plan of a group cast: every key row that a rank needs comes once, in stages.

From its owner, or, in a node cast, from a rank of its node to which it has crossed once for all of them.

Pure and deterministic: from a mask and two placements every rank computes the same tables, without communication and
without a device. All tensors are on the CPU; `CastPlan.to` moves what attention and indexing read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch

from ...mask import IntervalMask
from ..checks import check_int, check_kind
from ..config import OverlapConfig
from ..cost import CostModel
from ..placing.needs import Spans, expand, meet
from ..placing.placement import Placement
from .placed import PlacedMask
from .stages import stage_cuts

__all__ = [
    "CastPlan",
    "CastStage",
    "Crossing",
    "Holders",
    "cast_stage",
    "holders_of",
    "own_stage",
    "plan_group_cast",
    "plan_placed_group_cast",
]


class Crossing(NamedTuple):
    """The first step of a stage of a node cast: rows go to the ranks of other nodes that hand them on there.

    send_index, send_splits, receive_splits: as in CastStage; every rank takes part, also where its splits are 0.
    """

    send_index: torch.Tensor
    send_splits: list[int]
    receive_splits: list[int]


@dataclass(frozen=True, eq=False)
class CastStage:
    """One stage: one `all_to_all_single` of K and V rows, then one attention of all local query rows.

    across: None, or what crosses from node to node before: rows that have come so follow the rank's own.
    send_index: int64 `(sum(send_splits),)`, rows of this rank's local keys, or of `cat([local, crossed])`, in the order
        they are sent: peer 0's first, ascending in position for each peer (so a row appears at most once a peer).
    send_splits, receive_splits: `world` ints each, rows to and from every peer; for the rank itself those that crossed
        to it and that it needs. If a stage `communicates`, it does so on every rank, also where all of one rank's
        splits are 0.
    includes_local: whether this stage also attends the rank's own keys.
    key_index: int64 `(keys,)` or None. The stage's keys in ascending global order are `buffer[key_index]` (`buffer`
        itself if None), where buffer is `received`, or `local` where nothing is received, or `cat([local, received])`
        where both are. It is a permutation of the buffer, so gradients return by `empty[key_index] = gradient`.
    key_positions: int64 `(keys,)`, ascending: global position of each of the stage's keys.
    mask: `(1, layers, local query rows)` over the stage's keys.
    communicates: whether any rank sends anything in this stage; the same on every rank.
    """

    send_index: torch.Tensor
    send_splits: list[int]
    receive_splits: list[int]
    includes_local: bool
    key_index: torch.Tensor | None
    key_positions: torch.Tensor
    mask: IntervalMask
    communicates: bool
    across: Crossing | None = None

    @property
    def area(self) -> int:
        """Attended pairs of this stage; 0 means that attention may be skipped."""
        return self.mask.area()

    def to(self, device: torch.device | str) -> CastStage:
        """Index tensors and mask on a device; key_positions stays."""
        key_index = None if self.key_index is None else self.key_index.to(device)
        across = self.across and self.across._replace(send_index=self.across.send_index.to(device))
        send_index, mask = self.send_index.to(device), self.mask.to(device)
        return replace(self, send_index=send_index, key_index=key_index, mask=mask, across=across)


@dataclass(frozen=True, eq=False)
class CastPlan:
    """What one rank does in a group cast: the stages, in order; their partial results merge by LSE.

    With overlap the first stage attends the rank's own keys and communicates nothing, and stage s + 1 may travel while
    stage s is computed. Without overlap there is one stage. Every rank has the same number of stages. In the backward
    each stage's dK and dV (fp32, zero rows where nothing flows) go back with the two splits swapped: the rows that a
    peer returns are added to `local[send_index]`, peer after peer in rank order, which is a fixed order.

    query, key: the placements; local queries are `query.positions(rank)`, local keys `key.positions(rank)`.
    """

    rank: int
    query: Placement
    key: Placement
    stages: tuple[CastStage, ...]

    @property
    def world(self) -> int:
        return self.query.world

    @property
    def area(self) -> int:
        """Attended pairs that this rank computes."""
        return sum(stage.area for stage in self.stages)

    @property
    def rows_sent(self) -> int:
        """Key rows that leave this rank in the forward; `CostModel.key_bytes` makes them bytes."""
        return self._rows("send_splits")

    @property
    def rows_received(self) -> int:
        return self._rows("receive_splits")

    def _rows(self, splits: str) -> int:
        exchanges = [x for stage in self.stages for x in (stage, stage.across) if x is not None]
        return sum(sum(getattr(x, splits)) - getattr(x, splits)[self.rank] for x in exchanges)

    def to(self, device: torch.device | str) -> CastPlan:
        return replace(self, stages=tuple(stage.to(device) for stage in self.stages))


def plan_group_cast(
    mask: IntervalMask,
    query: Placement,
    key: Placement,
    rank: int,
    overlap: OverlapConfig | None = None,
    cost: CostModel | None = None,
) -> CastPlan:
    """The group cast of one rank.

    Args:
        mask: batch 1, `query.length` rows over `key.length` keys, on any device.
        query, key: where rows and keys are; the same object for self-attention. Equal worlds.
        rank: whose plan.
        overlap: the stages; None means the default OverlapConfig().
        cost: for OverlapAlgType.GREEDY and AttnOverlapMode.DYNAMIC; None means the default CostModel().
    """
    overlap = OverlapConfig() if overlap is None else overlap
    cost = CostModel() if cost is None else cost
    check_kind("overlap", overlap, OverlapConfig)
    check_kind("cost", cost, CostModel)
    placed = PlacedMask(mask, query, key)
    return plan_placed_group_cast(placed, check_int("rank", rank, 0, query.world), overlap, cost)


def plan_placed_group_cast(placed: PlacedMask, rank: int, overlap: OverlapConfig, cost: CostModel) -> CastPlan:
    """plan_group_cast of what has been checked."""
    query, key, remote = placed.query, placed.key, placed.remote
    rows, holders = placed.rows_at(query.positions(rank)), holders_of(key)
    if not overlap.enable:
        return CastPlan(rank, query, key, (cast_stage(rows, remote, holders, key, rank, includes_local=True),))
    stages = [own_stage(rows, key, rank)]
    cuts = stage_cuts(placed.needs, remote, placed.areas, key, overlap, cost)
    for low, high in pairwise(cuts):
        stages.append(cast_stage(rows, remote.clip(low, high), holders, key, rank))
    return CastPlan(rank, query, key, tuple(stages))


class Holders(NamedTuple):
    """Who sends which rows: ascending disjoint positions `[lo, hi)` from rows `row` of a rank on; int64 `(n,)` each."""

    lo: torch.Tensor
    hi: torch.Tensor
    rank: torch.Tensor
    row: torch.Tensor


def holders_of(key: Placement) -> Holders:
    """The owners of keys."""
    lo = torch.arange(key.chunks.numel(), device="cpu") * key.chunk_size
    row = torch.empty_like(lo)
    row[key.chunks.reshape(-1)] = (torch.arange(key.chunks.shape[1], device="cpu") * key.chunk_size).repeat(key.world)
    return Holders(lo, lo + key.chunk_size, key.owner(), row)


def own_stage(rows: IntervalMask, key: Placement, rank: int) -> CastStage:
    """The stage of a rank's own keys alone."""
    nothing = Spans(*[torch.zeros(0, dtype=torch.int64, device="cpu")] * 3)
    return cast_stage(rows, nothing, holders_of(key), key, rank, includes_local=True)


def cast_stage(
    rows: IntervalMask,
    remote: Spans,
    holders: Holders,
    key: Placement,
    rank: int,
    *,
    includes_local: bool = False,
    across: Crossing | None = None,
    communicates: bool | None = None,
) -> CastStage:
    """The stage in which ranks receive their spans of `remote` from holders. communicates: None if `remote` is that of
    all ranks, and tells."""
    mine = Holders(*[x[holders.rank == rank] for x in holders])
    sends, slot = meet(remote, mine.lo, mine.hi)
    shift = mine.row[slot] - mine.lo[slot]  # from global position to the row that is sent
    send_index = expand(sends.lo + shift, sends.hi + shift)
    wanted, holder = meet(remote.of(rank), holders.lo, holders.hi)
    owner = holders.rank[holder]
    by_owner = owner.argsort(stable=True)
    positions = expand(wanted.lo[by_owner], wanted.hi[by_owner])
    received = torch.zeros(key.world, dtype=torch.int64, device="cpu").index_add_(0, owner, wanted.hi - wanted.lo)
    if includes_local:
        positions = torch.cat([key.positions(rank), positions])
    key_index = None
    if not bool((positions[1:] > positions[:-1]).all()):
        positions, key_index = positions.sort()
    return CastStage(
        send_index=send_index,
        send_splits=sends.rows_by_group(key.world).tolist(),
        receive_splits=received.tolist(),
        includes_local=includes_local,
        key_index=key_index,
        key_positions=positions,
        mask=rows.remap(positions),
        communicates=remote.group.numel() > 0 if communicates is None else communicates,
        across=across,
    )
