"""Matrix multiplies of a CTA's warpgroups: queued when issued, run at commit or when waited for, retired in order.

Every warp issues its own part: its 16 rows of A and of the accumulator, times all of B. The four come by together, but
nothing that one of them wrote is ordered by that before the part of another.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import AccumulatorInFlight, SharedMemoryExceeded, UnsupportedDescriptor
from . import matrices
from .cta import CTA
from .fault import Fault
from .groups import Group
from .lanes import Entry, Warpgroup, WarpState
from .matrices import Footprint
from .order import Accessor
from .shared_traffic import SharedTraffic


def wgmma(c: CTA, sites: tuple[int, ...], g: Group, a: Any, b: Any, accumulate: Any) -> None:
    """Queues products; they run at commit or, in late schedules, when they are waited for."""
    columns = [_uniform(c, values, sites, g) for values in (a, b, accumulate)]
    states = [g.wg.state[w] for w in g.lanes.warp_numbers]
    for entry in _chains(c, sites, *columns):
        for state in states:
            _check_fence(c, state, entry, g)
            _check_registers(c, state, entry, g)
            state.open.append(entry)
            state.accumulators |= entry.locks[0]
            state.fragments |= entry.locks[1]
        entry.waiting = len(states)
        try:
            _note_operands(c, entry, g)
        except Fault as fault:
            c.raise_fault(fault, entry.sites[0], g)
        c.warn_found(entry.sites[0], g)
    c.world.statistics["wgmmas"] += len(sites)


def _uniform(c: CTA, values: Any, sites: tuple[int, ...], g: Group) -> list[Any]:
    """One number a wgmma; all threads of the warpgroup must hold the same."""
    if values is None:
        return [None] * len(sites)
    if (values != values[..., :1]).any():
        c.fail(UnsupportedDescriptor, "a wgmma operand differs between the threads of the warpgroup", sites, g)
    column = values[..., 0].reshape(-1).tolist()
    return column * len(sites) if len(column) == 1 else column


def _chains(c: CTA, sites: tuple[int, ...], a: list[Any], b: list[Any], accumulate: list[Any]) -> list[Entry]:
    """Consecutive wgmmas that add to one accumulator, as one product with a longer k."""
    entries: list[Entry] = []
    for site, descriptor_a, descriptor_b, adds in zip(sites, a, b, accumulate, strict=True):
        tile = c.translation.tiles[site]
        if not (adds and entries and entries[-1].tiles[0].chain == tile.chain):
            entries.append(Entry([], [], (), (), bool(adds)))
        entry = entries[-1]
        entry.tiles.append(tile)
        entry.sites.append(site)
        entry.a += () if descriptor_a is None else (descriptor_a,)
        entry.b += (descriptor_b,)
        entry.locks = (entry.locks[0] | tile.accumulator_lock, entry.locks[1] | tile.fragment_lock)
    return entries


def _check_fence(c: CTA, state: WarpState, entry: Entry, g: Group) -> None:
    """Between wgmma.fence and wgmma its registers must not be written, and those of its accumulator not be read.

    Where constants are moved to an accumulator, ptxas puts another fence behind that.
    """
    accumulator, fragment = entry.locks
    if not state.fenced:
        c.fail(AccumulatorInFlight, "wgmma before any wgmma.fence", entry.sites[0], g)
    if state.dirty & fragment or state.dirty & ~state.constant & accumulator:
        what = "wgmma uses registers that were written since the last wgmma.fence"
        c.fail(AccumulatorInFlight, what, entry.sites[0], g)
    if state.read & accumulator:
        what = "wgmma writes registers that were read since the last wgmma.fence"
        c.fail(AccumulatorInFlight, what, entry.sites[0], g)
    if state.constant & accumulator:
        what = "the accumulator was set to constants since the last wgmma.fence: ptxas adds another (C7519)"
        c.world.warn(what, c.place(entry.sites[0], g))


def _check_registers(c: CTA, state: WarpState, entry: Entry, g: Group) -> None:
    """Products of one shape on one accumulator run in order; other registers in flight must be waited for."""
    site = entry.sites[0]
    if state.accumulators & entry.locks[1]:
        c.fail(AccumulatorInFlight, "wgmma reads, as A, registers that a wgmma in flight writes", site, g)
    if state.fragments & entry.locks[0]:
        c.fail(AccumulatorInFlight, "wgmma writes registers that a wgmma in flight reads as A", site, g)
    if not state.accumulators & entry.locks[0]:
        return
    tile = entry.tiles[0]
    for other in [*(e for group in state.committed for e in group), *state.open]:
        if other.locks[0] & entry.locks[0]:
            if (other.tiles[0].accumulator, other.tiles[0].k) != (tile.accumulator, tile.k):
                what = "wgmma shares accumulator registers with one of another shape that is in flight"
                c.fail(AccumulatorInFlight, what, site, g)
            if not other.done and other not in entry.older:
                entry.older += (other,)


def _note_operands(c: CTA, entry: Entry, g: Group) -> None:
    """Marks the shared memory that the products read, until they are waited for."""
    tile, order = entry.tiles[0], c.cluster.order
    try:
        b = matrices.footprint(entry.b, tile.n, tile.majors[1], tile.types[1])
        warps = g.lanes.warp_numbers if entry.a else ()
        a = {w: matrices.footprint(entry.a, 64, tile.majors[0], tile.types[0], w) for w in warps}
    except matrices.BadDescriptor as error:
        raise Fault(UnsupportedDescriptor, str(error)) from None
    _note(c, b, Accessor(order, g.numbers, c.rank))
    for warp, rows in a.items():
        _note(c, rows, Accessor(order, [g.wg.number + warp], c.rank))
    entry.b_read, entry.a_read = b.selectors, {warp: rows.selectors for warp, rows in a.items()}


def _note(c: CTA, operand: Footprint, accessor: Accessor) -> None:
    first, last, selectors = operand
    if first * 16 < c.shared.start or last * 16 > c.shared.end:
        what = f"a wgmma operand covers shared {first * 16:#x} to {last * 16:#x}"
        limits = f"; shared memory is {c.shared.start:#x} to {c.shared.end:#x}"
        raise Fault(SharedMemoryExceeded, what + limits, f"shared {last * 16:#x}")
    for selector in selectors:
        if c.world.mode != "eager":  # there the products run at once, and check then
            c.shared.check_granules(selector)
        c.shared.check_ordered(selector, accessor, "read")
        if c.shared.traffic:
            c.shared.traffic.demand(c.world.findings, "asynchronous load", accessor.warps, selector)
        c.shared.readers[selector] += 1


def execute(c: CTA, g: Group, entries: list[Entry]) -> None:
    """Runs those not yet done, each behind the older ones on its accumulator."""
    for entry in entries:
        if not entry.done:
            execute(c, g, [older for older in entry.older if not older.done])
            entry.done, entry.older = True, ()
            try:
                _multiply(c, g.wg, entry)
            except Fault as fault:
                c.raise_fault(fault, entry.sites[0], g)
            c.warn_found(entry.sites[0], g)


def _multiply(c: CTA, wg: Warpgroup, entry: Entry) -> None:
    tile = entry.tiles[0]
    for selector in (*entry.b_read, *(s for rows in entry.a_read.values() for s in rows)):
        c.shared.check_granules(selector)
    if tile.fragment:
        rows = np.concatenate([t.fragment_rows for t in entry.tiles])
        a = matrices.fragment_matrix(wg.files["r"][rows], tile.types[0])
    else:
        a = _operand(c, entry.a, 64, tile.majors[0], tile.types[0])
        a = a if tile.majors[0] == 0 else a.T
    b = _operand(c, entry.b, tile.n, tile.majors[1], tile.types[1])
    product = a @ (b.T if tile.majors[1] == 0 else b)
    if tile.sign < 0:
        product = -product
    file = wg.files["r"].view(np.float32)
    if isinstance(tile.accumulator_rows, slice):
        matrices.add_product(file[tile.accumulator_rows], product, fresh=not entry.accumulate)
    else:
        accumulator = file[tile.accumulator_rows]
        matrices.add_product(accumulator, product, fresh=not entry.accumulate)
        file[tile.accumulator_rows] = accumulator


def _operand(c: CTA, descriptors: tuple[int, ...], rows: int, major: int, kind: str) -> np.ndarray:
    """[rows, k] if K-major, [k, rows] otherwise, as float32."""
    index = matrices.granules(descriptors, rows, major, kind)
    raw = c.shared.words[16].take(index)
    return matrices.decode(raw.view(np.uint8), kind)


def retire(c: CTA, g: Group, keep: int) -> None:
    """wgmma.wait_group: all but the newest `keep` groups of these warps are complete."""
    for warp in g.lanes.warp_numbers:
        state = g.wg.state[warp]
        while len(state.committed) > keep:
            entries = state.committed.popleft()
            execute(c, g, entries)
            for entry in entries:
                if c.shared.traffic:
                    _settle(c.shared.traffic, g, warp, entry)
                entry.waiting -= 1
                done = entry.a_read.get(warp, ()) if entry.waiting else (*entry.a_read.get(warp, ()), *entry.b_read)
                for selector in done:
                    c.shared.readers[selector] -= 1
        state.accumulators = state.fragments = 0
        for entry in [e for group in state.committed for e in group] + state.open:
            state.accumulators |= entry.locks[0]
            state.fragments |= entry.locks[1]


def _settle(traffic: SharedTraffic, g: Group, warp: int, entry: Entry) -> None:
    """Where races are looked for: a warp has waited for a product, that is, for the parts of all four warps."""
    four = tuple(range(g.wg.number, g.wg.number + 4))
    for selector in (*entry.b_read, *(s for rows in entry.a_read.values() for s in rows)):
        traffic.note_read(g.wg.number + warp, four, entry.sites[0], selector)
