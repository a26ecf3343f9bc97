"""Who computes what where queries may move too: a task is what a rank's rows attend of the keys of another rank.

A task is computed where its queries are, to which the keys then come, or where its keys are, to which the queries go
and from which partial results return. The fewer bytes, the better, and a rank with too much to attend gives some away.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...mask import IntervalMask
from ..cost import CostModel
from .needs import Spans, meet
from .placement import Placement

__all__ = ["FP32", "Tasks", "attends", "choose_tasks", "output_bytes", "tasks_of"]

FP32 = 4  # bytes, of partial results on their way


@dataclass(frozen=True, eq=False)
class Tasks:
    """What the queries of each rank are to the keys of each, int64 `(world, world)` each, `[query rank, key rank]`.

    queries: rows of the one that attend any key of the other. keys: of the other that the one needs. areas: pairs.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    areas: torch.Tensor


def output_bytes(cost: CostModel) -> int:
    """Bytes of the partial result of a row: O and its LSE, unrounded."""
    return cost.heads_q * (cost.head_dim_v + 1) * max(FP32, cost.element_size)


def tasks_of(mask: IntervalMask, needs: Spans, query: Placement, key: Placement) -> Tasks:
    """needs: by rank."""
    world, size = key.world, key.chunk_size
    owner = key.owner()
    edges = torch.arange(len(owner), device="cpu") * size
    parts, chunk = meet(needs, edges, edges + size)
    keys = torch.zeros(world * world, dtype=torch.int64, device="cpu")
    keys.index_add_(0, parts.group * world + owner[chunk], parts.hi - parts.lo)
    rank = query.owner().repeat_interleave(query.chunk_size)[: mask.seqlen_q]
    lo, hi = (x[0].cpu().long() for x in (mask.lo, mask.hi))
    queries = torch.zeros(world, world, dtype=torch.int64, device="cpu")
    for first, last, ranks, count in _alike(lo, hi, rank, size):
        queries.index_add_(0, ranks, _attends(first, last, key) * count[:, None])
    return Tasks(queries, keys.view(world, world), _areas(lo, hi, rank, key))


def attends(lo: torch.Tensor, hi: torch.Tensor, key: Placement) -> torch.Tensor:
    """bool `(rows, world)`: whether rows with intervals `(layers, rows)` attend any key of each rank."""
    first, last = _chunks(lo.long(), hi.long(), key.chunk_size)
    return _attends(first, last, key)


def _chunks(lo: torch.Tensor, hi: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first and the last chunk of each interval; of an empty one the last is before the first."""
    return torch.where(lo < hi, lo // size, 0), torch.where(lo < hi, (hi - 1) // size, -1)


def _attends(first: torch.Tensor, last: torch.Tensor, key: Placement) -> torch.Tensor:
    """Of chunks `(layers, n)`: where the next one of a rank is no further than the last."""
    chunks = key.chunks.numel()
    following = torch.full((chunks + 1, key.world), chunks, dtype=torch.int64, device="cpu")
    following[torch.arange(chunks, device="cpu"), key.owner()] = torch.arange(chunks, device="cpu")
    following = following.flip(0).cummin(0).values.flip(0)
    found = torch.zeros(first.shape[1], key.world, dtype=torch.bool, device="cpu")
    for begin, end in zip(first, last, strict=True):
        found |= following[begin] <= end[:, None]
    return found


def _alike(
    lo: torch.Tensor, hi: torch.Tensor, rank: torch.Tensor, size: int, most: int = 1 << 14
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Rows that follow one another and attend parts of the same chunks, as one: first and last chunk of each layer,
    their rank, and how many they are; at most so many at a time."""
    if not len(rank):
        return []
    first, last = _chunks(lo, hi, size)
    begins = torch.ones_like(rank, dtype=torch.bool)
    same = (first[:, 1:] == first[:, :-1]).all(0) & (last[:, 1:] == last[:, :-1]).all(0) & (rank[1:] == rank[:-1])
    begins[1:] = ~same
    at = begins.nonzero().squeeze(1)
    count = torch.diff(at, append=torch.tensor([len(rank)], device="cpu"))
    return [(first[:, x], last[:, x], rank[x], n) for x, n in zip(at.split(most), count.split(most), strict=True)]


def _areas(lo: torch.Tensor, hi: torch.Tensor, rank: torch.Tensor, key: Placement) -> torch.Tensor:
    """Pairs of each rank's rows and each rank's keys: the keys of a rank before a position are its chunks before, and
    what is left where the position's own chunk is the rank's."""
    world, size, chunks = key.world, key.chunk_size, key.chunks.numel()
    owner = torch.cat([key.owner(), torch.zeros(1, dtype=torch.int64, device="cpu")])
    before = torch.zeros(chunks + 1, world, dtype=torch.float64, device="cpu")
    before[torch.arange(1, chunks + 1, device="cpu"), owner[:-1]] = size
    before = before.cumsum(0)
    areas = torch.zeros(world * world, dtype=torch.float64, device="cpu")
    ends = torch.zeros(world * (chunks + 1), dtype=torch.float64, device="cpu")
    for positions, sign in ((hi, 1.0), (lo, -1.0)):
        for x in positions:
            chunk = x // size
            ends.index_add_(0, rank * (chunks + 1) + chunk, torch.full_like(x, sign, dtype=torch.float64))
            areas.index_add_(0, rank * world + owner[chunk], (x % size).double() * sign)
    return (areas.view(world, world) + ends.view(world, -1) @ before).long()


def choose_tasks(tasks: Tasks, cost: CostModel) -> torch.Tensor:
    """bool `(world, world)`: of which tasks the queries move, `[query rank, key rank]`; none where nothing is won.

    The rank that all wait for gives tasks away, one after another: of the area where that binds, those that cost least
    for what they bring; else those that save it most bytes. What makes the forward no faster is taken back.
    """
    state = _Choice(tasks, cost)
    best, chosen, tries = state.seconds(), state.moved.clone(), 0
    for _ in range(tasks.queries.shape[0] * TASKS_A_RANK):
        step = state.step()
        if step is None or tries == TRIES:
            break
        state.move(*step)
        seconds = state.seconds()
        tries += 1
        if seconds < best:
            best, chosen, tries = seconds, state.moved.clone(), 0
    return chosen


TASKS_A_RANK = 8  # steps at most, on average
TRIES = 16  # steps that did not help, until no more are tried


class _Choice:
    """Areas of ranks, and the seconds of what they send and receive, by tasks that have moved.

    traffic: `(across or inside, sent or received, world)`. The rows of a task are told by the way it goes.
    """

    def __init__(self, tasks: Tasks, cost: CostModel) -> None:
        world, nodes = tasks.queries.shape[0], cost.node_size(tasks.queries.shape[0])
        self.cost, self.areas = cost, tasks.areas.double()
        node = torch.arange(world, device="cpu") // nodes
        self.inside = (node[:, None] == node) & (nodes > 1)
        rate = torch.where(self.inside, cost.node_bandwidth, cost.bandwidth).double()
        self.keys = tasks.keys * cost.key_bytes / rate
        self.there = tasks.queries * (cost.heads_q * cost.head_dim * cost.element_size) / rate
        self.back = tasks.queries * output_bytes(cost) / rate
        self.moved = torch.zeros(world, world, dtype=torch.bool, device="cpu")
        self.free = (tasks.queries > 0) & ~torch.eye(world, dtype=torch.bool, device="cpu")
        self.area = self.areas.sum(1)
        apart = self.keys.masked_fill(torch.eye(world, dtype=torch.bool, device="cpu"), 0.0)
        self.traffic = torch.zeros(2, 2, world, dtype=torch.float64, device="cpu")
        for kind, where in enumerate((~self.inside, self.inside)):
            self.traffic[kind, 0], self.traffic[kind, 1] = (apart * where).sum(0), (apart * where).sum(1)

    def seconds(self) -> float:
        """Of a forward; queries and results are two more collectives."""
        sending = float(self.traffic.max()) + (1 + 2 * bool(self.moved.any())) * self.cost.latency
        return self.cost.total_seconds(self.cost.compute_seconds(float(self.area.max())), sending)

    def step(self) -> tuple[int, int] | None:
        """The next task to move."""
        compute, sending = self.cost.compute_seconds(float(self.area.max())), float(self.traffic.max())
        if compute > self.cost.overlap * sending:
            rank = int(self.area.argmax())
            useful = self.free[rank] & (self.area + self.areas[rank] < self.area[rank]) & (self.areas[rank] > 0)
            price = (self.there + self.back - self.keys)[rank] / self.areas[rank].clamp(min=1)
        else:
            kind, way, rank = (int(x) for x in torch.unravel_index(self.traffic.argmax(), self.traffic.shape))
            mine = self.inside[rank] if kind else ~self.inside[rank]
            if way:
                price, useful = (self.back - self.keys)[rank], self.free[rank] & mine
            else:
                price, useful = (self.back - self.keys)[:, rank], self.free[:, rank] & mine
            useful = useful & (price < 0)
            if not way:
                return None if not useful.any() else (int(price.masked_fill(~useful, torch.inf).argmin()), rank)
        if not useful.any():
            return None
        return rank, int(price.masked_fill(~useful, torch.inf).argmin())

    def move(self, rank: int, to: int) -> None:
        self.moved[rank, to], self.free[rank, to] = True, False
        self.area[rank] -= self.areas[rank, to]
        self.area[to] += self.areas[rank, to]
        traffic = self.traffic[int(self.inside[rank, to])]
        traffic[0, to] += self.back[rank, to] - self.keys[rank, to]
        traffic[1, rank] += self.back[rank, to] - self.keys[rank, to]
        traffic[0, rank] += self.there[rank, to]
        traffic[1, to] += self.there[rank, to]
