"""The plan of a group cast: every key row that a rank needs comes once from its owner, in stages.

Pure and deterministic: from a mask and two placements every rank computes the same tables, without communication and
without a device. All tensors are on the CPU; `CastPlan.to` moves what attention and indexing read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from ..mask import IntervalMask
from .checks import check_int, check_kind, check_one_plane
from .config import OverlapConfig
from .cost import CostModel
from .needs import Spans, chunk_needs, expand, meet, rank_needs, remote_needs
from .placement import Placement, rank_areas
from .stages import stage_cuts

__all__ = ["CastPlan", "CastStage", "local_mask", "plan_group_cast"]


@dataclass(frozen=True, eq=False)
class CastStage:
    """One stage: one `all_to_all_single` of K and V rows, then one attention of all local query rows.

    send_index: int64 `(sum(send_splits),)`, rows of this rank's local keys in the order they are sent: peer 0's first,
        ascending for each peer (so a row appears at most once a peer).
    send_splits, receive_splits: `world` ints each, rows to and from every peer; 0 for the rank itself. If a stage
        `communicates`, it does so on every rank, also where all of one rank's splits are 0.
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

    @property
    def area(self) -> int:
        """Attended pairs of this stage; 0 means that attention may be skipped."""
        return self.mask.area()

    def to(self, device: torch.device | str) -> CastStage:
        """Index tensors and mask on a device; key_positions stays."""
        key_index = None if self.key_index is None else self.key_index.to(device)
        return replace(self, send_index=self.send_index.to(device), key_index=key_index, mask=self.mask.to(device))


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
        return sum(sum(stage.send_splits) for stage in self.stages)

    @property
    def rows_received(self) -> int:
        return sum(sum(stage.receive_splits) for stage in self.stages)

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
    check_plan_arguments(mask, query, key, rank)
    needs = rank_needs(chunk_needs(mask, query.chunk_size), query, mask.seqlen_k)
    remote = remote_needs(needs, key)
    rows = local_mask(mask, query.positions(rank), key.padded_length)
    if not overlap.enable:
        return CastPlan(rank, query, key, (_stage(rows, remote, key, rank, includes_local=True),))
    stages = [_stage(rows, Spans(*[x[:0] for x in remote]), key, rank, includes_local=True)]
    cuts = stage_cuts(needs, remote, rank_areas(mask, query), key, overlap, cost)
    for low, high in pairwise(cuts):
        stages.append(_stage(rows, remote.clip(low, high), key, rank, includes_local=False))
    return CastPlan(rank, query, key, tuple(stages))


def _stage(rows: IntervalMask, remote: Spans, key: Placement, rank: int, includes_local: bool) -> CastStage:
    """The stage in which every rank receives its spans of `remote`."""
    world, size = key.world, key.chunk_size
    mine = key.chunks[rank] * size
    sends, slot = meet(remote, mine, mine + size)
    shift = slot * size - mine[slot]  # from global position to local row
    send_index = expand(sends.lo + shift, sends.hi + shift)
    edges = torch.arange(key.chunks.numel(), device="cpu") * size
    wanted, chunk = meet(remote.of(rank), edges, edges + size)
    owner = key.owner()[chunk]
    by_owner = owner.argsort(stable=True)
    positions = expand(wanted.lo[by_owner], wanted.hi[by_owner])
    received = torch.zeros(world, dtype=torch.int64, device="cpu").index_add_(0, owner, wanted.hi - wanted.lo)
    if includes_local:
        positions = torch.cat([key.positions(rank), positions])
    key_index = None
    if not bool((positions[1:] > positions[:-1]).all()):
        positions, key_index = positions.sort()
    return CastStage(
        send_index=send_index,
        send_splits=sends.rows_by_group(world).tolist(),
        receive_splits=received.tolist(),
        includes_local=includes_local,
        key_index=key_index,
        key_positions=positions,
        mask=rows.remap(positions),
        communicates=remote.group.numel() > 0,
    )


def local_mask(mask: IntervalMask, positions: torch.Tensor, keys: int) -> IntervalMask:
    """The mask of the rows at some positions over `keys` keys; rows past the mask's end are padding, without keys."""
    lo, hi = (torch.zeros(1, mask.layers, len(positions), dtype=torch.int32, device="cpu") for _ in range(2))
    inside = positions < mask.seqlen_q
    lo[:, :, inside] = mask.lo.cpu()[:, :, positions[inside]]
    hi[:, :, inside] = mask.hi.cpu()[:, :, positions[inside]]
    return IntervalMask._made(lo, hi, keys)


def check_plan_arguments(mask: IntervalMask, query: Placement, key: Placement, rank: int) -> None:
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
    check_int("rank", rank, 0, query.world)
