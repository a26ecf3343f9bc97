"""What synchronising instructions share: reading their operands, finding an mbarrier, making their node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..addresses import OFFSET_MASK, RANK_SHIFT
from ..errors import Misaligned, OutOfBounds
from ..state.barriers import MBarrier
from ..state.cta import CTA
from ..state.fault import Fault
from ..state.groups import Group
from .layout import Layout
from .node import SYSTEM, Node
from .ptx import Imm, Mem, Operand, Reg, Sym
from .template import Reader

Fetch = Callable[[Any, Any], np.ndarray]


def fetcher(layout: Layout, r: Reader, operand: Operand, offset: int = 0) -> Fetch:
    """A function of (cta, group) that gives an operand's value in every lane that runs, as int64."""
    if isinstance(operand, Mem):
        return fetcher(layout, r, operand.base, operand.offset)
    if isinstance(operand, Imm):
        if operand.width:
            raise r.fail("a floating-point number")
        constants = np.full(128, operand.bits % (1 << 64), np.uint64).view(np.int64) + offset
        return lambda c, g: constants[: g.lanes.count]
    if isinstance(operand, Reg):
        row, kind = layout.rows.of(operand), operand.kind
        if kind == "r" and offset:  # the sum has the bits of the register
            return lambda c, g: (g.wg.files[kind][row][g.lanes.index].astype(np.int64) + offset) & 0xFFFFFFFF
        return lambda c, g: g.wg.files[kind][row][g.lanes.index].astype(np.int64) + offset
    if isinstance(operand, Sym):
        code = compile(layout.symbol(operand.name, "u64"), "<symbol>", "eval")
        return lambda c, g: np.broadcast_to(
            eval(code, {"np": np, "c": c, "V": g.lanes}).astype(np.int64) + offset, g.lanes.count
        )
    raise r.fail(f"operand {operand}")


def uniform(values: np.ndarray) -> int | None:
    """The value that all lanes hold, None if they differ."""
    first = int(values[0])
    return first if values.size == 1 or bool((values == first).all()) else None


def node_of(layout: Layout, r: Reader, operation: Callable[..., bool], detail: Any = None) -> Node:
    return Node(SYSTEM, r.instruction, operation=operation, detail=(layout.sites[id(r.instruction)], detail))


def nothing(c: CTA, g: Group, node: Node) -> bool:
    """Changes nothing that is modelled."""
    return True


def mbarrier_at(c: CTA, address: int) -> tuple[CTA, MBarrier]:
    """The mbarrier at a shared address, here or in a peer."""
    offset = address & OFFSET_MASK
    peer = c.peer(address >> RANK_SHIFT, offset)
    barrier = peer.mbarriers.get(offset)
    if barrier is None:
        if offset % 8:
            raise Fault(Misaligned, f"an mbarrier at {offset:#x}, not a multiple of 8", f"mbarrier {offset:#x}")
        peer.shared.check(np.array([offset]), 8)
        raise Fault(OutOfBounds, f"no mbarrier was initialised at shared address {offset:#x}", f"mbarrier {offset:#x}")
    return peer, barrier


def one_by_one(g: Group, node: Node) -> None:
    """Runs an operation for every warp of a group on its own: its operands differ among them."""
    assert node.operation is not None
    for mask in g.parts():
        part = Group(g.cta, g.wg, mask, g.pc, g.join)
        if node.operation(g.cta, part, node):
            part.pc = node.next
            g.cta.ready.append(part)
