"""One multiprocessor: its consumer warpgroups play the loops of a kernel against each other, event by event.

The warpgroups are alike on the four sub-partitions, so one is played, with one warp of each warpgroup. What runs shares
the pipes of the sub-partition as fluids: while no pipe is overfull each runs as if alone; else all slow down alike. The
tensor cores take groups of products in the order in which they came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .kernel import PIPES, Step
from .machine import Machine

__all__ = ["Play", "Span", "play"]

_TINY = 1e-9


@dataclass(frozen=True)
class Span:
    """What a warpgroup, or the tensor cores for it, did from begin to end, in cycles: "run" or "products"."""

    warpgroup: int
    kind: str
    begin: float
    end: float


@dataclass(frozen=True)
class Play:
    """cycles: until the last warpgroup was through. spans: for a picture."""

    cycles: float
    spans: tuple[Span, ...]


@dataclass
class _Warpgroup:
    number: int
    steps: list[Step]
    at: int = 0
    left: float = 0.0  # of the step that runs, as a share
    alone: float = 0.0  # cycles it takes alone
    loads: tuple[float, ...] = ()  # shares of the pipes that it takes alone
    ready: float = 0.0  # not before: a latency
    groups: list[float] = field(default_factory=list)  # cycles left of each in the tensor cores
    came: list[float] = field(default_factory=list)  # when each did, for whose products go first
    turns: int = 0  # given to it
    met: int = 0
    sent: float = 0.0  # cycles left until its dQ is gone
    waiting: str = ""

    @property
    def done(self) -> bool:
        return self.at >= len(self.steps)


def play(passes: Sequence[Sequence[Step]], warpgroups: int, machine: Machine, sent_bytes: float = 0.0) -> Play:
    """Plays passes of a loop, one after another, from a standing start. sent_bytes: of dQ, of
    a warpgroup, that a step sends."""
    steps = [step for steps in passes for step in steps]
    groups = [_Warpgroup(number, steps) for number in range(warpgroups)]
    groups[0].turns = 1
    now, spans = 0.0, []
    while True:
        while sum(_advance(group, groups, now, machine, sent_bytes) for group in groups):
            pass
        if all(group.done and not group.groups for group in groups):
            break
        running = [group for group in groups if group.left > 0]
        first = min((group for group in groups if group.groups), key=lambda group: group.came[0], default=None)
        sending = [group for group in groups if group.sent > 0]
        load = [sum(group.loads[pipe] for group in running) for pipe in range(len(PIPES))]
        pace = 1 / max(1.0, *load)
        ends = [group.left * group.alone / pace for group in running]
        ends += [first.groups[0]] if first else []
        ends += [group.sent * len(sending) for group in sending]
        ends += [group.ready - now for group in groups if group.ready > now + _TINY]
        if not ends:
            raise RuntimeError(f"the model is stuck: {[(group.at, group.waiting) for group in groups]}")
        step = max(min(ends), _TINY)
        for group in running:
            group.left = max(0.0, group.left - step * pace / group.alone)
            spans.append(Span(group.number, "run", now, now + step))
            if group.left * group.alone < _TINY:
                group.left, group.at = 0.0, group.at + 1
        if first:
            first.groups[0] -= step
            spans.append(Span(first.number, "products", now, now + step))
            if first.groups[0] < _TINY:
                first.groups.pop(0)
                first.came.pop(0)
                first.ready = now + step + machine.wait_latency
        for group in sending:
            group.sent = max(0.0, group.sent - step / len(sending))
        now += step
    return Play(now, tuple(_joined(spans)))


def _advance(group: _Warpgroup, groups: list[_Warpgroup], now: float, machine: Machine, sent_bytes: float) -> bool:
    """Takes the next step if nothing keeps it; whether it did."""
    group.waiting = ""
    if group.done or group.left > 0:
        return False
    step = group.steps[group.at]
    if step.kind == "run":
        slots = step.work[0]
        group.alone = max(slots * machine.issue, *step.work[1:])
        group.loads = tuple(cycles / group.alone for cycles in step.work)
        group.left = 1.0
        return True
    others = [other for other in groups if other is not group]
    if step.kind == "products":
        group.groups.append(float(step.work[0]))
        group.came.append(now)
    elif step.kind == "wait" and (len(group.groups) > step.work[0] or group.ready > now + _TINY):
        group.waiting = "tensor"
    elif step.kind == "turn":
        if group.turns < 1:
            group.waiting = "turn"
        else:
            group.turns -= 1
    elif step.kind == "give":
        groups[(group.number + 1) % len(groups)].turns += 1
    elif step.kind == "meet":
        if group.met != group.at + 1:
            group.met = group.at + 1
            group.ready = max(group.ready, now + machine.turn_latency)
        if any(other.at < group.at and not other.done for other in others) or group.ready > now + _TINY:
            group.waiting = "meeting"
    elif step.kind == "staged" and group.sent > 0:
        group.waiting = "reduction"
    elif step.kind == "send":
        group.sent = sent_bytes * machine.reduction / machine.l2
    if group.waiting:
        return False
    group.at += 1
    return True


def _joined(spans: Sequence[Span]) -> list[Span]:
    """Those that touch as one."""
    last: dict[tuple[int, str], Span] = {}
    found = []
    for span in spans:
        key = (span.warpgroup, span.kind)
        before = last.get(key)
        if before is not None and span.begin - before.end < _TINY:
            last[key] = Span(*key, before.begin, span.end)
        else:
            if before is not None:
                found.append(before)
            last[key] = span
    return sorted([*found, *last.values()], key=lambda span: (span.begin, span.warpgroup))
