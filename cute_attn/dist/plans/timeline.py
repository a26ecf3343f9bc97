"""When keys, attention and gradients of a rank have their turn, forward and backward: what hides behind what.

A prediction by the cost model: attention and one exchange at a time run side by side, in the order of the movers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..config import OverlapConfig
from ..cost import CostModel
from ..placing.tasks import output_bytes
from .group_cast import CastPlan, plan_placed_group_cast
from .heads import UlyssesHeads, ulysses_heads
from .node_cast import plan_placed_node_cast
from .placed import PlacedMask
from .predict import MoverPrediction
from .query_cast import Visits, plan_placed_query_cast
from .ring import RingPlan, plan_placed_ring

__all__ = [
    "LANES",
    "TIMED",
    "Event",
    "Timeline",
    "draw_timelines",
    "draw_timelines_png",
    "slowest_rank",
    "timelines",
]

TIMED = ("group_cast", "node_cast", "query_cast", "ring", "ulysses", "ulysses_ring")  # movers that have timelines
LANES = ("heads", "visits", "keys", "attend", "dK, dV")
FP32 = 4  # bytes, of gradients on their way
COLORS = dict(zip(LANES, ("#b0bec5", "#c58fb8", "#ef9b33", "#5fa3bf", "#8fbf6f"), strict=True))
MARKS = "0123456789abcdefghijklmnopqrstuvwxyz"


class Event(NamedTuple):
    """Seconds from `begin` to `end` in a lane. block: 0 for what a rank holds itself, then in the order of arrival."""

    lane: str
    block: int
    begin: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """name: "forward" or "backward"; events: in the order in which they are asked for."""

    name: str
    events: tuple[Event, ...]

    @property
    def seconds(self) -> float:
        return max((event.end for event in self.events), default=0.0)

    @property
    def waiting(self) -> float:
        """Seconds in which nothing is attended."""
        return self.seconds - sum(event.end - event.begin for event in self.events if event.lane == "attend")


def timelines(
    mover: str, placed: PlacedMask, rank: int, overlap: OverlapConfig, cost: CostModel, ulysses_size: int | None = None
) -> tuple[Timeline, Timeline]:
    """The forward and the backward of one rank.

    mover: of TIMED; ulysses_size: that of "ulysses_ring". As if the other ranks came in time.
    """
    if mover in ("group_cast", "node_cast"):
        make = plan_placed_group_cast if mover == "group_cast" else plan_placed_node_cast
        return _of_cast(make(placed, rank, overlap, cost), None, cost)
    if mover == "query_cast":
        plan = plan_placed_query_cast(placed, rank, overlap, cost)
        return _of_cast(plan.cast, plan.visits, cost)
    size = {"ring": 1, "ulysses": placed.world}.get(mover, ulysses_size or 1)
    return _of_ring(plan_placed_ring(placed, rank, size), cost, ulysses_heads(cost.heads_q, cost.heads_k, size))


def slowest_rank(placed: PlacedMask, overlap: OverlapConfig, cost: CostModel, prediction: MoverPrediction) -> int:
    """The rank with most attention and most bytes, together."""
    moved = prediction.bytes_sent.maximum(prediction.bytes_received)
    areas = placed.moved_areas(overlap, cost) if prediction.mover == "query_cast" else placed.areas
    seconds = [
        cost.compute_seconds(area) + cost.send_seconds(size)
        for area, size in zip(areas.tolist(), moved.tolist(), strict=True)
    ]
    return seconds.index(max(seconds))


def draw_timelines(drawn: Sequence[Timeline], width: int = 80) -> str:
    """Lines of text: a lane each, on one scale of time; a block is drawn as its number, after 9 as a letter."""
    margin = max(map(len, LANES)) + 1
    columns = max(8, width - margin)
    scale = columns / (max(timeline.seconds for timeline in drawn) or 1.0)
    lines = []
    for timeline in drawn:
        lines.append(
            f"{timeline.name}: {timeline.seconds * 1e3:.2f} ms, {timeline.waiting * 1e3:.2f} ms without attention"
        )
        for lane in LANES:
            events = [event for event in timeline.events if event.lane == lane]
            if events:
                lines.append(f"{lane:<{margin}}{_cells(events, columns, scale)}")
    return "\n".join(lines)


def draw_timelines_png(drawn: Sequence[Timeline], path: str | Path, title: str = "Timeline") -> Path:
    """Writes a PNG with the same lanes, a bar for each event, and returns its path."""
    from matplotlib.figure import Figure

    lanes = [lane for lane in LANES if any(event.lane == lane for timeline in drawn for event in timeline.events)]
    figure = Figure(figsize=(9.0, 5.0), dpi=120, facecolor="white", layout="constrained")
    figure.suptitle(title, x=0.02, ha="left", fontsize=10)
    for axes, timeline in zip(figure.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0], drawn, strict=True):
        for event in timeline.events:
            length, line = (event.end - event.begin) * 1e3, lanes.index(event.lane)
            axes.barh(line, length, left=event.begin * 1e3, color=COLORS[event.lane], edgecolor="white", linewidth=0.5)
            axes.text(event.begin * 1e3 + length / 2, line, str(event.block), ha="center", va="center", fontsize=7)
        axes.set_yticks(range(len(lanes)), lanes)
        axes.set_ylim(len(lanes) - 0.5, -0.5)
        axes.set_ylabel(timeline.name)
    axes.set_xlabel("ms")
    path = Path(path)
    figure.savefig(path)
    return path


def _cells(events: Sequence[Event], columns: int, scale: float) -> str:
    cells = [" "] * columns
    for event in events:
        first = min(int(event.begin * scale), columns - 1)
        last = min(max(round(event.end * scale), first + 1), columns)
        cells[first:last] = MARKS[event.block % len(MARKS)] * (last - first)
    return "".join(cells).rstrip()


class _Block(NamedTuple):
    """Keys that a rank attends at once. fetched: seconds in which they travel, the longer of both ways, None if nothing
    does; returned: their gradients, likewise."""

    number: int
    area: float
    fetched: float | None
    returned: float | None


class _Visitors(NamedTuple):
    """Queries that are attended where their keys are: seconds of the exchanges that take them there, and of
    the way back, and pairs at this rank."""

    there: tuple[float, ...]
    back: float
    area: float


class _Clock:
    """Two queues: attention, and exchanges one after another. What is asked for begins when its queue is free and what
    attention was asked for before it is done, as on a GPU whose streams wait for one another."""

    def __init__(self) -> None:
        self._attention = self._network = 0.0
        self.events: list[Event] = []

    def exchange(self, lane: str, block: int, seconds: float) -> float:
        """When it is over."""
        begin = max(self._network, self._attention)
        self._network = begin + seconds
        self.events.append(Event(lane, block, begin, self._network))
        return self._network

    def attend(self, block: int, seconds: float) -> None:
        if seconds:
            self.events.append(Event("attend", block, self._attention, self._attention + seconds))
            self._attention += seconds

    def wait(self, until: float) -> None:
        """Attention waits."""
        self._attention = max(self._attention, until)


def _play(
    clock: _Clock,
    blocks: Sequence[_Block],
    seconds: Callable[[float], float],
    returns: bool,
    visitors: _Visitors | None = None,
) -> None:
    """Blocks come and are attended, each while the next is on its way; their gradients return, if they do. Visitors
    leave first, are attended beside the own keys, in the backward ahead of them, and their results are waited for last.
    """
    there = back = 0.0
    if visitors is not None:
        for lasting in visitors.there:
            there = clock.exchange("visits", 0, lasting)

    def attend_visitors(visitors: _Visitors) -> float:
        clock.wait(there)
        clock.attend(0, seconds(visitors.area))
        return clock.exchange("visits", 0, visitors.back)

    arrival = 0.0 if blocks[0].fetched is None else clock.exchange("keys", blocks[0].number, blocks[0].fetched)
    under_way = 0.0
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        clock.wait(arrival)
        if following is not None and following.fetched is not None:
            arrival = clock.exchange("keys", following.number, following.fetched)
        if visitors is not None and returns and block.number == 0:
            back = attend_visitors(visitors)
        clock.attend(block.number, seconds(block.area))
        if visitors is not None and not returns and block.number == 0:
            back = attend_visitors(visitors)
        if returns and block.returned is not None:
            clock.wait(under_way)
            under_way = clock.exchange("dK, dV", block.number, block.returned)
    clock.wait(max(under_way, back))


def _of_cast(plan: CastPlan, visits: Visits | None, cost: CostModel) -> tuple[Timeline, Timeline]:
    fp32 = cost.key_bytes / cost.element_size * FP32
    node_size = cost.node_size(plan.world)

    def seconds(splits: tuple[Sequence[int], Sequence[int]], size: float) -> float:
        """Of an exchange of rows of so many bytes, to and from every peer; what stays at a rank takes no time."""
        both = [[0 if peer == plan.rank else n for peer, n in enumerate(rows)] for rows in splits]
        node = [peer // node_size for peer in range(plan.world)]
        across, inside = (
            max(sum(n for peer, n in enumerate(rows) if (node[peer] == node[plan.rank]) is near) for rows in both)
            for near in (False, True)
        )
        return cost.send_seconds(across * size, 1, inside * size)

    blocks = []
    for number, stage in enumerate(plan.stages):
        fetched = returned = None
        if stage.communicates:
            steps = [(x.send_splits, x.receive_splits) for x in (stage, stage.across) if x is not None]
            fetched, returned = (sum(seconds(splits, size) for splits in steps) for size in (cost.key_bytes, fp32))
        blocks.append(_Block(number, stage.area, fetched, returned))
    here: list[_Visitors | None] = [None, None]
    if visits is not None:
        splits = visits.send_splits, visits.receive_splits
        q, out = cost.heads_q * cost.head_dim, cost.heads_q * cost.head_dim_v
        sizes = (
            ((q * cost.element_size,), output_bytes(cost)),
            (((q + out) * cost.element_size, 2 * cost.heads_q * FP32), q * FP32),  # with dO; LSE and its gradient; dQ
        )
        here = [
            _Visitors(tuple(seconds(splits, size) for size in there), seconds(splits, back), visits.area)
            for there, back in sizes
        ]
    forward, backward = _Clock(), _Clock()
    _play(forward, blocks, cost.compute_seconds, False, here[0])
    _play(backward, blocks[::-1], cost.backward_seconds, True, here[1])
    return Timeline("forward", tuple(forward.events)), Timeline("backward", tuple(backward.events))


def _of_ring(plan: RingPlan, cost: CostModel, heads: UlyssesHeads) -> tuple[Timeline, Timeline]:
    """Around the ring, with Ulysses, heads are exchanged for rows."""
    size, element = plan.ulysses_size, cost.element_size
    width = heads.key * (cost.head_dim + cost.head_dim_v)  # numbers of a row of keys and values
    blocks = []
    for number, step in enumerate(plan.steps):
        fetched = None
        if number:
            before = plan.steps[number - 1]
            fetched = cost.send_seconds(max(len(before.send_index), before.receive_rows) * width * element)
        sent = len(step.send_index) + len(step.end_index)
        rows = max(sent, step.receive_rows + len(step.home_index))
        returned = cost.send_seconds(rows * width * FP32) if number else None
        blocks.append(_Block(number, step.area / size, fetched, returned))
    others, q_rows, k_rows = size - 1, plan.query.rows_per_rank, plan.key.rows_per_rank
    queries = others * q_rows * heads.query * cost.head_dim * element
    outputs = others * q_rows * heads.query * cost.head_dim_v * element
    keys = others * k_rows * width * element

    def played(name: str, seconds: Callable[[float], float], enter: float, leave: float, returns: bool) -> Timeline:
        clock = _Clock()
        if others:
            clock.wait(clock.exchange("heads", 0, cost.send_seconds(enter)))
        _play(clock, blocks, seconds, returns)
        if others:
            clock.exchange("heads", 0, cost.send_seconds(leave))
        return Timeline(name, tuple(clock.events))

    return (
        played("forward", cost.compute_seconds, queries + keys, outputs, returns=False),
        played("backward", cost.backward_seconds, outputs, queries + keys, returns=True),
    )
