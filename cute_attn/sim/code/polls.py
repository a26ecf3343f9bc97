"""What a spin over a counter in global memory waits for, read off the comparison behind its load."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..formats import WIDTH
from ..state.cta import CTA
from ..state.groups import Group
from ..state.steps import COMPARISONS, signed
from .control_flow import NEAR, is_idle, successors
from .node import BRANCH, SEGMENT, Node
from .operands import Fetch, fetcher, uniform
from .ptx import Reg
from .template import Reader, registers_written

_SIGNS = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
_NEGATED = {"eq": "ne", "ne": "eq", "lt": "ge", "ge": "lt", "le": "gt", "gt": "le"}
_MIRRORED = {"eq": "eq", "ne": "ne", "lt": "gt", "gt": "lt", "le": "ge", "ge": "le"}


@dataclass(frozen=True)
class Poll:
    """A load that is compared, and looked at again until the comparison holds."""

    site: int
    address: Fetch
    found: Fetch
    bound: Fetch
    comparison: str  # of what was found with the bound, when the spin ends
    bits: int
    is_signed: bool

    def number(self, value: int) -> int:
        return signed(value, self.bits) if self.is_signed else value & (1 << self.bits) - 1


@functools.lru_cache(maxsize=256)
def poll_of(program: Any, index: int) -> Poll | str | None:
    """What a segment that is a polled load waits for; why it is not known; None if it waits for nothing."""
    node: Node = program.nodes[index]
    load = node.detail[0].instruction
    again = f"PTX line {load.line} spins in a way that is not followed: {load.text}"
    tested = program.nodes[node.next]
    branch = program.nodes[tested.next] if tested.kind == SEGMENT else tested
    if branch.kind != BRANCH or branch.row < 0:
        return again if node.spins else None
    ways = {way: _polls_next(program.nodes, way, index) for way in (branch.next, branch.target)}
    if not any(ways.values()):
        return again if node.spins else None
    tests = [t.instruction for t in tested.detail if t.instruction.name == "setp"] if tested.kind == SEGMENT else []
    if all(ways.values()) or load.name != "ld" or "global" not in load.modifiers or len(tests) != 1:
        return again
    (test,), (loaded, place) = tests, load.operands
    predicate, *compared = test.operands
    name = _SIGNS.get(test.modifiers[0], test.modifiers[0])
    if not isinstance(loaded, Reg) or not isinstance(predicate, Reg) or program.rows.of(predicate) != branch.row:
        return again
    if loaded not in compared or len(compared) != 2 or name not in _NEGATED:
        return again
    bound = compared[1 - compared.index(loaded)]
    if any(register in (loaded, bound) for t in tested.detail for register in registers_written(t)):
        return again
    ends = ways[branch.next] != branch.negated  # where the branch is taken the spin ends, and it is not negated
    comparison = name if compared[0] == loaded else _MIRRORED[name]
    layout, reader = program.layout, Reader(program.kernel.name, test)
    return Poll(
        layout.sites[id(load)],
        fetcher(layout, reader, place),
        fetcher(layout, reader, loaded),
        fetcher(layout, reader, bound),
        comparison if ends else _NEGATED[comparison],
        WIDTH[test.modifiers[-1]],
        test.modifiers[-1].startswith("s") or name in ("eq", "ne"),
    )


def note_poll(c: CTA, g: Group, poll: Poll | str, address: np.ndarray | None) -> None:
    """After a look, from where this group looked: whoever looks no more has waited for the counter."""
    recorder = c.world.recorder
    assert recorder is not None
    if isinstance(poll, str):
        recorder.refuse(poll)
        return
    assert address is not None
    where, found, bound = uniform(address), uniform(poll.found(c, g)), uniform(poll.bound(c, g))
    if where is None or found is None or bound is None:
        line = c.translation.place(poll.site).line
        recorder.refuse(f"the lanes of PTX line {line} look at several counters, or wait for several numbers")
        return
    numbers = poll.number(found), poll.number(bound)
    if COMPARISONS[poll.comparison](*numbers):
        recorder.until(c, g, poll.site, where, poll.bits // 8, *numbers, poll.comparison)


def _polls_next(nodes: Sequence[Node], start: int, load: int) -> bool:
    """Whether this way leads, by nothing but registers, to a load that spins, or back to this one."""
    seen: set[int] = set()
    work = deque([start])
    while work and len(seen) < NEAR:
        index = work.popleft()
        if index == load or (nodes[index].polls and nodes[index].spins):
            return True
        if index not in seen:
            seen.add(index)
            if is_idle(nodes[index]):
                work.extend(successors(nodes, index))
    return False
