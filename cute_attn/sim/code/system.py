"""Instructions that synchronise, wait or start asynchronous work: barriers, mbarriers, copies, fences, wgmma groups.

Each becomes a node whose operation is called with (cta, group, node) and says whether the group goes on. A group that
waits runs the operation again when it is woken, unless the operation moved it on before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..addresses import OFFSET_MASK, RANK_SHIFT
from ..errors import Deadlock, OutOfBounds, OverArrival, UnsupportedInstruction
from ..state import products
from ..state.barriers import MBarrier
from ..state.cta import CTA
from ..state.fault import Fault
from ..state.flags import SCOPES
from ..state.groups import Group
from ..state.shared_memory import BARRIER, UNWRITTEN
from ..state.steps import ARRIVE, EXPECT, INIT, LOOK, MEET, PASS, WAIT, Thing
from . import async_stores, copies, tensor_maps
from .layout import Layout
from .node import Node
from .operands import fetcher, mbarrier_at, node_of, nothing, one_by_one, uniform
from .ptx import Mem, Reg
from .template import Reader, is_sink


def build(layout: Layout, r: Reader) -> Node | None:
    """The node of a synchronising instruction, None if it is none."""
    handler = _HANDLERS.get(r.instruction.name)
    return handler(layout, r) if handler else None


def trap(c: CTA, g: Group, node: Node) -> bool:
    return c.fail(UnsupportedInstruction, "the kernel reached a trap", node.detail[0], g)


# ---------------------------------------------------------------------- named barriers


def _bar(layout: Layout, r: Reader) -> Node:
    if r.flag("warp"):
        r.need("sync")
        r.done()
        r.count(1)
        return node_of(layout, r, _warp_sync, fetcher(layout, r, r.operands[0]))
    r.take("cta")
    if r.flag("cluster"):
        return _cluster_barrier(layout, r)
    action = r.need("sync", "arrive")
    r.done("aligned")
    r.count(1, 2)
    number = fetcher(layout, r, r.operands[0])
    count = fetcher(layout, r, r.operands[1]) if len(r.operands) > 1 else None
    if action == "arrive" and count is None:
        raise r.fail("arrive without a count")
    return node_of(layout, r, barrier_sync if action == "sync" else barrier_arrive, (number, count))


def _warp_sync(c: CTA, g: Group, node: Node) -> bool:
    site, mask = node.detail
    lanes = g.lanes
    if not lanes.whole:
        named = int(mask(c, g)[0]) & 0xFFFFFFFF
        here = np.zeros((lanes.warps, 32), bool)
        here[lanes.slot, lanes.lane] = True
        absent = (np.arange(32)[None, :] * 0 + (named >> np.arange(32) & 1)).astype(bool) & ~here & c.alive(g)
        if absent.any():
            c.diverged((site,), g, absent)
    return True


def _barrier_operands(c: CTA, g: Group, node: Node) -> tuple[int, int] | None:
    """Barrier number and thread count; None if its warps differ and the group was split."""
    site, (number, count) = node.detail
    which = uniform(number(c, g))
    expected = c.threads_rounded() if count is None else uniform(count(c, g))
    if which is None or expected is None:
        if g.lanes.warps > 1:
            one_by_one(g, node)
            return None
        c.fail(UnsupportedInstruction, "the lanes of a warp name different barriers", site, g)
    if not 0 <= which < 16:
        c.fail(OutOfBounds, f"barrier {which}; there are 16", site, g)
    if expected <= 0 or expected % 32:
        c.fail(OverArrival, f"a barrier of {expected} threads: not a multiple of a warp", site, g, f"barrier {which}")
    return which, expected


def barrier_sync(c: CTA, g: Group, node: Node) -> bool:
    operands = _barrier_operands(c, g, node)
    if operands is None:
        return False
    barrier = c.barriers[operands[0]]
    barrier.everyone = node.detail[1][1] is None
    barrier.told.tell(c.cluster.order.release(g.numbers))
    if c.world.recorder:
        _note_meeting(c, g, node, operands)
        c.world.recorder.note(c, g, node.detail[0], PASS, Thing("barrier", c.index, operands[0]))
    g.pc = node.next  # it goes on behind the barrier when it is woken
    try:
        woken = barrier.arrive(32 * g.lanes.warps, operands[1])
    except Fault as fault:
        c.raise_fault(fault, node.detail[0], g)
    c.world.progress += 1
    if woken is None:
        g.waits = (barrier, node)
        barrier.waiters.append(g)
    else:
        barrier.passed.to(g)
        c.world.wake([*woken, g])
    return False


def barrier_arrive(c: CTA, g: Group, node: Node) -> bool:
    operands = _barrier_operands(c, g, node)
    if operands is None:
        return False
    barrier = c.barriers[operands[0]]
    barrier.told.tell(c.cluster.order.release(g.numbers))
    if c.world.recorder:
        _note_meeting(c, g, node, operands)
    try:
        woken = barrier.arrive(32 * g.lanes.warps, operands[1])
    except Fault as fault:
        c.raise_fault(fault, node.detail[0], g)
    c.world.progress += 1
    if woken:
        c.world.wake(woken)
    return True


def _note_meeting(c: CTA, g: Group, node: Node, operands: tuple[int, int]) -> None:
    site, (_, count) = node.detail
    expected = 0 if count is None else operands[1]
    assert c.world.recorder is not None
    c.world.recorder.note(c, g, site, MEET, Thing("barrier", c.index, operands[0]), 32, expected)


# ---------------------------------------------------------------------- the barrier of a cluster


def _cluster_barrier(layout: Layout, r: Reader) -> Node:
    action = r.need("arrive", "wait")
    relaxed = r.flag("relaxed")
    r.done("release", "acquire", "aligned")
    r.count(0)
    return node_of(layout, r, cluster_arrive if action == "arrive" else cluster_wait, relaxed)


def cluster_arrive(c: CTA, g: Group, node: Node) -> bool:
    site, relaxed = node.detail
    cluster = c.cluster
    if c.world.recorder:
        c.world.recorder.note(c, g, site, MEET, Thing("cluster barrier", cluster.ctas[0].index), 32)
    if not relaxed:
        cluster.told.tell(cluster.order.release(g.numbers))
    for warp in g.warps:
        if (c.rank, warp) in cluster.arrived:
            c.fail(OverArrival, "a warp arrives twice at the cluster barrier in one phase", site, g, "cluster barrier")
        cluster.arrived.add((c.rank, warp))
        c.cluster_phase[warp] = cluster.phase
    c.world.progress += 1
    c.world.wake(cluster.settle())
    return True


def cluster_wait(c: CTA, g: Group, node: Node) -> bool:
    site, _ = node.detail
    phases = [c.cluster_phase.get(w) for w in g.warps]
    if None in phases:
        c.fail(Deadlock, "barrier.cluster.wait without an arrive", site, g, "cluster barrier")
    if all(p is not None and p < c.cluster.phase for p in phases):
        c.cluster.told.to(g)
        if c.world.recorder:
            c.world.recorder.note(c, g, site, PASS, Thing("cluster barrier", c.cluster.ctas[0].index))
        return True
    g.waits = ("the cluster barrier", node)
    c.cluster.waiters.append(g)
    return False


# ---------------------------------------------------------------------- mbarriers


def _mbarrier(layout: Layout, r: Reader) -> Node:
    action = r.need("init", "inval", "arrive", "arrive_drop", "expect_tx", "complete_tx", "test_wait", "try_wait")
    expects = action == "arrive" and r.flag("expect_tx")
    parity = r.flag("parity")
    r.take("shared", "shared::cta", "shared::cluster")
    r.need("b64") if "b64" in r.modifiers else None
    relaxed = r.flag("relaxed")
    r.done("release", "acquire", "cta", "cluster")
    operands = list(r.operands)
    if action in ("test_wait", "try_wait"):
        r.count(3, 4)
        result = operands[0]
        if not isinstance(result, Reg):
            raise r.fail("the result")
        tested = [fetcher(layout, r, o) for o in operands[1:3]]
        detail = (layout.rows.of(result), *tested, parity, relaxed)
        return node_of(layout, r, try_wait, detail)
    token = None
    if action in ("arrive", "arrive_drop") and not isinstance(operands[0], Mem):
        first = operands.pop(0)
        token = None if is_sink(first) else layout.rows.of(first)  # type: ignore[arg-type]
    address = fetcher(layout, r, operands[0])
    value = fetcher(layout, r, operands[1]) if len(operands) > 1 else None
    if action == "init":
        r.count(2)
        return node_of(layout, r, mbarrier_init, (address, value))
    if action == "inval":
        r.count(1)
        return node_of(layout, r, mbarrier_inval, address)
    if action in ("arrive_drop", "complete_tx"):
        raise r.fail("this operation")
    if len(operands) not in ((2,) if expects or action == "expect_tx" else (1, 2)):
        raise r.fail(f"{len(r.operands)} operands")
    return node_of(layout, r, mbarrier_arrive, (address, value, token, "bytes" if expects else action, relaxed))


def mbarrier_init(c: CTA, g: Group, node: Node) -> bool:
    site, (address, count) = node.detail
    try:
        for one, expected in dict(zip(address(c, g).tolist(), count(c, g).tolist(), strict=True)).items():
            offset = one & OFFSET_MASK
            if one >> RANK_SHIFT != c.rank:
                raise Fault(OutOfBounds, f"an mbarrier is initialised in CTA {one >> RANK_SHIFT} from CTA {c.rank}")
            c.shared.check(np.array([offset]), 8)
            if not 0 < expected < 1 << 20:
                raise Fault(OutOfBounds, f"an mbarrier of {expected} arrivals", f"mbarrier {offset:#x}")
            c.shared.check_writable(offset, offset + 8)
            c.mbarriers[offset] = barrier = MBarrier(offset, expected)
            if c.world.races:
                c.world.races.watch(c, barrier)
            if c.world.recorder:
                c.world.recorder.note(c, g, site, INIT, Thing("mbarrier", c.index, offset), expected)
            c.shared.code[offset : offset + 8] = BARRIER
    except Fault as fault:
        c.raise_fault(fault, site, g)
    c.world.progress += 1
    return True


def mbarrier_inval(c: CTA, g: Group, node: Node) -> bool:
    site, address = node.detail
    if c.world.recorder:
        c.world.recorder.refuse("mbarriers are invalidated")
    try:
        for one in set(address(c, g).tolist()):
            peer, barrier = mbarrier_at(c, one)
            del peer.mbarriers[barrier.address]
            peer.shared.code[barrier.address : barrier.address + 8] = UNWRITTEN
    except Fault as fault:
        c.raise_fault(fault, site, g)
    return True


def mbarrier_arrive(c: CTA, g: Group, node: Node) -> bool:
    site, (address, value, token, action, relaxed) = node.detail
    where = address(c, g)
    numbers = np.broadcast_to(value(c, g), where.shape) if value is not None else np.ones(where.shape, np.int64)
    woken: list[Any] = []
    try:
        for one in np.unique(where).tolist():
            peer, barrier = mbarrier_at(c, one)
            here = where == one
            if c.world.recorder:
                what = EXPECT if action == "expect_tx" else ARRIVE
                thing = Thing("mbarrier", peer.index, barrier.address)
                c.world.recorder.by_lanes(c, g, site, what, thing, here, numbers, action == "bytes")
            if action != "expect_tx" and not relaxed:
                barrier.told.tell(c.cluster.order.release(_numbers(g, here)))
            lanes, total = int(np.count_nonzero(here)), int(numbers[here].sum())
            if action in ("bytes", "expect_tx"):
                barrier.expecting = (site, g.warps)
            if token is not None:
                g.wg.files["d"][token][g.lanes.lanes[here]] = barrier.phase
            if action == "expect_tx":
                barrier.expect(total)
            elif action == "bytes":
                woken += barrier.arrive(lanes, total)
            else:
                woken += barrier.arrive(total)
    except Fault as fault:
        c.raise_fault(fault, site, g)
    c.world.progress += 1
    if woken:
        c.world.wake(woken)
    return True


def _numbers(g: Group, here: np.ndarray) -> list[int]:
    """The warps of a group that have lanes here, numbered through the cluster."""
    return g.numbers if here.all() else sorted({g.wg.number + w for w in g.lanes.warp[here].tolist()})


def try_wait(c: CTA, g: Group, node: Node) -> bool:
    """Waits if it is the test of a spin; elsewhere it is a look, which may say no too early in hostile schedules."""
    site, (row, address, phase, parity, relaxed) = node.detail
    where, wanted = address(c, g), phase(c, g)
    one, target = uniform(where), uniform(wanted)
    try:
        if one is not None and target is not None:
            barriers = [mbarrier_at(c, one)[1]]
            done: Any = _passed(barriers[0], target, parity)
            first_waiting = None if done else barriers[0]
        else:
            barriers = [mbarrier_at(c, a)[1] for a in where.tolist()]
            done = np.array([_passed(b, t, parity) for b, t in zip(barriers, wanted.tolist(), strict=True)])
            first_waiting = next((b for b, d in zip(barriers, done, strict=True) if not d), None)
    except Fault as fault:
        c.raise_fault(fault, site, g)
    if first_waiting is not None and node.spins:
        if (one is None or target is None) and g.lanes.warps > 1:
            one_by_one(g, node)
            return False
        g.waits = (first_waiting, node)
        first_waiting.waiters.append(g)
        return False
    if first_waiting is None and not node.spins and c.world.look_away(g):
        done = False
    if first_waiting is None and not relaxed:
        for barrier in set(barriers):
            barrier.told.to(g)
    if first_waiting is None and done is not False and c.world.recorder:
        c.world.recorder.waits(c, g, site, WAIT if node.spins else LOOK, where & OFFSET_MASK, wanted & 1)
        g.denied = -1  # the next look, however often it comes by here, is told no once more
    g.wg.files["p"][row][g.lanes.index] = done
    if first_waiting is not None and not c.world.poll(g):
        return False
    g.pc = node.next
    g.waits = None
    return True


def _passed(barrier: MBarrier, wanted: int, parity: bool) -> bool:
    return (barrier.phase & 1) != (wanted & 1) if parity else barrier.phase > wanted


# ---------------------------------------------------------------------- fences, wgmma groups, the rest


_FENCE_MODIFIERS: tuple[str, ...] = (
    "sc",
    "acq_rel",
    "acquire",
    "release",
    "mbarrier_init",
    "cta",
    "cluster",
    "gpu",
    "sys",
    "gl",
)
_FENCE_MODIFIERS += ("sync_restrict::shared::cta", "sync_restrict::shared::cluster")


def _fence(layout: Layout, r: Reader) -> Node:
    if "tensormap::generic" not in r.modifiers:
        r.count(0)
    if r.flag("proxy"):
        if "async" in r.modifiers:
            r.need("async")
            space = r.take("shared::cta", "shared::cluster", "global")
            r.done()
            return node_of(layout, r, proxy_fence, space)
        if "tensormap::generic" in r.modifiers:
            return tensor_maps.fence(layout, r)
        r.need("alias")
        r.done()
        return node_of(layout, r, nothing)
    names = set(r.modifiers)
    r.done(*_FENCE_MODIFIERS)
    if any(name.startswith(("mbarrier_init", "sync_restrict")) for name in names):
        return node_of(layout, r, nothing)
    scope = next((SCOPES[name] for name in SCOPES if name in names), SCOPES["gpu"])  # membar.gl, and what has none
    return node_of(layout, r, memory_fence, scope)


def memory_fence(c: CTA, g: Group, node: Node) -> bool:
    """fence.acq_rel and its kin: only flags in global memory depend on it, and only races on these."""
    if c.world.races:
        for warp in g.numbers:
            c.world.races.flags.fence(c, warp, node.detail[1])
    return True


def proxy_fence(c: CTA, g: Group, node: Node) -> bool:
    """Of the shared memory of all CTAs or of this one alone, of global memory, or of both."""
    _, space = node.detail
    ctas = c.cluster.order.ctas
    memories = {
        "shared::cta": slice(c.rank, c.rank + 1),
        "shared::cluster": slice(ctas),
        "global": slice(ctas, None),
        None: slice(None),
    }
    c.cluster.order.fence(g.numbers, memories[space])
    return True


def _wgmma(layout: Layout, r: Reader) -> Node | None:
    if "mma_async" in r.modifiers:
        return None
    action = r.need("fence", "commit_group", "wait_group")
    r.need("sync")
    r.need("aligned")
    r.done()
    if action == "wait_group":
        return node_of(layout, r, wgmma_wait, r.constant())
    r.count(0)
    return node_of(layout, r, wgmma_fence if action == "fence" else wgmma_commit)


def wgmma_fence(c: CTA, g: Group, node: Node) -> bool:
    for warp in g.lanes.warp_numbers:
        state = g.wg.state[warp]
        state.dirty, state.constant, state.read, state.fenced = 0, 0, 0, True
    return True


def wgmma_commit(c: CTA, g: Group, node: Node) -> bool:
    for warp in g.lanes.warp_numbers:
        state = g.wg.state[warp]
        entries, state.open = state.open, []
        state.committed.append(entries)
        if c.world.multiplies_at_commit():
            products.execute(c, g, entries)
    return True


def wgmma_wait(c: CTA, g: Group, node: Node) -> bool:
    products.retire(c, g, node.detail[1])
    return True


def _setmaxnreg(layout: Layout, r: Reader) -> Node:
    action = r.need("inc", "dec")
    r.done("sync", "aligned", "u32")
    r.count(1)
    return node_of(layout, r, move_registers, (action, r.constant()))


def move_registers(c: CTA, g: Group, node: Node) -> bool:
    """Gives registers back to the CTA, or takes more of it and waits until there are so many."""
    site, (action, count) = node.detail
    if c.registers is None:  # ptxas ignores it
        return True
    wanted = c.registers.wanted(g.warps, count)
    if wanted < 0 if action == "inc" else wanted > 0:
        c.fail(
            UnsupportedInstruction,
            f"{action} to {count} registers a thread by warps with {c.registers.owned[g.warps[0]]}",
            site,
            g,
        )
    if not c.registers.move(g.warps, count):
        g.waits = (c.registers, node)
        c.registers.waiters.append(g)
        return False
    if action == "dec":
        woken, c.registers.waiters = c.registers.waiters, []
        c.world.progress += 1
        c.world.wake(woken)
    return True


def _simple(operands: int, *allowed: str) -> Callable[[Any, Reader], Any]:
    """Instructions without effect here: dependent launches, hints, sleep."""

    def handler(layout: Layout, r: Reader) -> Node:
        r.done(*allowed)
        r.count(operands)
        return node_of(layout, r, nothing)

    return handler


def _cp(layout: Layout, r: Reader) -> Node:
    return copies.build(layout, r)


def _st(layout: Layout, r: Reader) -> Node | None:
    return async_stores.build(layout, r) if "async" in r.modifiers else None


_HANDLERS: dict[str, Callable[[Any, Reader], Any]] = {
    "st": _st,
    "tensormap": tensor_maps.build,
    "bar": _bar,
    "barrier": _bar,
    "mbarrier": _mbarrier,
    "fence": _fence,
    "membar": _fence,
    "wgmma": _wgmma,
    "setmaxnreg": _setmaxnreg,
    "griddepcontrol": _simple(0, "wait", "launch_dependents"),
    "nanosleep": _simple(1, "u32"),
    "cp": _cp,
}
