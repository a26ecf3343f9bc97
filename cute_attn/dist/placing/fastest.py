"""The search for the placement that is predicted to be fastest: area is evened out for as long as that saves time.

A rank is as slow as its compute and as its traffic, and the slowest rank counts. From a placement that sends little,
area is taken from the fullest rank again and again, at the least additional rows; the prediction says where on this way
to stop. Then the rank that all wait for is relieved, of area or of traffic, whichever binds.

Ranks are searched in levels: nodes first, whose rows cross a network once, then the ranks inside of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..cost import CostModel
from .locality import LocalSearch, Offers
from .needs import Spans, rows_within
from .search import in_blocks, largest_divisor, of_chunks

__all__ = ["find_fastest"]

Start = Callable[[torch.Tensor, int], torch.Tensor]

MOST_RANKS = 64  # searched at once
MOST_GROUPS = 32  # of more ranks
BLOCKS = 64  # a group, about
MOST_CHUNKS = 16  # a rank; more are searched in blocks first
EVEN = 1.01  # times the mean, from which on area is not evened out further
TRIES = 16  # exchanges that did not help, until no more are tried
WORTH_SAVING = 1.25  # times that time, over which rows are saved on another way too
WORTH = 1.002  # times the time that even area alone takes: what is not over it, is not improved


@dataclass(frozen=True)
class _Clock:
    """Seconds of the slowest group of `ranks` ranks, which share its area and its rows.

    bandwidth: of a group. base: seconds of sending that are the same wherever rows are on this level; those of
    `crossing` rows a rank are among them.
    """

    cost: CostModel
    ranks: int
    bandwidth: float
    base: float
    crossing: float = 0.0

    def seconds(self, area: float, rows: float) -> float:
        return self.cost.total_seconds(self.compute(area), self.sending(rows))

    def compute(self, area: float) -> float:
        return self.cost.compute_seconds(area / self.ranks)

    def sending(self, rows: float) -> float:
        return rows * self.cost.key_bytes / self.bandwidth + self.base

    def free_area(self, rows: float) -> float:
        """The area whose compute hides behind the sending of so many rows."""
        return self.cost.overlap * self.sending(rows) / self.compute(1.0)

    def free_rows(self, area: float) -> float:
        """The rows whose sending can hide behind the compute of an area."""
        return (self.compute(area) / max(self.cost.overlap, 1e-9) - self.base) * self.bandwidth / self.cost.key_bytes


@dataclass(frozen=True)
class Problem:
    """Chunks to give to ranks, as LocalSearch takes them, whose keys follow them.

    places: None where their keys are of another source. leaving: float64 `(chunks,)`, rows of each chunk that go to
    other groups of ranks, as often as they do.
    """

    areas: torch.Tensor
    needs: Spans
    places: torch.Tensor | None
    chunk_size: int
    leaving: torch.Tensor


def find_fastest(
    problem: Problem, starts: tuple[Start, ...], world: int, cost: CostModel, known: float
) -> torch.Tensor | None:
    """int64 `(chunks,)`, the rank of each chunk: the fastest found from any of the starts, None if that is not faster.

    known: seconds of a placement that is known; what cannot be better is not followed.
    """
    return _find(problem, starts, world, _Clock(cost, 1, cost.bandwidth, cost.latency), cost.node_size(world), known)


def _find(
    problem: Problem, starts: tuple[Start, ...], world: int, clock: _Clock, node_size: int, known: float
) -> torch.Tensor | None:
    """clock: its cost, base and crossing are those of this level."""
    if world == 1:
        return torch.zeros(len(problem.areas), dtype=torch.int64, device="cpu")
    cost, is_inside = clock.cost, node_size > 1 and world <= node_size
    whole = node_size if world > node_size else 1  # ranks that are not parted here
    groups = world // whole
    if groups > MOST_RANKS:
        groups = largest_divisor(groups, MOST_GROUPS)
    size = world // groups
    bandwidth = cost.node_bandwidth if is_inside else cost.bandwidth * min(size, node_size)
    clock = replace(clock, ranks=size, bandwidth=bandwidth)
    if size == 1:
        return _of_ranks(problem, starts, world, clock, known)
    chunks = len(problem.areas) // groups
    block = chunks // largest_divisor(chunks, BLOCKS)
    found = _search(_in_blocks(problem, block), starts, groups, clock, known)
    if found is None:
        return None
    group = torch.from_numpy(found.owner).repeat_interleave(block)
    owner = torch.empty_like(group)
    problem = _left(problem, group, groups, size if node_size == 1 else 1)
    if size == node_size:
        clock = replace(clock, base=clock.sending(found.rows) + cost.latency, crossing=found.rows / size)
    for index in range(groups):
        part = _find(_part(problem, group == index), starts, size, clock, node_size, known)
        if part is None:
            return None
        owner[group == index] = index * size + part
    return owner


def _of_ranks(
    problem: Problem, starts: tuple[Start, ...], world: int, clock: _Clock, known: float
) -> torch.Tensor | None:
    chunks = len(problem.areas) // world
    block = chunks // largest_divisor(chunks, MOST_CHUNKS)
    if block > 1:
        found = _search(_in_blocks(problem, block), starts, world, clock, known)
        if found is None:
            return None
        owner = torch.from_numpy(found.owner).repeat_interleave(block)
        starts = (lambda areas, world: owner,)
    found = _search(problem, starts, world, clock, known)
    return None if found is None else torch.from_numpy(found.owner)


def _search(problem: Problem, starts: tuple[Start, ...], world: int, clock: _Clock, known: float) -> _Way | None:
    """The fastest way from one of the starts, None if it is not faster than what is known."""
    found = sorted(
        (_Way(problem, start(problem.areas, world), world, clock) for start in starts), key=lambda way: way.best
    )
    best = known
    if clock.crossing:  # inside of a node rows are cheap, and there are many nodes: the better start is enough
        del found[1:]
    for way in found:
        way.even(best)
        best = min(best, way.best)
    way = min(found, key=lambda way: way.best)
    if way.best > known:
        return None
    ways = [way]
    if len(starts) > 1 and not clock.crossing and way.best > WORTH_SAVING * clock.compute(way.mean):
        ways.append(way.with_fewer_rows())
    for way in ways:
        way.relieve()
    return min(ways, key=lambda way: way.best)


class _Way:
    """A search, the best placement it has passed, and its time.

    owner, best, rows: that placement, its seconds, and the rows of its busiest rank: of its busiest receiver until it
    is relieved, since what many read can be spread over many senders then.
    """

    def __init__(self, problem: Problem, owner: torch.Tensor, world: int, clock: _Clock) -> None:
        self.problem, self.clock, self.world = problem, clock, world
        self.crosses = bool(problem.leaving.any())
        self._enter(owner)
        self.mean = float(self.search.area.mean())
        self._take(float(self._received().max()))

    def even(self, known: float) -> None:
        """Evens out area until that cannot lead to a better time than the best known."""
        search, clock = self.search, self.clock
        goal, hidden = EVEN * self.mean, clock.free_rows(self.mean)
        received = self._received()
        for _ in range(4 * len(search.owner)):
            rank, rows = int(search.area.argmax()), float(received.max())
            if search.area[rank] <= goal or clock.seconds(self.mean, rows) >= min(known, self.best):
                return
            pairs = search.pairs(rank, search.area)
            price, mine, theirs = search.lowering(
                pairs, search.chunk_area, search.area, goal, rows=received, most_rows=max(rows, hidden)
            ).best()
            if price == np.inf:
                return
            search.exchange(mine, theirs)
            received = self._received()
            rows = float(received.max())
            if clock.seconds(float(search.area.max()), rows) < self.best:
                self._take(rows)

    def with_fewer_rows(self) -> _Way:
        """Another way, on which ranks have saved rows of all kinds while their areas hide behind the traffic."""
        way = _Way(self.problem, torch.from_numpy(self.owner), self.world, self.clock)
        way.search.save_rows(max(float(way.search.area.max()), self.clock.free_area(self.rows)))
        way._take(float(way._received().max()))
        return way

    def relieve(self) -> None:
        """Takes from the rank that all wait for, area or traffic, whichever binds, until nothing helps."""
        if not np.array_equal(self.search.owner, self.owner):
            self._enter(torch.from_numpy(self.owner))
        search, clock = self.search, self.clock
        received, (popular, sent) = self._received(), self._sent()
        self._take(float(max(received.max(), sent.max())))
        movable = {kind: np.ones(len(search.owner), bool) for kind in ("area", "traffic")}
        tries = dict.fromkeys(movable, TRIES)
        known: dict[str, Offers] = {}  # until an exchange is made and not taken back
        for _ in range(len(search.owner)):
            area, most = float(search.area.max()), float(received.max())
            is_slow = clock.compute(area) > clock.cost.overlap * clock.sending(self.rows)
            kind = "area" if is_slow and tries["area"] and area > EVEN * self.mean else "traffic"
            if not tries[kind] or self.best <= WORTH * clock.compute(self.mean):
                return
            what = "area" if kind == "area" else "received" if most >= sent.max() else "sent"
            if what not in known or not len(known[what].at):
                known[what] = self._offers(what, movable[kind], received, popular, sent)
            price, mine, theirs = known[what].best()
            if price == np.inf:
                tries[kind] = 0
                continue
            search.exchange(mine, theirs)
            received_now, (popular_now, sent_now) = self._received(), self._sent()
            rows = float(max(received_now.max(), sent_now.max()))
            seconds = clock.seconds(float(search.area.max()), rows)
            tries[kind] = TRIES if seconds < self.best else tries[kind] - 1
            if seconds <= self.best:  # as many others may be just as slow
                received, popular, sent = received_now, popular_now, sent_now
                self._take(rows)
                known.clear()
            else:
                search.exchange(mine, theirs)
                movable[kind][mine] = False
                known = {what: known[what].without(mine)}

    def _offers(
        self, what: str, movable: np.ndarray, received: np.ndarray, popular: np.ndarray, sent: np.ndarray
    ) -> Offers:
        """Exchanges that relieve the busiest rank of area, of rows that it receives or of rows that it sends."""
        search, area, most = self.search, float(self.search.area.max()), float(received.max())
        free = max(area, self.clock.free_area(self.rows))
        if what == "received":
            return search.fewest(int(received.argmax()), received, free, movable)
        if what == "area":
            weight, load, goal, limit = search.chunk_area, search.area, EVEN * self.mean, np.inf
        else:
            weight, load, goal, limit = popular, sent, most, free
        pairs = search.pairs(int(load.argmax()), load)
        return search.lowering(pairs, weight * movable, load, goal, limit, received, max(most, self.rows))

    def _enter(self, owner: torch.Tensor) -> None:
        p = self.problem
        self.search = LocalSearch(p.areas, p.needs, owner, self.world, None, p.chunk_size, p.places)

    def _take(self, rows: float) -> None:
        """Takes what the search has as the best."""
        self.owner, self.rows = self.search.owner.copy(), rows
        self.best = self.clock.seconds(float(self.search.area.max()), rows)

    def _received(self) -> np.ndarray:
        """Rows that each rank needs besides its own."""
        own = 0 if self.problem.places is None else self.search.members.shape[1] * self.search.chunk_size
        return np.maximum(self.search.needed - own, 0)

    def _sent(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows that leave each chunk, and each rank; of keys of another source nobody knows yet. Those that leave the
        group, over a slower network, count for more."""
        search = self.search
        if self.problem.places is None:
            return np.zeros(len(search.owner)), np.zeros(self.world)
        popular = search.leaving()
        sent = np.bincount(search.owner, popular, minlength=self.world)
        if not self.crosses:
            return popular, sent
        weight = max(1.0, self.clock.bandwidth / self.clock.cost.bandwidth / self.clock.ranks)
        leaving = self.problem.leaving.numpy()
        crossing = np.bincount(search.owner, leaving, minlength=self.world) - self.clock.crossing * self.clock.ranks
        return popular + weight * leaving, sent + weight * np.maximum(crossing, 0)


def _left(problem: Problem, group: torch.Tensor, groups: int, receivers: int) -> Problem:
    """The same where chunks are in groups: rows leave for others, once to each of a group's `receivers` that need them,
    which are taken to be as many as its chunks that do."""
    if problem.places is None:
        return problem
    needs, size = problem.needs, problem.chunk_size
    lo = problem.places * size
    bound = max(int(needs.hi.max()) if len(needs.hi) else 0, int(lo.max()) + size) + 1
    there = group[needs.group] * bound
    edges = (lo + torch.arange(groups, device="cpu")[:, None] * bound).reshape(-1)
    rows = rows_within((needs.lo + there, needs.hi + there), edges, edges + size).view(groups, -1)
    rows.clamp_(max=receivers * size)
    rows[group, torch.arange(len(group), device="cpu")] = 0
    return replace(problem, leaving=problem.leaving + rows.sum(0))


def _in_blocks(problem: Problem, block: int) -> Problem:
    """Every `block` consecutive chunks as one."""
    if block == 1:
        return problem
    areas, needs = in_blocks(problem.areas, problem.needs, block)
    leaving = problem.leaving.view(-1, block).sum(1)
    if problem.places is None:
        return replace(problem, areas=areas, needs=needs, leaving=leaving)
    return Problem(areas, needs, problem.places[::block] // block, problem.chunk_size * block, leaving)


def _part(problem: Problem, inside: torch.Tensor) -> Problem:
    """Some of the chunks."""
    return Problem(
        problem.areas[inside],
        of_chunks(problem.needs, inside),
        None if problem.places is None else problem.places[inside],
        problem.chunk_size,
        problem.leaving[inside],
    )
