"""`st.async`: stores to the shared memory of a CTA of the cluster that report their bytes to an mbarrier there."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..addresses import OFFSET_MASK, RANK_SHIFT
from ..errors import OutOfBounds
from ..formats import WIDTH
from ..state.cta import CTA
from ..state.epochs import IN_FLIGHT as NEVER
from ..state.fault import Fault
from ..state.groups import Group
from ..state.order import Accessor
from ..state.shared_traffic import STORE
from ..state.steps import COPY, Thing
from ..state.transfers import AsyncStore, Sent, Target
from .layout import Layout
from .node import Node
from .operands import fetcher, mbarrier_at, node_of
from .ptx import Imm, Operand, Vec
from .template import Reader

_TYPES = ("b32", "u32", "s32", "f32", "b64", "u64", "s64", "f64")


def build(layout: Layout, r: Reader) -> Node:
    r.need("async")
    r.take("weak")
    r.take("cluster")
    r.need("shared::cluster")
    r.need("mbarrier::complete_tx::bytes")
    vector, kind = r.take("v2", "v4"), r.need(*_TYPES)
    r.done()
    r.count(3)
    to, what, barrier = r.operands
    values = what.items if isinstance(what, Vec) else (what,)
    if len(values) != int(vector[1:] if vector else 1) or len(values) * WIDTH[kind] > 128:
        raise r.fail(f"{len(values)} values of {kind}")
    fetched = [fetcher(layout, r, _bits(value, WIDTH[kind])) for value in values]
    detail = (fetcher(layout, r, to), fetched, WIDTH[kind] // 8, fetcher(layout, r, barrier))
    return node_of(layout, r, async_store, detail)


def _bits(operand: Operand, width: int) -> Operand:
    """A floating-point number of the type's width is sent as its bits."""
    return Imm(operand.bits) if isinstance(operand, Imm) and operand.width == width else operand


def async_store(c: CTA, g: Group, node: Node) -> bool:
    site, (to, values, size, barrier) = node.detail
    where, bars = to(c, g), barrier(c, g)
    words = np.stack([value(c, g).astype(f"i{size}") for value in values], axis=-1)
    try:
        if c.world.recorder:
            _note(c, g, site, bars, words.shape[1] * size)
        if c.world.races:
            warps, each = g.wg.number + g.lanes.warp, words.shape[1] * size
            c.world.races.shared(c, warps, site, "shared::cluster", where, each, STORE, when=NEVER)
        lanes = zip(where.tolist(), bars.tolist(), words, g.lanes.warp.tolist(), strict=True)
        for address, bar, raw, warp in lanes:
            _send(c, g, site, address, bar, raw.view(np.uint8), warp)
    except Fault as fault:
        c.raise_fault(fault, site, g)
    return True


def _send(c: CTA, g: Group, site: int, address: int, bar: int, raw: np.ndarray, warp: int) -> None:
    rank, offset = address >> RANK_SHIFT, address & OFFSET_MASK
    if bar >> RANK_SHIFT != rank:
        what = f"a store to CTA {rank} of the cluster reports to an mbarrier of CTA {bar >> RANK_SHIFT}"
        raise Fault(OutOfBounds, what, f"mbarrier {bar & OFFSET_MASK:#x}")
    peer = c.peer(rank, offset)
    accessor = Accessor(c.cluster.order, [g.wg.number + warp], rank)
    target = Target(peer.shared, offset, mbarrier_at(c, bar)[1], accessor)
    if c.world.races:
        c.world.races.issued(target.barrier, g.wg.number + warp)
    label = f"PTX line {c.translation.place(site).line}, warp {4 * g.wg.index + warp}"
    c.world.start(AsyncStore(Sent(raw), raw.size, 0, [target], c.translation.place(site, peer.index), label, site))


def _note(c: CTA, g: Group, site: int, bars: np.ndarray, size: int) -> None:
    recorder: Any = c.world.recorder
    for bar in np.unique(bars).tolist():
        peer, barrier = mbarrier_at(c, bar)
        thing, here = Thing("mbarrier", peer.index, barrier.address), bars == bar
        recorder.by_lanes(c, g, site, COPY, thing, here, np.full(here.shape, size), False)
