"""Who computes what where queries may move too: a task is what a rank's rows attend of the keys of another rank.

A task is computed where its queries are, to which the keys then come, or where its keys are, to which the queries go
and from which partial results return. The fewer bytes, the better, and a rank with too much to attend gives some away.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
TRIES = 16  # steps that did not help, besides one a rank, until no more are tried


@dataclass(frozen=True, eq=False)
class Tasks:
    """What the queries of each rank are to the keys of each, int64 `(world, world)`, `[query rank, key rank]`.

    queries: rows of the one that attend any key of the other. keys: of the other that the one needs. areas: pairs of
    the rows of the one and keys of the other.
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
    rows, before = _alike(mask, query, size), _before(key)
    queries = torch.zeros(world, world, dtype=torch.int64, device="cpu")
    for part in torch.arange(len(rows.rank), device="cpu").split(AT_ONCE):
        found = _attends(rows.first[:, part], rows.last[:, part], before)
        queries.index_add_(0, rows.rank[part], found * rows.number[part, None])
    return Tasks(queries, keys.view(world, world), _areas(rows, key))


def attends(lo: torch.Tensor, hi: torch.Tensor, key: Placement) -> torch.Tensor:
    """bool `(rows, world)`: whether rows with intervals `(layers, rows)` attend any key of each rank."""
    first, last = _chunks(lo.long(), hi.long(), key.chunk_size)
    return _attends(first, last, _before(key))


def _chunks(lo: torch.Tensor, hi: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first and the last chunk of each interval; of an empty one the last is before the first."""
    return torch.where(lo < hi, lo // size, 0), torch.where(lo < hi, (hi - 1) // size, -1)


def _before(key: Placement) -> torch.Tensor:
    """int64 `(chunks + 1, world)`: rows of each rank before each chunk."""
    before = torch.zeros(key.chunks.numel() + 1, key.world, dtype=torch.int64, device="cpu")
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


def _areas(rows: _Rows, key: Placement) -> torch.Tensor:
    """int64 `(world, world)`. Of a rank's keys before a position count its whole chunks before that of the position,
    and what is before the position in its own chunk, where that is the rank's."""
    world, chunks, owner = key.world, key.chunks.numel(), key.owner()
    begun = torch.zeros(world * world, dtype=torch.int64, device="cpu")
    # Of each chunk, the intervals that end in it, less those that begin in it.
    ends = torch.zeros(world * chunks, dtype=torch.int64, device="cpu")
    for first, last, lo, hi in zip(rows.first, rows.last, rows.lo, rows.hi, strict=True):
        some = last >= 0
        rank, count = rows.rank[some], rows.number[some]
        for chunk, behind, sign in ((last[some], hi[some], 1), (first[some], lo[some], -1)):
            ends.index_add_(0, rank * chunks + chunk, count, alpha=sign)
            begun.index_add_(0, rank * world + owner[chunk], behind, alpha=sign)
    ends = ends.view(world, chunks)
    later = ends.flip(1).cumsum(1).flip(1) - ends  # that end in later chunks, and so hold this one wholly
    return begun.view(world, world).index_add(1, owner, later, alpha=key.chunk_size)


def choose_tasks(tasks: Tasks, cost: CostModel, overlaps: bool = True) -> torch.Tensor:
    """bool `(world, world)`: of which tasks the queries move, `[query rank, key rank]`; none where nothing is won.

    overlaps: whether communication hides behind attention at all. From no task that moves on, and from all that save
    bytes, the rank that all wait for gives tasks away, one after another: of the area where that binds, those that cost
    least for what they bring; else those that save it most bytes. What makes the forward no faster is taken back.
    """
    cost = cost if overlaps else replace(cost, overlap=0.0)
    state = _Choice(tasks, cost)
    fastest, chosen = state.seconds(), state.moved.clone()
    saving = _Choice(tasks, cost)
    saving.move_all_that_save()
    for start in (state, saving) if saving.any_moved else (state,):
        seconds, moved = _improve(start)
        if seconds < fastest:
            fastest, chosen = seconds, moved
    return chosen


def _improve(state: _Choice) -> tuple[float, torch.Tensor]:
    """The fastest on the way, and what has moved there. Where many ranks wait equally, each has its turn before that
    helps."""
    best, chosen, world = state.seconds(), state.moved.clone(), len(state.moved)
    steps: list[tuple[int, int]] = []
    helped = 0  # steps, to the fastest
    for _ in range(world * TASKS_A_RANK):
        step = state.step()
        if step is None or len(steps) - helped == TRIES + world:
            break
        state.move(*step)
        steps.append(step)
        seconds = state.seconds()
        if seconds < best:
            best, helped = seconds, len(steps)
    for step in steps[:helped]:
        chosen[step] = True
    return best, chosen


class _Choice:
    """Areas of ranks, and the bytes that they send and receive, by tasks that have moved.

    keys, there, back: bytes of each task's keys, queries and results. traffic: int64
    `(across or inside, sent or received, world)`.
    """

    def __init__(self, tasks: Tasks, cost: CostModel) -> None:
        world, nodes = tasks.queries.shape[0], cost.node_size(tasks.queries.shape[0])
        self.cost, self.areas = cost, tasks.areas
        node = torch.arange(world, device="cpu") // nodes
        own = torch.eye(world, dtype=torch.bool, device="cpu")
        self.inside = (node[:, None] == node) & (nodes > 1)
        self.rates = torch.tensor([cost.bandwidth, cost.node_bandwidth], dtype=torch.float64, device="cpu")
        self.keys = (tasks.keys * cost.key_bytes).masked_fill(own, 0)
        self.there = tasks.queries * (cost.heads_q * cost.head_dim * cost.element_size)
        self.back = tasks.queries * output_bytes(cost)
        self.moved = torch.zeros_like(own)
        self.free = (tasks.queries > 0) & ~own
        self._count()

    def _count(self) -> None:
        """any_moved, area and traffic, from what has moved."""
        self.any_moved = bool(self.moved.any())
        gone = self.areas * self.moved
        self.area = self.areas.sum(1) - gone.sum(1) + gone.sum(0)
        there, home = self.there * self.moved, torch.where(self.moved, self.back, self.keys)
        self.traffic = torch.stack(
            [
                torch.stack(
                    [(there * where).sum(1) + (home * where).sum(0), (there * where).sum(0) + (home * where).sum(1)]
                )
                for where in (~self.inside, self.inside)
            ]
        )

    def sending(self) -> torch.Tensor:
        """float64, seconds of the traffic."""
        return self.traffic / self.rates[:, None, None]

    def seconds(self) -> float:
        """Of a forward; queries and results are two more collectives."""
        sending = float(self.sending().max()) + (1 + 2 * self.any_moved) * self.cost.latency
        return self.cost.total_seconds(self.cost.compute_seconds(int(self.area.max())), sending)

    def step(self) -> tuple[int, int] | None:
        """The next task to move."""
        sending = self.sending()
        if self.cost.compute_seconds(int(self.area.max())) > self.cost.overlap * float(sending.max()):
            rank = int(self.area.argmax())
            areas = self.areas[rank]
            useful = self.free[rank] & (self.area + areas < self.area[rank]) & (areas > 0)
            price = (self.there[rank] + self.back[rank] - self.keys[rank]) / self.rates[self.inside[rank].long()]
            to = _cheapest(price / areas.clamp(min=1), useful)
            return None if to is None else (rank, to)
        where, rank = divmod(int(sending.argmax()), len(self.moved))
        kind, way = divmod(where, 2)
        mine = self.inside[rank] if kind else ~self.inside[rank]
        if way:
            price = self.back[rank] - self.keys[rank]
            to = _cheapest(price, self.free[rank] & mine & (price < 0))
            return None if to is None else (rank, to)
        price = self.back[:, rank] - self.keys[:, rank]
        source = _cheapest(price, self.free[:, rank] & mine & (price < 0))
        return None if source is None else (source, rank)

    def move(self, rank: int, to: int) -> None:
        self.moved[rank, to], self.free[rank, to], self.any_moved = True, False, True
        self.area[rank] -= self.areas[rank, to]
        self.area[to] += self.areas[rank, to]
        traffic = self.traffic[int(self.inside[rank, to])]
        traffic[0, to] += self.back[rank, to] - self.keys[rank, to]
        traffic[1, rank] += self.back[rank, to] - self.keys[rank, to]
        traffic[0, rank] += self.there[rank, to]
        traffic[1, to] += self.there[rank, to]

    def move_all_that_save(self) -> None:
        """Every task whose queries and results are fewer bytes than its keys."""
        self.moved = self.free & (self.there + self.back < self.keys)
        self.free = self.free & ~self.moved
        self._count()


def _cheapest(price: torch.Tensor, useful: torch.Tensor) -> int | None:
    """Of those that are useful."""
    return int(price.double().masked_fill(~useful, torch.inf).argmin()) if bool(useful.any()) else None
