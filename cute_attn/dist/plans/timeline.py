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
from .group_cast import CastPlan, plan_placed_group_cast
from .heads import UlyssesHeads, ulysses_heads
from .placed import PlacedMask
from .predict import MoverPrediction
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

TIMED = ("group_cast", "ring", "ulysses", "ulysses_ring")  # movers that have timelines
LANES = ("heads", "keys", "attend", "dK, dV")
BACKWARD = 2.5  # times the forward's products
FP32 = 4  # bytes, of gradients on their way
COLORS = dict(zip(LANES, ("#b0bec5", "#ef9b33", "#5fa3bf", "#8fbf6f"), strict=True))
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
    if mover == "group_cast":
        return _of_cast(plan_placed_group_cast(placed, rank, overlap, cost), cost)
    size = {"ring": 1, "ulysses": placed.world}.get(mover, ulysses_size or 1)
    return _of_ring(plan_placed_ring(placed, rank, size), cost, ulysses_heads(cost.heads_q, cost.heads_k, size))


def slowest_rank(placed: PlacedMask, cost: CostModel, prediction: MoverPrediction) -> int:
    """The rank with most attention and most bytes, together."""
    moved = prediction.bytes_sent.maximum(prediction.bytes_received)
    seconds = [
        cost.compute_seconds(area) + cost.send_seconds(size)
        for area, size in zip(placed.areas.tolist(), moved.tolist(), strict=True)
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
    """Keys that a rank attends at once. fetched: bytes of them that travel, the larger of both ways, None if nothing
    does; returned: of their gradients, likewise."""

    number: int
    area: float
    fetched: float | None
    returned: float | None


class _Clock:
    """Two queues: attention, and exchanges one after another. What is asked for begins when its queue is free and what
    attention was asked for before it is done, as on a GPU whose streams wait for one another."""

    def __init__(self, cost: CostModel) -> None:
        self._cost = cost
        self._attention = self._network = 0.0
        self.events: list[Event] = []

    def exchange(self, lane: str, block: int, size: float) -> float:
        """When it is over."""
        begin = max(self._network, self._attention)
        self._network = begin + self._cost.send_seconds(size)
        self.events.append(Event(lane, block, begin, self._network))
        return self._network

    def attend(self, block: int, seconds: float) -> None:
        if seconds:
            self.events.append(Event("attend", block, self._attention, self._attention + seconds))
            self._attention += seconds

    def wait(self, until: float) -> None:
        """Attention waits."""
        self._attention = max(self._attention, until)


def _play(clock: _Clock, blocks: Sequence[_Block], seconds: Callable[[float], float], returns: bool) -> None:
    """Blocks come and are attended, each while the next is on its way; their gradients return, if they do."""
    arrival = 0.0 if blocks[0].fetched is None else clock.exchange("keys", blocks[0].number, blocks[0].fetched)
    under_way = 0.0
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        clock.wait(arrival)
        if following is not None and following.fetched is not None:
            arrival = clock.exchange("keys", following.number, following.fetched)
        clock.attend(block.number, seconds(block.area))
        if returns and block.returned is not None:
            clock.wait(under_way)
            under_way = clock.exchange("dK, dV", block.number, block.returned)
    clock.wait(under_way)


def _of_cast(plan: CastPlan, cost: CostModel) -> tuple[Timeline, Timeline]:
    fp32 = cost.key_bytes / cost.element_size * FP32
    blocks = []
    for number, stage in enumerate(plan.stages):
        rows = max(sum(stage.send_splits), sum(stage.receive_splits)) if stage.communicates else None
        fetched, returned = (None, None) if rows is None else (rows * cost.key_bytes, rows * fp32)
        blocks.append(_Block(number, stage.area, fetched, returned))
    forward, backward = _Clock(cost), _Clock(cost)
    _play(forward, blocks, cost.compute_seconds, returns=False)
    _play(backward, blocks[::-1], lambda area: BACKWARD * cost.compute_seconds(area), returns=True)
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
            fetched = max(len(before.send_index), before.receive_rows) * width * element
        sent = len(step.send_index) + len(step.end_index)
        returned = max(sent, step.receive_rows + len(step.home_index)) * width * FP32 if number else None
        blocks.append(_Block(number, step.area / size, fetched, returned))
    others, q_rows, k_rows = size - 1, plan.query.rows_per_rank, plan.key.rows_per_rank
    queries = others * q_rows * heads.query * cost.head_dim * element
    outputs = others * q_rows * heads.query * cost.head_dim_v * element
    keys = others * k_rows * width * element

    def played(name: str, factor: float, enter: float, leave: float, returns: bool) -> Timeline:
        clock = _Clock(cost)
        if others:
            clock.wait(clock.exchange("heads", 0, enter))
        _play(clock, blocks, lambda area: factor * cost.compute_seconds(area), returns)
        if others:
            clock.exchange("heads", 0, leave)
        return Timeline(name, tuple(clock.events))

    return (
        played("forward", 1.0, queries + keys, outputs, returns=False),
        played("backward", BACKWARD, outputs, queries + keys, returns=True),
    )
