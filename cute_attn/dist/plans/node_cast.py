"""The plan of a node cast: a row crosses once to each node that needs it, and is handed on to all ranks that do.

In every stage each rank of a node takes an equal part of what crosses to the node, whoever needs it, so that all links
to other nodes are busy alike. Then the ranks of the node exchange their own rows and those that have crossed to them.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch

from ..config import OverlapConfig
from ..cost import CostModel
from ..placing.needs import Spans, expand, meet
from ..placing.placement import Placement, merge_ranks
from ..placing.traffic import node_needs, relays
from .group_cast import CastPlan, CastStage, Crossing, Holders, cast_stage, holders_of, own_stage
from .placed import PlacedMask
from .stages import stage_cuts

__all__ = ["node_stage_cuts", "plan_placed_node_cast"]


def plan_placed_node_cast(placed: PlacedMask, rank: int, overlap: OverlapConfig, cost: CostModel) -> CastPlan:
    """The node cast of one rank, with nodes as `cost` has them."""
    query, key, remote = placed.query, placed.key, placed.remote
    rows, size = placed.rows_at(query.positions(rank)), cost.node_size(placed.world)
    if not overlap.enable:
        return CastPlan(rank, query, key, (_stage(placed, remote, rank, size, includes_local=True),))
    stages = [own_stage(rows, key, rank)]
    for low, high in pairwise(node_stage_cuts(placed, overlap, cost)):
        stages.append(_stage(placed, remote.clip(low, high), rank, size))
    return CastPlan(rank, query, key, tuple(stages))


def node_stage_cuts(placed: PlacedMask, overlap: OverlapConfig, cost: CostModel) -> torch.Tensor:
    """As `stage_cuts`; the ranks of a node have the same cuts, so that no row crosses in two stages."""
    size, key = cost.node_size(placed.world), placed.key
    needs, remote = (x.merged(size, key.padded_length) for x in (placed.needs, placed.remote))
    areas = placed.areas.view(-1, size).sum(1) // size
    links = replace(cost, bandwidth=cost.bandwidth * size)
    return stage_cuts(needs, remote, areas, merge_ranks(key, size), overlap, links).repeat_interleave(size, dim=1)


def _stage(placed: PlacedMask, remote: Spans, rank: int, size: int, includes_local: bool = False) -> CastStage:
    """The stage in which every rank receives its spans of `remote`."""
    key = placed.key
    node = rank // size
    relay = relays(node_needs(remote, key, size), key.world, size)
    owners = holders_of(key)
    crossed, received = _crossed(relay, owners, key, rank)
    across = None
    if len(relay.lo):
        mine = owners.rank == rank
        sends, slot = meet(relay, owners.lo[mine], owners.hi[mine])
        shift = owners.row[mine][slot] - owners.lo[mine][slot]
        across = Crossing(
            expand(sends.lo + shift, sends.hi + shift),
            sends.rows_by_group(key.world).tolist(),
            received,
        )
    inside = [Holders(*[x[holders.rank // size == node] for x in holders]) for holders in (owners, crossed)]
    lo, *others = (torch.cat(both) for both in zip(*inside, strict=True))
    order = lo.argsort(stable=True)
    holders = Holders(lo[order], *[x[order] for x in others])
    here = Spans(*[x[remote.group // size == node] for x in remote])
    rows = placed.rows_at(placed.query.positions(rank))
    return cast_stage(
        rows,
        here,
        holders,
        key,
        rank,
        includes_local=includes_local,
        across=across,
        communicates=remote.group.numel() > 0,
    )


def _crossed(relay: Spans, owners: Holders, key: Placement, rank: int) -> tuple[Holders, list[int]]:
    """What ranks hold once rows have crossed, behind their own: by owner, ascending. And from whom one rank has it."""
    parts, chunk = meet(relay, owners.lo, owners.hi)
    owner = owners.rank[chunk]
    order = (parts.group * key.world + owner).argsort(stable=True)
    group, lo, hi = (x[order] for x in parts)
    length = hi - lo
    before = length.cumsum(0) - length
    first = torch.searchsorted(group, group)  # of the same rank
    mine = group == rank
    received = torch.zeros(key.world, dtype=torch.int64, device="cpu").index_add_(0, owner[order][mine], length[mine])
    return Holders(lo, hi, group, key.rows_per_rank + before - before[first]), received.tolist()
