"""What each mover would cost for a mask and its placements: bytes, stages, seconds. For `auto` and for people."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...mask import IntervalMask
from ..config import OverlapConfig
from ..cost import CostModel
from ..placing.needs import Spans, chunk_needs, rank_needs, remote_needs, rows_sent
from ..placing.placement import Placement, rank_areas
from .ring import merge_ranks, ring_reach, ulysses_heads
from .stages import stage_cuts

__all__ = ["MoverPrediction", "choose_mover", "predict_movers"]


@dataclass(frozen=True, eq=False)
class MoverPrediction:
    """The forward of one mover.

    mover: "all_gather" (for comparison alone), "group_cast", "ring", "ulysses" or "ulysses_ring".
    bytes_sent, bytes_received: int64 `(world,)`, of each rank.
    steps: collectives one after another.
    seconds: of the slowest rank, with what cannot hide behind compute.
    """

    mover: str
    bytes_sent: torch.Tensor
    bytes_received: torch.Tensor
    steps: int
    seconds: float


def choose_mover(
    mask: IntervalMask,
    query: Placement,
    key: Placement,
    overlap: OverlapConfig,
    cost: CostModel,
    ulysses_size: int | None = None,
) -> str:
    """The name of the mover that is predicted to be fastest; equal predictions go to group_cast, then to the ring.

    Arguments as for `predict_movers`. The same on every rank.
    """
    predictions = predict_movers(mask, query, key, overlap, cost, ulysses_size)
    return min((p for p in predictions if p.mover != "all_gather"), key=lambda p: p.seconds).mover


def predict_movers(
    mask: IntervalMask,
    query: Placement,
    key: Placement,
    overlap: OverlapConfig,
    cost: CostModel,
    ulysses_size: int | None = None,
) -> list[MoverPrediction]:
    """The movers that the head counts of `cost` allow.

    mask: batch 1. query, key: the placements. ulysses_size: that of a 2-D mesh, which brings in "ulysses_ring".
    "ulysses" is among them if the world divides `cost.heads_q`.
    """
    world = query.world
    needs = rank_needs(chunk_needs(mask, query.chunk_size), query, mask.seqlen_k)
    remote = remote_needs(needs, key)
    areas = rank_areas(mask, query)
    compute = cost.compute_seconds(int(areas.max()))
    everything = torch.full((world,), (world - 1) * key.rows_per_rank * cost.key_bytes, device="cpu")
    seconds = compute + cost.send_seconds(int(everything[0]))
    found = [MoverPrediction("all_gather", everything, everything, min(1, world - 1), seconds)]
    found.append(_group_cast(needs, remote, areas, key, overlap, cost))
    found.append(_ring(mask, query, key, cost, 1, "ring"))
    if world > 1 and cost.heads_q % world == 0:
        found.append(_ring(mask, query, key, cost, world, "ulysses"))
    if ulysses_size is not None and 1 < ulysses_size < world and cost.heads_q % ulysses_size == 0:
        found.append(_ring(mask, query, key, cost, ulysses_size, "ulysses_ring"))
    return found


def _group_cast(
    needs: Spans, remote: Spans, areas: torch.Tensor, key: Placement, overlap: OverlapConfig, cost: CostModel
) -> MoverPrediction:
    compute = cost.compute_seconds(int(areas.max()))
    sent = rows_sent(remote, key)
    received = remote.rows_by_group(key.world)
    steps = len(stage_cuts(needs, remote, areas, key, overlap, cost)) - 1 if overlap.enable else int(received.any())
    communication = cost.send_seconds(int(torch.maximum(sent, received).max()) * cost.key_bytes, steps)
    seconds = cost.total_seconds(compute, communication) if overlap.enable else compute + communication
    return MoverPrediction("group_cast", sent * cost.key_bytes, received * cost.key_bytes, steps, seconds)


def _ring(
    mask: IntervalMask, query: Placement, key: Placement, cost: CostModel, ulysses_size: int, name: str
) -> MoverPrediction:
    """Heads for rows among `ulysses_size` ranks, which nothing hides, then keys around the ring behind compute."""
    ring_size = query.world // ulysses_size
    ring_query, ring_key = merge_ranks(query, ulysses_size), merge_ranks(key, ulysses_size)
    heads = ulysses_heads(cost.heads_q, cost.heads_k, ulysses_size)
    key_bytes = cost.key_bytes // cost.heads_k * heads.key
    query_bytes = cost.query_bytes // cost.heads_q * heads.query
    reach = ring_reach(mask, ring_query, ring_key)
    rows = torch.zeros(ring_size, reach.steps + 2, dtype=torch.int64, device="cpu")
    owner = ring_key.owner()[reach.edges[:-1] // key.chunk_size]
    rows.index_put_((owner, reach.distance), torch.diff(reach.edges), accumulate=True)
    travelling = rows.flip(1).cumsum(1).flip(1)[:, 1:]  # [owner, t]: rows that make step t + 1
    ranks, step = torch.arange(ring_size, device="cpu")[:, None], torch.arange(travelling.shape[1], device="cpu")
    sent = travelling[(ranks - step) % ring_size, step].sum(1)
    received = travelling[(ranks - step - 1) % ring_size, step].sum(1)
    exchanged = (ulysses_size - 1) * (query.rows_per_rank * query_bytes + key.rows_per_rank * key_bytes)
    ring_seconds = cost.send_seconds(int(travelling.max(0).values.sum()) * key_bytes, reach.steps)
    compute = cost.compute_seconds(int(rank_areas(mask, ring_query).max()) / ulysses_size)
    seconds = cost.total_seconds(compute, ring_seconds)
    if ulysses_size > 1:
        seconds += cost.send_seconds(exchanged, 2)
    sent, received = (exchanged + (x * key_bytes).repeat_interleave(ulysses_size) for x in (sent, received))
    return MoverPrediction(name, sent, received, reach.steps + 2 * (ulysses_size > 1), seconds)
