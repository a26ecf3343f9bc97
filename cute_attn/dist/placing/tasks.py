"""Who computes what where queries may move too: a task is what a rank's rows attend of the keys of another rank.

A task is computed where its queries are, to which the keys then come, or where its keys are, to which the queries go
and from which partial results return. The fewer bytes, the better, and a rank with too much to attend gives some away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ...mask import IntervalMask
from ..cost import CostModel
from .needs import Spans, meet
from .placement import Placement

__all__ = ["FP32", "Tasks", "attends", "choose_tasks", "output_bytes", "tasks_of"]

FP32 = 4  # bytes, of partial results on their way
AT_ONCE = 1 << 14  # groups of rows
TASKS_A_RANK = 8  # steps at most, on average
TRIES = 16  # steps that did not help, until no more are tried


@dataclass(frozen=True, eq=False)
class Tasks:
    """What the queries of each rank are to the keys of each, int64 `(world, world)`, `[query rank, key rank]`.

    queries: rows of the one that attend any key of the other. keys: of the other that the one needs.
    ends, begun, before: what areas are made of, where they are asked for. The keys of a rank before a position are its
    chunks before, `before[chunk, key rank]`, and what is left where the position's own chunk is the rank's, `begun` of
    all intervals of a rank's rows. `ends[query rank, chunk]`: how many more intervals end in a chunk than begin there.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    ends: torch.Tensor
    begun: torch.Tensor
    before: torch.Tensor

    def areas(self, rank: int) -> torch.Tensor:
        """float64 `(world,)`, whole numbers: pairs of a rank's rows and each rank's keys."""
        return self.begun[rank] + self.ends[rank] @ self.before

    @property
    def area(self) -> torch.Tensor:
        """float64 `(world,)`: pairs of each rank's rows."""
        return self.begun.sum(1) + self.ends @ self.before.sum(1)


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
    rows, before = _alike(mask, query, size), _before(key)
    queries = torch.zeros(world, world, dtype=torch.int64, device="cpu")
    for part in torch.arange(len(rows.rank), device="cpu").split(AT_ONCE):
        found = _attends(rows.first[:, part], rows.last[:, part], before)
        queries.index_add_(0, rows.rank[part], found * rows.number[part, None])
    return Tasks(queries, keys.view(world, world), *_parts_of_areas(rows, key), before[:-1])


def attends(lo: torch.Tensor, hi: torch.Tensor, key: Placement) -> torch.Tensor:
    """bool `(rows, world)`: whether rows with intervals `(layers, rows)` attend any key of each rank."""
    first, last = _chunks(lo.long(), hi.long(), key.chunk_size)
    return _attends(first, last, _before(key))


def _chunks(lo: torch.Tensor, hi: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first and the last chunk of each interval; of an empty one the last is before the first."""
    return torch.where(lo < hi, lo // size, 0), torch.where(lo < hi, (hi - 1) // size, -1)


def _before(key: Placement) -> torch.Tensor:
    """float64 `(chunks + 1, world)`: rows of each rank before each chunk."""
    before = torch.zeros(key.chunks.numel() + 1, key.world, dtype=torch.float64, device="cpu")
    before[torch.arange(1, len(before), device="cpu"), key.owner()] = key.chunk_size
    return before.cumsum_(0)


def _attends(first: torch.Tensor, last: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Of chunks `(layers, n)`: where a rank has any from the first to the last."""
    found = torch.zeros(first.shape[1], before.shape[1], dtype=torch.bool, device="cpu")
    for begin, end in zip(first, last, strict=True):
        found |= before[end + 1] > before[begin]
    return found


class _Rows(NamedTuple):
    """Rows of a rank that follow one another and attend parts of the same chunks, as one.

    first, last: chunks `(layers, n)`, of an empty interval 0 and -1. lo, hi: `(layers, n)`, sums of how far the rows'
    intervals begin, and end, behind the beginning of these chunks. rank, number: `(n,)`.
    """

    first: torch.Tensor
    last: torch.Tensor
    lo: torch.Tensor
    hi: torch.Tensor
    rank: torch.Tensor
    number: torch.Tensor


def _alike(mask: IntervalMask, query: Placement, size: int) -> _Rows:
    lo, hi = (x[0].cpu().long() for x in (mask.lo, mask.hi))
    first, last = _chunks(lo, hi, size)
    rank = query.owner().repeat_interleave(query.chunk_size)[: mask.seqlen_q]
    begins = torch.ones_like(rank, dtype=torch.bool)
    same = (first[:, 1:] == first[:, :-1]).all(0) & (last[:, 1:] == last[:, :-1]).all(0) & (rank[1:] == rank[:-1])
    begins[1:] = ~same
    at = begins.nonzero().squeeze(1)
    stop = torch.cat([at[1:], torch.tensor([len(rank)], device="cpu")]) if len(rank) else at

    def summed(x: torch.Tensor) -> torch.Tensor:
        total = torch.nn.functional.pad(x.cumsum(1), (1, 0))
        return total[:, stop] - total[:, at]

    return _Rows(first[:, at], last[:, at], summed(lo - first * size), summed(hi - last * size), rank[at], stop - at)


def _parts_of_areas(rows: _Rows, key: Placement) -> tuple[torch.Tensor, torch.Tensor]:
    """`ends` and `begun` of Tasks, float64."""
    world, chunks, owner = key.world, key.chunks.numel(), key.owner()
    begun = torch.zeros(world * world, dtype=torch.float64, device="cpu")
    ends = torch.zeros(world * chunks, dtype=torch.float64, device="cpu")
    for first, last, lo, hi in zip(rows.first, rows.last, rows.lo, rows.hi, strict=True):
        some = last >= 0
        rank, count = rows.rank[some], rows.number[some].double()
        for chunk, behind, sign in ((last[some], hi[some], 1.0), (first[some], lo[some], -1.0)):
            ends.index_add_(0, rank * chunks + chunk, count, alpha=sign)
            begun.index_add_(0, rank * world + owner[chunk], behind.double(), alpha=sign)
    return ends.view(world, -1), begun.view(world, world)


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


class _Choice:
    """Areas of ranks, and the seconds of what they send and receive, by tasks that have moved.

    traffic: `(across or inside, sent or received, world)`. The rows of a task are told by the way it goes.
    """

    def __init__(self, tasks: Tasks, cost: CostModel) -> None:
        world, nodes = tasks.queries.shape[0], cost.node_size(tasks.queries.shape[0])
        self.cost, self.tasks = cost, tasks
        node = torch.arange(world, device="cpu") // nodes
        self.inside = (node[:, None] == node) & (nodes > 1)
        rate = torch.where(self.inside, cost.node_bandwidth, cost.bandwidth).double()
        self.keys = tasks.keys * cost.key_bytes / rate
        self.there = tasks.queries * (cost.heads_q * cost.head_dim * cost.element_size) / rate
        self.back = tasks.queries * output_bytes(cost) / rate
        self.moved = torch.zeros(world, world, dtype=torch.bool, device="cpu")
        self.free = (tasks.queries > 0) & ~torch.eye(world, dtype=torch.bool, device="cpu")
        self.area = tasks.area
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
            areas = self.tasks.areas(rank)
            useful = self.free[rank] & (self.area + areas < self.area[rank]) & (areas > 0)
            price = (self.there[rank] + self.back[rank] - self.keys[rank]) / areas.clamp(min=1)
        else:
            kind, way, rank = (int(x) for x in torch.unravel_index(self.traffic.argmax(), self.traffic.shape))
            mine = self.inside[rank] if kind else ~self.inside[rank]
            if way:
                price, useful = self.back[rank] - self.keys[rank], self.free[rank] & mine
            else:
                price, useful = self.back[:, rank] - self.keys[:, rank], self.free[:, rank] & mine
            useful = useful & (price < 0)
            if not way:
                return None if not useful.any() else (int(price.masked_fill(~useful, torch.inf).argmin()), rank)
        if not useful.any():
            return None
        return rank, int(price.masked_fill(~useful, torch.inf).argmin())

    def move(self, rank: int, to: int) -> None:
        self.moved[rank, to], self.free[rank, to] = True, False
        area = float(self.tasks.areas(rank)[to])
        self.area[rank] -= area
        self.area[to] += area
        traffic = self.traffic[int(self.inside[rank, to])]
        traffic[0, to] += self.back[rank, to] - self.keys[rank, to]
        traffic[1, rank] += self.back[rank, to] - self.keys[rank, to]
        traffic[0, rank] += self.there[rank, to]
        traffic[1, to] += self.there[rank, to]
