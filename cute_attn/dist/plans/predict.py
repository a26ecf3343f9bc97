"""What each mover would cost for a mask and its placements: bytes, stages, seconds. For `auto` and for people."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..config import OverlapConfig
from ..cost import CostModel
from ..placing.tasks import output_bytes
from .heads import ulysses_heads
from .node_cast import node_stage_cuts
from .placed import PlacedMask
from .query_cast import staying_keys
from .stages import stage_cuts

__all__ = ["MoverPrediction", "choose_mover", "predict_movers"]


@dataclass(frozen=True, eq=False)
class MoverPrediction:
    """The forward of one mover.

    mover: "all_gather" (for comparison alone), "group_cast", "node_cast", "query_cast", "ring", "ulysses" or
        "ulysses_ring".
    bytes_sent, bytes_received: int64 `(world,)`, of each rank.
    steps: collectives one after another.
    seconds: of the slowest rank, with what cannot hide behind compute.
    """

    mover: str
    bytes_sent: torch.Tensor
    bytes_received: torch.Tensor
    steps: int
    seconds: float


def choose_mover(placed: PlacedMask, overlap: OverlapConfig, cost: CostModel, ulysses_size: int | None = None) -> str:
    """The name of the mover that is predicted to be fastest; equal predictions go to group_cast, then to the ring.

    Arguments as for `predict_movers`. The same on every rank.
    """
    predictions = predict_movers(placed, overlap, cost, ulysses_size)
    return min((p for p in predictions if p.mover != "all_gather"), key=lambda p: p.seconds).mover


def predict_movers(
    placed: PlacedMask, overlap: OverlapConfig, cost: CostModel, ulysses_size: int | None = None
) -> list[MoverPrediction]:
    """The movers that the head counts of `cost` allow.

    ulysses_size: that of a 2-D mesh, which brings in "ulysses_ring". "ulysses" is among them if the world divides
    `cost.heads_q`, "node_cast" if there are several nodes of several ranks, "query_cast" if queries would move.

    Raises ValueError where the nodes of `cost` do not divide the world.
    """
    world = placed.world
    node_size = cost.node_size(world)
    found = [_all_gather(placed, cost, node_size), _cast("group_cast", placed, overlap, cost)]
    if 1 < node_size < world:
        found.append(_cast("node_cast", placed, overlap, cost))
    query_cast = _query_cast(placed, overlap, cost)
    if query_cast is not None:
        found.append(query_cast)
    found.append(_ring(placed, cost, 1, "ring"))
    if world > 1 and cost.heads_q % world == 0:
        found.append(_ring(placed, cost, world, "ulysses"))
    if ulysses_size is not None and 1 < ulysses_size < world and cost.heads_q % ulysses_size == 0:
        found.append(_ring(placed, cost, ulysses_size, "ulysses_ring"))
    return found


def _all_gather(placed: PlacedMask, cost: CostModel, node_size: int) -> MoverPrediction:
    """All rows to all ranks; those of other nodes cross once, over the links of all ranks of a node."""
    world, size = placed.world, placed.key.rows_per_rank * cost.key_bytes
    everything = torch.full((world,), (world - 1) * size, device="cpu")
    send = cost.send_seconds((world - node_size) * size / node_size, 1, (world - 1) * size if node_size > 1 else 0)
    seconds = cost.compute_seconds(int(placed.areas.max())) + send
    return MoverPrediction("all_gather", everything, everything, min(1, world - 1), seconds)


def _cast(name: str, placed: PlacedMask, overlap: OverlapConfig, cost: CostModel) -> MoverPrediction:
    areas, node_size = placed.areas, cost.node_size(placed.world)
    compute = cost.compute_seconds(int(areas.max()))
    traffic = placed.traffic(node_size, relayed=name == "node_cast")
    received = traffic.received
    stages = int(received.any())
    if overlap.enable:
        if name == "node_cast":
            cuts = node_stage_cuts(placed, overlap, cost)
        else:
            cuts = stage_cuts(placed.needs, placed.remote, areas, placed.key, overlap, cost)
        stages = len(cuts) - 1
    communication = traffic.seconds(cost, stages)
    seconds = cost.total_seconds(compute, communication) if overlap.enable else compute + communication
    size = cost.key_bytes
    return MoverPrediction(name, traffic.sent * size, received * size, stages * traffic.collectives, seconds)


def _query_cast(placed: PlacedMask, overlap: OverlapConfig, cost: CostModel) -> MoverPrediction | None:
    """None where no task is worth moving."""
    moved, world = placed.moved_tasks(overlap, cost), placed.world
    if not moved.any():
        return None
    tasks, node_size, key = placed.tasks, cost.node_size(world), placed.key
    remote = staying_keys(placed.remote, key, moved)
    stages = int(remote.rows > 0)
    if overlap.enable:
        stages = len(stage_cuts(placed.needs, remote, placed.areas, key, overlap, cost)) - 1
    node = torch.arange(world, device="cpu") // node_size
    inside = (node[:, None] == node) & (node_size > 1)
    there = tasks.queries * moved * (cost.heads_q * cost.head_dim * cost.element_size)
    back = tasks.queries * moved * output_bytes(cost) + tasks.keys * ~moved * cost.key_bytes
    apart = ~torch.eye(world, dtype=torch.bool, device="cpu")
    sent, received, busiest = [], [], []
    for where in (~inside & apart, inside & apart):
        sent.append((there * where).sum(1) + (back * where).sum(0))
        received.append((there * where).sum(0) + (back * where).sum(1))
        busiest.append(int(torch.maximum(sent[-1], received[-1]).max()))
    compute = cost.compute_seconds(int(placed.moved_areas(overlap, cost).max()))
    communication = cost.send_seconds(busiest[0], stages + 2, busiest[1])
    seconds = cost.total_seconds(compute, communication) if overlap.enable else compute + communication
    return MoverPrediction("query_cast", sent[0] + sent[1], received[0] + received[1], stages + 2, seconds)


def _ring(placed: PlacedMask, cost: CostModel, ulysses_size: int, name: str) -> MoverPrediction:
    """Heads for rows among `ulysses_size` ranks, which nothing hides, then keys around the ring behind compute."""
    ring = placed.ring(ulysses_size)
    ring_size, reach = ring.world, ring.reach
    heads = ulysses_heads(cost.heads_q, cost.heads_k, ulysses_size)
    key_bytes = cost.key_bytes // cost.heads_k * heads.key
    query_bytes = cost.query_bytes // cost.heads_q * heads.query
    rows = torch.zeros(ring_size, reach.steps + 2, dtype=torch.int64, device="cpu")
    owner = ring.key.owner()[reach.edges[:-1] // ring.key.chunk_size]
    rows.index_put_((owner, reach.distance), torch.diff(reach.edges), accumulate=True)
    travelling = rows.flip(1).cumsum(1).flip(1)[:, 1:]  # [owner, t]: rows that make step t + 1
    ranks, step = torch.arange(ring_size, device="cpu")[:, None], torch.arange(travelling.shape[1], device="cpu")
    sent = travelling[(ranks - step) % ring_size, step].sum(1)
    received = travelling[(ranks - step - 1) % ring_size, step].sum(1)
    exchanged = (ulysses_size - 1) * (placed.query.rows_per_rank * query_bytes + placed.key.rows_per_rank * key_bytes)
    node_size = cost.node_size(placed.world)
    positions = node_size // ulysses_size if node_size % ulysses_size == 0 else 1  # of the ring in a node
    crosses = (ranks + step) % ring_size % positions == positions - 1 if positions < ring_size else ranks + step < 0
    across, inside = ((travelling * where).max(0).values * key_bytes for where in (crosses, ~crosses))
    ring_seconds = sum(
        cost.send_seconds(a, 0, b) for a, b in zip(across.tolist(), inside.tolist(), strict=True)
    ) + cost.send_seconds(0, reach.steps)
    compute = cost.compute_seconds(int(ring.areas.max()) / ulysses_size)
    seconds = cost.total_seconds(compute, ring_seconds)
    if ulysses_size > 1:
        peers, away = ulysses_size - 1, ulysses_size - math.gcd(ulysses_size, node_size)  # those in other nodes
        seconds += cost.send_seconds(exchanged * away / peers, 2, exchanged * (peers - away) / peers)
    sent, received = (exchanged + (x * key_bytes).repeat_interleave(ulysses_size) for x in (sent, received))
    return MoverPrediction(name, sent, received, reach.steps + 2 * (ulysses_size > 1), seconds)
