"""The plan of a query cast: of some pairs of ranks the queries go to the keys, of all others the keys come.

Pure and deterministic, as the plan of a group cast.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from ...mask import IntervalMask
from ..config import OverlapConfig
from ..cost import CostModel
from ..placing.needs import Spans, meet
from ..placing.placement import Placement
from ..placing.tasks import attends
from .group_cast import CastPlan, cast_stage, holders_of, own_stage
from .placed import PlacedMask
from .stages import stage_cuts

__all__ = ["QueryPlan", "Visits", "plan_placed_query_cast", "staying_keys"]


@dataclass(frozen=True, eq=False)
class Visits:
    """Queries that go to the keys of other ranks, and those that come to this rank's.

    send_index: int64 `(sum(send_splits),)`, this rank's rows in the order in which they are sent: peer 0's first,
        ascending for each peer, so that a row appears at most once a peer. Results return in this order.
    send_splits, receive_splits: `world` ints each, rows to and from every peer.
    mask: `(1, layers, rows that come)` over this rank's own keys; None where nothing comes.
    """

    send_index: torch.Tensor
    send_splits: list[int]
    receive_splits: list[int]
    mask: IntervalMask | None

    @property
    def area(self) -> int:
        return 0 if self.mask is None else self.mask.area()

    def to(self, device: torch.device | str) -> Visits:
        mask = None if self.mask is None else self.mask.to(device)
        return replace(self, send_index=self.send_index.to(device), mask=mask)


@dataclass(frozen=True, eq=False)
class QueryPlan:
    """What one rank does: the keys that come to its rows, and visits, None where no rank's queries move."""

    cast: CastPlan
    visits: Visits | None

    @property
    def area(self) -> int:
        """Attended pairs that this rank computes."""
        return self.cast.area + (0 if self.visits is None else self.visits.area)

    def to(self, device: torch.device | str) -> QueryPlan:
        return QueryPlan(self.cast.to(device), None if self.visits is None else self.visits.to(device))


def plan_placed_query_cast(placed: PlacedMask, rank: int, overlap: OverlapConfig, cost: CostModel) -> QueryPlan:
    """The query cast of one rank; which tasks move follows from the cost."""
    moved = placed.moved_tasks(overlap, cost)
    query, key = placed.query, placed.key
    remote = staying_keys(placed.remote, key, moved)
    rows, holders = placed.rows_at(query.positions(rank)), holders_of(key)
    if overlap.enable:
        cuts = stage_cuts(placed.needs, remote, placed.areas, key, overlap, cost)
        parts = [remote.clip(low, high) for low, high in pairwise(cuts)]
        stages = [own_stage(rows, key, rank), *(cast_stage(rows, x, holders, key, rank) for x in parts)]
    else:
        stages = [cast_stage(rows, remote, holders, key, rank, includes_local=True)]
    visits = _visits(placed, rows, rank, moved) if bool(moved.any()) else None
    return QueryPlan(CastPlan(rank, query, key, tuple(stages)), visits)


def staying_keys(remote: Spans, key: Placement, moved: torch.Tensor) -> Spans:
    """By rank, the remote keys whose queries do not go to them."""
    edges = torch.arange(key.chunks.numel(), device="cpu") * key.chunk_size
    parts, chunk = meet(remote, edges, edges + key.chunk_size)
    stays = ~moved[parts.group, key.owner()[chunk]]
    return Spans(*[x[stays] for x in parts])


def _visits(placed: PlacedMask, rows: IntervalMask, rank: int, moved: torch.Tensor) -> Visits:
    """rows: the mask of the rank's own rows."""
    query, key = placed.query, placed.key
    goes = attends(rows.lo[0], rows.hi[0], key) & moved[rank]
    sent, came, received = goes.sum(0), [], [0] * key.world
    for peer in moved[:, rank].nonzero().squeeze(1).tolist():
        positions = query.positions(peer)
        others = placed.rows_at(positions)
        came.append(positions[attends(others.lo[0], others.hi[0], key)[:, rank]])
        received[peer] = len(came[-1])
    mask = None
    if any(received):
        mask = placed.rows_at(torch.cat(came)).remap(key.positions(rank))
    return Visits(goes.T.nonzero()[:, 1], sent.tolist(), received, mask)
