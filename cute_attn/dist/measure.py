"""Bandwidths and latency of a process group, measured once: what a CostModel asks for."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from .agreement import agree, refusing
from .comm import send_rows
from .groups import Groups
from .soundness import marking

__all__ = ["measure"]

CALL = "measuring a process group"
ROUNDS = 5  # of which the fastest counts, after one that does not


def measure(
    groups: Groups, check: Callable[[], tuple[int, dict[str, object]]], size: int
) -> tuple[float | None, float | None, float | None]:
    """Bytes/s across and inside of nodes, and seconds of an exchange of next to nothing; None for what does not exist.

    check: gives the ranks of a node, and what else must be equal on every rank, or raises; size: bytes that each rank
    sends. Every rank sends at the same time, to the rank of its place in the next node, or to the next rank of its
    node. The slowest rank counts.
    """
    with refusing(groups, CALL):
        node_size, equal = check()
    agree(groups, CALL, {**equal, "size": size})
    world, rank, group = groups.world, groups.rank, groups.whole
    if world == 1:
        return None, None, None
    with marking(groups, CALL):
        node, place = divmod(rank, node_size)
        across = (rank + node_size) % world, (rank - node_size) % world
        inside = node * node_size + (place + 1) % node_size, node * node_size + (place - 1) % node_size
        latency = _seconds(groups, across if node_size < world else inside, 1)
        found = []
        for peers, exists in ((across, node_size < world), (inside, node_size > 1)):
            seconds = _seconds(groups, peers, size) if exists else None
            found.append(None if seconds is None else size / max(seconds - latency, seconds / 10))
        numbers = torch.tensor([x or 0.0 for x in (*found, latency)], dtype=torch.float64, device=groups.device)
        dist.broadcast(numbers, dist.get_global_rank(group, 0), group=group)
    bandwidth, node_bandwidth, latency = numbers.tolist()
    return bandwidth or None, node_bandwidth or None, latency


def _seconds(groups: Groups, peers: tuple[int, int], size: int) -> float:
    """Of an exchange in which every rank sends so many bytes to the first of its peers: the slowest rank, at best."""
    to, source = peers
    splits = [[size * (rank == peer) for rank in range(groups.world)] for peer in (to, source)]
    rows = torch.zeros(size, dtype=torch.uint8, device=groups.device)
    times = []
    for _ in range(ROUNDS + 1):
        dist.barrier(group=groups.whole)
        began = time.perf_counter()
        send_rows(rows, splits[0], splits[1], groups.whole).wait()
        if rows.is_cuda:
            torch.cuda.synchronize(rows.device)
        times.append(time.perf_counter() - began)
    slowest = torch.tensor(times[1:], dtype=torch.float64, device=groups.device)
    dist.all_reduce(slowest, dist.ReduceOp.MAX, group=groups.whole)
    return float(slowest.min())
