"""Control flow of groups of lanes: they part at branches, meet at joins, and leave."""

from __future__ import annotations

import numpy as np

from ..code.node import Node
from ..state.groups import Group, Join
from ..state.lanes import mask_of
from .lifecycle import finish
from .machine import Machine


def branch(g: Group, node: Node) -> bool:
    """Moves the group; false if it parted into several."""
    if node.row < 0:
        g.pc = node.target
        return True
    taken = g.wg.files["p"][node.row][g.lanes.index]
    count = int(np.count_nonzero(taken))
    if count == g.lanes.count or count == 0:
        g.pc = node.target if (count > 0) != node.negated else node.next
        return True
    if node.negated:
        taken = ~taken
    mask = mask_of(g.lanes.lanes[taken])
    _part(g, node, mask)
    return False


def _part(g: Group, node: Node, taken: int) -> None:
    """Whole warps just go their ways; lanes of one warp will meet at the join."""
    through = torn = gone = 0
    for mask in g.parts():
        if mask & taken == mask:
            gone |= mask
        elif mask & taken == 0:
            through |= mask
        else:
            torn |= mask
    cta, wg = g.cta, g.wg
    groups = []
    if torn:
        join = Join(node.join, torn, g.join) if node.join is not None else g.join
        groups.append(Group(cta, wg, torn & ~taken, node.next, join))
        groups.append(Group(cta, wg, torn & taken, node.target, join))
    if through:
        groups.append(Group(cta, wg, through, node.next, g.join))
    if gone:
        groups.append(Group(cta, wg, gone, node.target, g.join))
    cta.ready.extend(groups)


def arrive(g: Group) -> None:
    """A group reached its join; whole warps go on from there."""
    join = g.join
    assert join is not None
    join.arrived |= g.mask
    done = join.complete()
    if done:
        g.cta.ready.append(Group(g.cta, g.wg, done, join.pc, join.parent))


def leave(machine: Machine, g: Group) -> None:
    """`ret`: the lanes are gone; joins do not wait for them."""
    cta, wg = g.cta, g.wg
    join = g.join
    while join is not None:
        join.expected &= ~g.mask
        join.arrived &= ~g.mask
        done = join.complete()
        if done:
            cta.ready.append(Group(cta, wg, done, join.pc, join.parent))
        join = join.parent
    cta.live[wg.index] &= ~g.mask
    if not any(cta.live):
        finish(machine, cta)
        return
    for barrier in cta.barriers:
        if barrier.everyone and barrier.arrived:
            barrier.expected = cta.threads_rounded()
            machine.wake(barrier.complete() or [])


def split(g: Group) -> None:
    """Every warp of a group on its own."""
    for mask in g.parts():
        g.cta.ready.append(Group(g.cta, g.wg, mask, g.pc, g.join))
