"""The cp instructions: cp.async, bulk and tensor copies, their groups, and how a thread waits for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..addresses import OFFSET_MASK, PARAM_BASE, RANK_SHIFT
from ..errors import CopyInFlight, OutOfBounds, RedundantReduction, UnsupportedDescriptor, UnsupportedInstruction
from ..state.cta import CTA
from ..state.epochs import IN_FLIGHT as NEVER
from ..state.fault import Fault
from ..state.groups import Group
from ..state.im2col import Pixels
from ..state.order import Accessor
from ..state.rounding import UNIT
from ..state.shared_memory import IN_FLIGHT, granules
from ..state.shared_traffic import STORE
from ..state.steps import COPY, Thing
from ..state.tensor_map import Box, Span, TensorMap, decode_map
from ..state.transfers import Load, SharedSource, Store, Target
from .layout import Layout
from .node import Node
from .operands import fetcher, mbarrier_at, node_of, nothing
from .ptx import Imm, Mem, Reg, Vec
from .template import Reader
from .tensor_maps import check_acquired

_REDUCTIONS = ("add", "min", "max", "inc", "dec", "and", "or", "xor")
_TYPES = {
    "f32": "f4",
    "f64": "f8",
    "f16": "f2",
    "bf16": "bf16",
    "u32": "u4",
    "s32": "i4",
    "u64": "u8",
    "s64": "i8",
    "b32": "u4",
}


@dataclass
class Queue:
    """Bulk or classic asynchronous copies of one thread, in groups."""

    open: list[Any] = field(default_factory=list)
    groups: list[list[Any]] = field(default_factory=list)


def build(layout: Layout, r: Reader) -> Node:
    """The node of a cp instruction."""
    reduces = r.flag("reduce")
    r.need("async")
    if not r.flag("bulk"):
        return _classic(layout, r)
    if r.flag("commit_group"):
        r.done()
        r.count(0)
        return node_of(layout, r, bulk_commit)
    if r.flag("wait_group"):
        read = r.flag("read")
        r.done()
        return node_of(layout, r, bulk_wait, (r.constant(), read))
    if r.flag("prefetch"):
        tensor = r.flag("tensor")
        r.need("L2")
        r.need("global")
        r.done("L2::cache_hint", *(("1d", "2d", "3d", "4d", "5d", "tile", "im2col") if tensor else ()))
        r.count((1 if tensor and "im2col" not in r.instruction.modifiers else 2) + r.hints)
        return node_of(layout, r, nothing)
    operation = r.need(*_REDUCTIONS) if reduces else None
    tensor = r.flag("tensor")
    rank = int(r.need("1d", "2d", "3d", "4d", "5d")[0]) if tensor else 0
    pixels = tensor and r.take("im2col", "im2col_no_offs") is not None
    if not pixels:
        r.take("tile")
    kind = None if tensor or not reduces else r.need(*_TYPES)
    r.flag("noftz")
    multicast = r.flag("multicast::cluster")
    r.flag("L2::cache_hint")
    spaces = [m for m in r.modifiers if m in ("shared::cta", "shared::cluster", "global")]
    for space in spaces:
        r.modifiers.remove(space)
    r.need("bulk_group" if spaces[0] == "global" else "mbarrier::complete_tx::bytes")
    r.done()
    return _bulk(layout, r, spaces, rank, operation, kind, multicast, pixels)


def _bulk(
    layout: Layout,
    r: Reader,
    spaces: list[str],
    rank: int,
    operation: str | None,
    kind: str | None,
    multicast: bool,
    pixels: bool,
) -> Node:
    def get(index: int) -> Any:
        return fetcher(layout, r, r.operands[index])

    def coordinates(index: int) -> list[Any]:
        memory = r.operands[index]
        if not isinstance(memory, Mem) or len(memory.coordinates) != rank:
            raise r.fail(f"{rank} coordinates")
        return [fetcher(layout, r, o) for o in memory.coordinates]

    def offsets(index: int) -> list[Any] | None:
        vector = r.operands[index] if pixels else None
        if pixels and (not isinstance(vector, Vec) or len(vector.items) != rank - 2):
            raise r.fail(f"{rank - 2} offsets")
        items = vector.items if isinstance(vector, Vec) else ()
        if any(not isinstance(o, Imm) and not (isinstance(o, Reg) and o.kind == "h") for o in items):
            raise r.fail("offsets that are no numbers of 16 bits")
        return [fetcher(layout, r, o) for o in items] if pixels else None

    to, source = spaces
    loads = to != "global"
    if multicast and not loads:
        raise r.fail("modifier .multicast::cluster")
    needed = 2 + loads + pixels * loads if rank else 3 + loads
    r.count(needed + multicast + r.hints)
    mode = "im2col_no_offs" if to == "global" else "im2col"
    if pixels and (rank < 3 or mode not in r.instruction.modifiers):
        raise r.fail("this mode")
    if to == "global":
        if rank:
            return node_of(layout, r, bulk_store, (get(0), coordinates(0), get(1), None, operation, None, pixels))
        return node_of(layout, r, bulk_store, (get(0), None, get(1), get(2), operation, kind, False))
    if operation is not None:
        raise r.fail("a reduction into shared memory")
    if rank:
        mask = get(needed) if multicast else None
        detail = (get(0), get(1), coordinates(1), None, get(2), mask, "global", offsets(3))
        return node_of(layout, r, bulk_load, detail)
    mask = get(needed) if multicast else None
    return node_of(layout, r, bulk_load, (get(0), get(1), None, get(2), get(3), mask, source, None))


# ---------------------------------------------------------------------- loads


def tensor_map(c: CTA, address: int) -> TensorMap:
    """The map at a generic address: among the kernel parameters, or in global memory."""
    if among_parameters(c, address):
        raw = c.world.parameters[address - PARAM_BASE :][:128].tobytes()
    else:
        check_acquired(c, address)
        raw = b"".join(int(x).to_bytes(8, "little") for x in c.world.memory.load(address + 8 * np.arange(16), 8))
    if address % 64:
        raise Fault(UnsupportedDescriptor, f"a tensor map at {address:#x}, not a multiple of 64")
    return decode_map(raw[:64])


def among_parameters(c: CTA, address: int) -> bool:
    return 0 <= address - PARAM_BASE <= c.world.parameters.size - 128


def _part(c: CTA, address: int, coordinates: list[int], offsets: list[int] | None) -> Box | Pixels:
    """What a tensor copy brings through the map at an address; with offsets, in im2col mode."""
    shape = tensor_map(c, address)
    if shape.rank != len(coordinates):
        raise Fault(UnsupportedDescriptor, f"{len(coordinates)} coordinates for a tensor map of rank {shape.rank}")
    if (shape.window is None) != (offsets is None):
        modes = ("tile", "im2col") if offsets is None else ("im2col", "tile")
        raise Fault(UnsupportedDescriptor, f"a copy in {modes[0]} mode through a tensor map in {modes[1]} mode")
    if offsets is None:
        return Box(shape, tuple(coordinates))
    largest = (1 << 16 // (shape.rank - 2)) - 1
    if not all(0 <= x <= largest for x in offsets):
        what = f"im2col offsets {tuple(offsets)}: of a tensor map of rank {shape.rank} they are 0 to {largest}"
        raise Fault(UnsupportedDescriptor, what)
    return Pixels(shape, tuple(coordinates), tuple(offsets))


def _rows(values: list[np.ndarray]) -> list[tuple[int, ...]]:
    """One tuple a lane."""
    return list(zip(*(v.tolist() for v in values), strict=True))


def bulk_load(c: CTA, g: Group, node: Node) -> bool:
    site, (to, source, coordinates, size, barrier, mask, space, offsets) = node.detail
    columns = [to(c, g), source(c, g), barrier(c, g)]
    columns.append(size(c, g) if size else columns[0] * 0)
    columns.append(mask(c, g) if mask else columns[0] * 0)
    columns += [*(_signed(x(c, g)) for x in coordinates or ()), *(x(c, g) for x in offsets or ())]
    rank, pixels = len(coordinates or ()), offsets is not None
    try:
        for row, warp in zip(_rows(columns), g.lanes.warp.tolist(), strict=True):
            _start_load(c, g, site, row, warp, rank=rank, pixels=pixels, multicast=mask is not None, space=space)
    except Fault as fault:
        c.raise_fault(fault, site, g)
    return True


def _signed(values: np.ndarray) -> np.ndarray:
    return values.astype(np.int32).astype(np.int64)


def _start_load(
    c: CTA,
    g: Group,
    site: int,
    row: tuple[int, ...],
    warp: int,
    *,
    rank: int,
    pixels: bool,
    multicast: bool,
    space: str,
) -> None:
    to, source, barrier, size, mask, *where = row
    what: Any
    swizzle = through = 0
    if rank:
        what = _part(c, source, where[:rank], where[rank:] if pixels else None)
        through = 0 if among_parameters(c, source) else source
        size, swizzle = what.map.box_bytes, what.map.swizzle
    elif space == "global":
        what = Span(source, size)
    else:
        what = SharedSource(c.shared, source & OFFSET_MASK, size)
        what.shared.check_range(what.first, what.first + size)
        own = Accessor(c.cluster.order, [g.wg.number + warp], c.rank)
        what.shared.check_ordered(granules(what.first, what.first + size), own, "read")
    if size % 16 or size <= 0:
        raise Fault(UnsupportedInstruction, f"a bulk copy of {size} bytes: not a multiple of 16")
    ranks = [i for i in range(16) if mask >> i & 1] if multicast else [to >> RANK_SHIFT]
    if not ranks:
        raise Fault(UnsupportedInstruction, "a multicast to no CTA: the mask is 0")
    offset = barrier & OFFSET_MASK
    targets = []
    for rank in ranks:
        peer = c.peer(rank, to & OFFSET_MASK)
        home = rank if multicast else barrier >> RANK_SHIFT
        accessor = Accessor(c.cluster.order, [g.wg.number + warp], rank)
        if c.world.recorder:
            thing = Thing("mbarrier", c.cluster.ctas[home].index, offset)
            c.world.recorder.take(c, 4 * g.wg.index + warp, site, COPY, thing, size)
        targets.append(Target(peer.shared, to & OFFSET_MASK, mbarrier_at(c, home << RANK_SHIFT | offset)[1], accessor))
    place = c.translation.place(site, c.cluster.ctas[ranks[0]].index)
    if c.world.races:
        for target in targets:
            c.world.races.issued(target.barrier, g.wg.number + warp)
    if c.world.races and not isinstance(what, SharedSource):
        c.world.races.copy_in(c, g.wg.number + warp, site, what, [target.barrier for target in targets])
    load = Load(what, size, swizzle, targets, place, f"PTX line {place.line}, warp {g.warps[0]}", site)
    if through:
        c.world.maps.load(c, through, load)
    c.world.start(load)


# ---------------------------------------------------------------------- stores and reductions


def bulk_store(c: CTA, g: Group, node: Node) -> bool:
    site, (to, coordinates, source, size, operation, kind, pixels) = node.detail
    columns = [to(c, g), source(c, g), size(c, g) if size else source(c, g) * 0]
    columns += [_signed(x(c, g)) for x in coordinates or ()]
    rows = _rows(columns)
    seen: dict[tuple[int, ...], int] = {}
    try:
        for position, row in enumerate(rows):
            lane = int(g.lanes.lanes[position])
            if row in seen:
                _repeated(c, g, site, row, operation, (seen[row], lane))
                continue
            seen[row] = lane
            store = _make_store(c, g, site, row, operation, kind, tensor=coordinates is not None, pixels=pixels)
            warp = g.wg.number + lane // 32
            store.begin(Accessor(c.cluster.order, [warp], c.rank))
            if c.world.races:
                adds = operation == "add" and store.target.type in UNIT
                reduces = operation is not None
                store.noted = c.world.races.copy_out(c, warp, site, store.target, reduces=reduces, adds=adds)
            if operation is not None:
                _note_reduction(c, g, site, row, store, lane)
            if store.through:
                c.world.maps.store(c, store.through, warp, store)
            c.bulk.setdefault((g.wg.index, lane), Queue()).open.append(store)
            c.world.begin_store(store)
    except Fault as fault:
        c.raise_fault(fault, site, g)
    c.world.statistics["copies"] += len(seen)
    c.world.progress += 1
    return True


def _repeated(c: CTA, g: Group, site: int, row: tuple[int, ...], operation: str | None, lanes: tuple[int, int]) -> None:
    """Two lanes issue the same: wrong for a reduction; a store is made once a warp, for all of its lanes that agree."""
    first, second = (4 * g.wg.index + lane // 32 for lane in lanes)
    if operation is None:
        if first != second:
            c.world.warn("several warps issue the same bulk store: harmless, but each costs", c.place(site, g))
        return
    who = (
        f"warps {first} and {second}"
        if first != second
        else f"lanes {lanes[0] % 32} and {lanes[1] % 32} of warp {first}"
    )
    subject = f"shared {row[1] & OFFSET_MASK:#x}"
    raise Fault(RedundantReduction, f"{who} issue the same bulk {operation} of {subject}", subject)


def _note_reduction(c: CTA, g: Group, site: int, row: tuple[int, ...], store: Store, lane: int) -> None:
    """The same reduction again, by another warp, of bytes that nobody wrote since: once too often."""
    key, warp, shared = (site, row), 4 * g.wg.index + lane // 32, store.shared
    first, clock = c.reductions.get(key, (warp, 0))
    newest = int(shared.stamp[store.first >> 4 : (store.first + store.size) >> 4].max())
    if first != warp and newest <= clock:
        what = f"warps {first} and {warp} issue the same bulk {store.operation} of the same bytes"
        raise Fault(RedundantReduction, what, f"shared {store.first:#x}", [str(store)])
    c.reductions[key] = (warp, shared.clock)


def _make_store(
    c: CTA,
    g: Group,
    site: int,
    row: tuple[int, ...],
    operation: str | None,
    kind: str | None,
    *,
    tensor: bool,
    pixels: bool,
) -> Store:
    to, source, size, *coordinates = row
    if source >> RANK_SHIFT != c.rank:
        raise Fault(OutOfBounds, f"the source {source:#x} is not this CTA's shared memory")
    label = f"PTX line {c.translation.place(site).line}, warp {g.warps[0]}"
    if tensor:
        part = _part(c, to, coordinates, [0] * (len(coordinates) - 2) if pixels else None)
        size, swizzle = part.map.box_bytes, part.map.swizzle
        through = 0 if among_parameters(c, to) else to
        return Store(c.shared, source & OFFSET_MASK, size, swizzle, part, operation, site, label, through=through)
    if size % 16 or size <= 0:
        raise Fault(UnsupportedInstruction, f"a bulk copy of {size} bytes: not a multiple of 16")
    return Store(
        c.shared, source & OFFSET_MASK, size, 0, Span(to, size, _TYPES[kind] if kind else "u1"), operation, site, label
    )


def bulk_commit(c: CTA, g: Group, node: Node) -> bool:
    for lane in g.lanes.lanes.tolist():
        queue = c.bulk.get((g.wg.index, lane))
        if queue is not None:
            queue.groups.append(queue.open)
            queue.open = []
    return True


def bulk_wait(c: CTA, g: Group, node: Node) -> bool:
    """All but the newest groups of each thread have been read; without `.read`, written too."""
    site, (keep, read) = node.detail
    try:
        for lane in g.lanes.lanes.tolist():
            queue = c.bulk.get((g.wg.index, lane))
            if queue is None:
                continue
            for group in queue.groups[: max(len(queue.groups) - keep, 0)]:
                for store in group:
                    store.release()
                    if not read:
                        store.write(c.world.memory)
                        c.world.progress += 1
                    if c.world.races:
                        if store.through and not store.waited:
                            c.world.maps.store(c, store.through, g.wg.number + lane // 32, store, waited=True)
                        store.settle(g.wg.number + lane // 32, written=not read)
            if not read:
                queue.groups = queue.groups[max(len(queue.groups) - keep, 0) :]
    except Fault as fault:
        c.raise_fault(fault, site, g)
    return True


def finish_stores(c: CTA) -> None:
    """The CTA is over: stores are written; a source that nobody waited for is an error, the memory is gone."""
    for queue in c.bulk.values():
        for store in [s for group in queue.groups for s in group] + queue.open:
            if store.under_way:
                c.fail(
                    CopyInFlight,
                    f"the CTA ends while {store} may still read its shared memory",
                    store.site,
                    None,
                    f"shared {store.first:#x}",
                )
            try:
                store.write(c.world.memory)
            except Fault as fault:
                c.raise_fault(fault, store.site, None)
            c.warn_found(store.site, None)


# ---------------------------------------------------------------------- cp.async


@dataclass(eq=False)
class Classic:
    """The cp.async copies of one warp's lanes by one instruction, all of `size` bytes."""

    to: np.ndarray
    source: np.ndarray
    size: int
    taken: np.ndarray  # bytes that come from the source; the rest is zero
    label: str
    warp: int  # in the order of the cluster
    site: int
    done: bool = False
    waited: bool = False
    spans: list[tuple[int, int]] = field(default_factory=list)

    def __str__(self) -> str:
        return f"cp.async of {self.size} bytes a lane to shared {int(self.to.min()):#x} ({self.label})"


def _classic(layout: Layout, r: Reader) -> Node:
    if r.flag("commit_group"):
        r.done()
        r.count(0)
        return node_of(layout, r, classic_commit)
    if r.flag("wait_all"):
        r.done()
        r.count(0)
        return node_of(layout, r, classic_wait, (0, True))
    if r.flag("wait_group"):
        r.done()
        return node_of(layout, r, classic_wait, (r.constant(), False))
    if r.flag("mbarrier"):
        r.need("arrive")
        no_increment = r.flag("noinc")
        r.done("shared", "shared::cta", "b64")
        r.count(1)
        return node_of(layout, r, classic_arrive, (fetcher(layout, r, r.operands[0]), no_increment))
    r.need("ca", "cg")
    r.need("shared", "shared::cta")
    r.need("global")
    r.done("L2::64B", "L2::128B", "L2::256B")
    size = r.operands[2]
    if not isinstance(size, Imm) or size.bits not in (4, 8, 16) or len(r.operands) > 4:
        raise r.fail("these operands")
    taken = fetcher(layout, r, r.operands[3]) if len(r.operands) > 3 else None
    return node_of(
        layout,
        r,
        classic_copy,
        (fetcher(layout, r, r.operands[0]), fetcher(layout, r, r.operands[1]), size.bits, taken),
    )


def classic_copy(c: CTA, g: Group, node: Node) -> bool:
    """Starts the copies of each warp: its waits say nothing of those of others."""
    site, (to, source, size, taken) = node.detail
    offset, address = to(c, g) - c.base, source(c, g)
    taken_bytes = np.minimum(taken(c, g), size) if taken else np.full(g.lanes.count, size)
    line = c.translation.place(site).line
    try:
        c.shared.check(offset, size)
        for number, warp in zip(g.lanes.warp_numbers, g.warps, strict=True):
            here = g.lanes.warp == number
            label = f"PTX line {line}, warp {warp}"
            copy = Classic(offset[here], address[here], size, taken_bytes[here], label, g.wg.number + number, site)
            _start_classic(c, copy)
            for lane in g.lanes.lanes[here].tolist():
                c.classic.setdefault((g.wg.index, lane), Queue()).open.append(copy)
    except Fault as fault:
        c.raise_fault(fault, site, g)
    return True


def _start_classic(c: CTA, copy: Classic) -> None:
    copy.spans = [(first, first + copy.size) for first in copy.to.tolist()]
    for first, last in copy.spans if c.shared.readers.any() else ():
        c.shared.check_writable(first, last)
    if c.world.races:
        warps = np.full(copy.to.size, copy.warp)
        c.world.races.shared(c, warps, copy.site, "shared", copy.to + c.base, copy.size, STORE, when=NEVER)
    if c.world.holds_copies():
        c.shared.code[copy.to[:, None] + np.arange(copy.size)] = IN_FLIGHT
        c.shared.pending.append(copy)
    else:
        _finish_classic(c, copy)


def _finish_classic(c: CTA, copy: Classic) -> None:
    """Writes as the generic proxy does: cp.async needs a proxy fence before the async proxy reads."""
    if copy.done:
        return
    copy.done = True
    if copy in c.shared.pending:
        c.shared.pending.remove(copy)
        c.shared.code[copy.to[:, None] + np.arange(copy.size)] = 0
    raw = np.zeros((copy.to.size, copy.size), np.uint8)
    whole = copy.taken == copy.size
    try:
        if whole.any():
            words = np.ascontiguousarray(c.world.memory.load(copy.source[whole], copy.size))
            raw[whole] = words[:, None].view(np.uint8)
        for lane in np.flatnonzero(~whole & (copy.taken > 0)).tolist():
            n = int(copy.taken[lane])
            raw[lane, :n] = c.world.memory.load(copy.source[lane] + np.arange(n), 1)
    except Fault as fault:
        raise fault.with_note(str(copy)) from None
    words = raw.view({4: "u4", 8: "u8", 16: "c16"}[copy.size])[:, 0]
    c.shared.store(copy.to, copy.size, words, np.full(copy.to.size, copy.warp), c.cluster.order)
    c.world.progress += 1


def _wait_classic(c: CTA, copy: Classic) -> None:
    """A thread waits for them, for all of the warp."""
    _finish_classic(c, copy)
    if c.world.races and not copy.waited:
        copy.waited = True
        assert c.shared.traffic is not None
        c.shared.traffic.settle(copy.warp, copy.to, copy.size)
        whole = copy.taken == copy.size
        if whole.any():
            warps = np.full(int(np.count_nonzero(whole)), copy.warp)
            c.world.races.load(c, warps, copy.site, copy.source[whole], copy.size, None)


def classic_commit(c: CTA, g: Group, node: Node) -> bool:
    for lane in g.lanes.lanes.tolist():
        queue = c.classic.setdefault((g.wg.index, lane), Queue())
        queue.groups.append(queue.open)
        queue.open = []
    return True


def classic_wait(c: CTA, g: Group, node: Node) -> bool:
    site, (keep, everything) = node.detail
    try:
        for lane in g.lanes.lanes.tolist():
            queue = c.classic.get((g.wg.index, lane))
            if queue is None:
                continue
            cut = max(len(queue.groups) - keep, 0)
            for copy in [x for group in queue.groups[:cut] for x in group] + (queue.open if everything else []):
                if not copy.waited:
                    _wait_classic(c, copy)
            queue.groups = queue.groups[cut:]
            if everything:
                queue.open = []
    except Fault as fault:
        c.raise_fault(fault, site, g)
    return True


def classic_arrive(c: CTA, g: Group, node: Node) -> bool:
    """cp.async.mbarrier.arrive: arrives when the thread's copies are complete, here at once."""
    site, (address, no_increment) = node.detail
    woken: list[Any] = []
    try:
        for lane, one in zip(g.lanes.lanes.tolist(), address(c, g).tolist(), strict=True):
            queue = c.classic.get((g.wg.index, lane), Queue())
            for copy in [x for group in queue.groups for x in group] + queue.open:
                _wait_classic(c, copy)
            peer, barrier = mbarrier_at(c, one)
            if c.world.recorder:
                thing = Thing("mbarrier", peer.index, barrier.address)
                c.world.recorder.take(c, 4 * g.wg.index + lane // 32, site, COPY, thing, 0, 1)
                if not no_increment:
                    c.world.recorder.refuse("cp.async.mbarrier.arrive without .noinc changes what a phase takes")
            barrier.told.tell(c.cluster.order.release([g.wg.number + lane // 32]))
            if not no_increment:
                barrier.pending += 1
            woken += barrier.arrive(1)
    except Fault as fault:
        c.raise_fault(fault, site, g)
    c.world.progress += 1
    if woken:
        c.world.wake(woken)
    return True
