"""What the graph of a kernel's nodes says: where lanes that part meet again, and which tests only wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from . import system
from .node import BRANCH, EXIT, SEGMENT, SYSTEM, Node
from .rows import Rows
from .template import registers_written

NEAR = 24  # nodes among which a loop that polls must close


def successors(nodes: Sequence[Node], index: int) -> list[int]:
    node = nodes[index]
    if node.kind == EXIT:
        return []
    if node.kind == BRANCH:
        return [node.target] if node.row < 0 else [node.next, node.target]
    return [node.next]


def find_joins(nodes: Sequence[Node]) -> None:
    """Immediate post-dominators (Cooper, Harvey, Kennedy), with a virtual exit behind every `ret`."""
    count = len(nodes)
    predecessors: list[list[int]] = [[] for _ in range(count + 1)]
    for index in range(count):
        for successor in successors(nodes, index) or [count]:
            predecessors[successor].append(index)
    order, seen, work = [], {count}, [(count, iter(predecessors[count]))]
    while work:
        index, rest = work[-1]
        step = next((p for p in rest if p not in seen), None)
        if step is None:
            order.append(index)
            work.pop()
        else:
            seen.add(step)
            work.append((step, iter(predecessors[step])))
    number = {index: n for n, index in enumerate(order)}
    immediate = {count: count}
    changed = True
    while changed:
        changed = False
        for index in reversed(order[:-1]):
            known = [s for s in successors(nodes, index) or [count] if s in immediate]
            best = known[0]
            for other in known[1:]:
                while best != other:
                    while number[best] < number[other]:
                        best = immediate[best]
                    while number[other] < number[best]:
                        other = immediate[other]
            if immediate.get(index) != best:
                immediate[index] = best
                changed = True
    for index, node in enumerate(nodes):
        if node.kind == BRANCH and node.row >= 0:
            join = immediate.get(index, count)
            node.join = join if join < count else None


def find_spins(nodes: Sequence[Node], rows: Rows) -> None:
    """Which tests, when they fail, only lead back to themselves: those may as well wait."""
    for index, node in enumerate(nodes):
        if node.polls:
            node.spins = _may_return(nodes, index)
        elif node.kind == SYSTEM and node.operation is system.try_wait:
            returns = _fails_back(nodes, rows, index, node.detail[1][0])
            node.spins = _may_return(nodes, index) if returns is None else returns


def _fails_back(nodes: Sequence[Node], rows: Rows, start: int, row: int) -> bool | None:
    """Whether a test that left false in a predicate leads back to itself in any case; None if no branch is on it.

    The way that it takes when it succeeds is not looked at, however long it is and wherever it leads.
    """
    seen: set[int] = set()
    work, tested = [nodes[start].next], False
    while work:
        index = work.pop()
        if index == start or index in seen:
            continue
        seen.add(index)
        node = nodes[index]
        if node.kind == BRANCH and node.row == row:
            work.append(node.target if node.negated else node.next)
            tested = True
        elif is_idle(node) and not (node.kind == SEGMENT and _writes(node, rows, row)):
            work.extend(successors(nodes, index))
        elif node.operation is not system.trap:
            return False if tested else None
    return True if tested else None


def _writes(node: Node, rows: Rows, row: int) -> bool:
    written = (r for t in node.detail for r in registers_written(t))
    return any(r.kind == "p" and rows.row.get(r) == row for r in written)


def is_idle(node: Node) -> bool:
    """Whether a node changes nothing but registers."""
    if node.kind == SEGMENT:
        return not any(t.statement for t in node.detail)
    idle = (system.try_wait, system.memory_fence, system.nothing)
    return node.kind == BRANCH or (node.kind == SYSTEM and node.operation in idle)


def _may_return(nodes: Sequence[Node], start: int) -> bool:
    """Whether there is a short way back that changes nothing but registers; nearest nodes first."""
    seen: set[int] = set()
    work = deque([nodes[start].next])
    while work and len(seen) < NEAR:
        index = work.popleft()
        if index == start:
            return True
        if index not in seen:
            seen.add(index)
            if is_idle(nodes[index]):
                work.extend(successors(nodes, index))
    return False
