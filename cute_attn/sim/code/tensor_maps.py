"""Tensor maps that a kernel makes while it runs: fields replaced, maps published, fences before their use."""

from __future__ import annotations

import numpy as np

from ..errors import MissingProxyFence, UnsupportedDescriptor, UnsupportedInstruction
from ..state.cta import CTA
from ..state.fault import Fault
from ..state.groups import Group
from ..state.shared_memory import STALE, UNWRITTEN
from .layout import Layout
from .node import Node
from .operands import fetcher, node_of, uniform
from .ptx import Imm
from .template import Reader

BYTES = 128  # of a map
_MEANT = 64  # of these say something
_NUMBERS = ("box_dim", "global_dim", "global_stride", "element_stride")  # one for each dimension
_CODES = {"elemtype": (2, 7, 15), "swizzle_mode": (2, 13, 3), "rank": (2, 4, 7)}  # field -> word, first bit, mask
_NONE = ("interleave_layout", "fill_mode")  # of which only 0 is known


def build(layout: Layout, r: Reader) -> Node:
    """tensormap.replace and tensormap.cp_fenceproxy."""
    if r.flag("cp_fenceproxy"):
        for word in ("global", "shared::cta", "tensormap::generic", "release", "sync", "aligned"):
            r.need(word)
        r.need("cta", "cluster", "gpu", "sys")
        r.done()
        _sized(r, 2)
        return node_of(layout, r, publish, [fetcher(layout, r, o) for o in r.operands[:2]])
    r.need("replace")
    r.need("tile")
    field = r.need("global_address", *_NUMBERS, *_CODES, *_NONE)
    space = r.need("global", "shared::cta")
    r.need("b1024")
    r.need("b64" if field in ("global_address", "global_stride") else "b32")
    r.done()
    r.count(3 if field in _NUMBERS else 2)
    which = r.operands[1]
    if field in _NUMBERS and not (isinstance(which, Imm) and 0 <= which.bits < (4 if field == "global_stride" else 5)):
        raise r.fail("this dimension")
    dimension = which.bits if field in _NUMBERS and isinstance(which, Imm) else 0
    address, value = (fetcher(layout, r, o) for o in (r.operands[0], r.operands[-1]))
    return node_of(layout, r, replace, (address, value, field, dimension, space))


def fence(layout: Layout, r: Reader) -> Node:
    """fence.proxy.tensormap::generic"""
    r.need("tensormap::generic")
    action = r.need("acquire", "release")
    r.need("cta", "cluster", "gpu", "sys")
    r.done()
    if action == "release":
        r.count(0)
        return node_of(layout, r, release)
    _sized(r, 1)
    return node_of(layout, r, acquire, fetcher(layout, r, r.operands[0]))


def _sized(r: Reader, addresses: int) -> None:
    r.count(addresses + 1)
    size = r.operands[-1]
    if not isinstance(size, Imm) or size.bits != BYTES:
        raise r.fail(f"a size that is not {BYTES}")


def replace(c: CTA, g: Group, node: Node) -> bool:
    site, (address, value, field, dimension, space) = node.detail
    try:
        for one, number in dict(zip(address(c, g).tolist(), value(c, g).tolist(), strict=True)).items():
            if space == "global":
                c.world.maps.change(c, g.numbers[0], site, one, releases=False)
            _replace(c, g, one, number, field, dimension, space)
    except Fault as fault:
        c.raise_fault(fault, site, g)
    c.world.progress += 1
    return True


def _replace(c: CTA, g: Group, address: int, number: int, field: str, dimension: int, space: str) -> None:
    if address % 64:
        raise Fault(UnsupportedDescriptor, f"a tensor map at {address:#x}, not a multiple of 64")
    if field == "global_address":
        _put(c, g, space, address, number & 0xFFFFFFFF)
        _put(c, g, space, address + 4, number >> 32 & 0xFFFFFFFF)
    elif field == "global_stride":
        if number % 16 or not 0 <= number < 1 << 36:
            raise Fault(UnsupportedDescriptor, f"a stride of {number} bytes: not a multiple of 16 below 2**36")
        _put(c, g, space, address + 4 * (3 + dimension), number // 16)
    elif field == "global_dim":
        _put(c, g, space, address + 4 * (8 + dimension), number - 1 & 0xFFFFFFFF)
    elif field == "box_dim":
        if not 0 < number <= 256:
            raise Fault(UnsupportedDescriptor, f"a box of {number} elements; allowed: 1 to 256")
        word, bit = (13, 24) if dimension == 0 else (14, 8 * (dimension - 1))
        _put_bits(c, g, space, address, word, bit, 255, number - 1)
    elif field in _CODES:
        _put_bits(c, g, space, address, *_CODES[field], number)
    elif number != (1 if field == "element_stride" else 0):
        raise Fault(UnsupportedDescriptor, f"{field} {number} of a tensor map")


def _put_bits(c: CTA, g: Group, space: str, address: int, word: int, bit: int, mask: int, number: int) -> None:
    if not 0 <= number <= mask:
        raise Fault(UnsupportedDescriptor, f"{number} in a field of {mask.bit_length()} bits of a tensor map")
    where = address + 4 * word
    before = c.shared.load(np.array([where - c.base]), 4) if space != "global" else c.world.memory.load(_at(where), 4)
    _put(c, g, space, where, int(before[0]) & ~(mask << bit) | number << bit)


def _put(c: CTA, g: Group, space: str, address: int, word: int) -> None:
    words = np.array([word], np.uint32)
    if space == "global":
        c.world.memory.store(_at(address), 4, words)
    else:
        c.shared.store(np.array([address - c.base]), 4, words, np.array(g.numbers[:1]), c.cluster.order)


def _at(address: int) -> np.ndarray:
    return np.array([address], np.uint64)


def publish(c: CTA, g: Group, node: Node) -> bool:
    """Copies a map from shared to global memory, once for a warp, and releases it to the proxy that reads maps."""
    site, (to, source) = node.detail
    try:
        for part in sorted(set(g.lanes.warp.tolist())):
            here = g.lanes.warp == part
            target, first = uniform(to(c, g)[here]), uniform(source(c, g)[here])
            if target is None or first is None or np.count_nonzero(here) != 32:
                raise Fault(UnsupportedInstruction, "a copy of a tensor map by a diverged warp, or of several maps")
            if target % BYTES or first % BYTES:
                raise Fault(UnsupportedDescriptor, f"a tensor map is copied to {target:#x}, not a multiple of {BYTES}")
            c.world.maps.change(c, g.wg.number + part, site, target, releases=True)
            _copy(c, target, first - c.base)
    except Fault as fault:
        c.raise_fault(fault, site, g)
    c.warn_found(site, g)
    c.world.progress += 1
    return True


def _copy(c: CTA, target: int, first: int) -> None:
    """The second half means nothing; where nobody wrote it, it is left out."""
    c.shared.check_range(first, first + BYTES)
    c.shared.check_readable(first, first + _MEANT)
    whole = not np.isin(c.shared.code[first + _MEANT : first + BYTES], (UNWRITTEN, STALE)).any()
    size = BYTES if whole else _MEANT
    words = c.shared.data[first : first + size].view(np.uint32)
    c.world.memory.store(target + 4 * np.arange(size // 4, dtype=np.uint64), 4, words)


def release(c: CTA, g: Group, node: Node) -> bool:
    for warp in g.numbers:
        c.world.maps.release(c, warp)
    return True


def acquire(c: CTA, g: Group, node: Node) -> bool:
    """The maps at these addresses may be used as they are now."""
    _, address = node.detail
    for one, warp in set(zip(address(c, g).tolist(), g.lanes.warp.tolist(), strict=True)):
        c.maps[one] = max(c.maps.get(one, 0), c.world.maps.acquired(c, g.wg.number + warp, one))
    return True


def check_acquired(c: CTA, address: int) -> None:
    """Raises if a map was changed by this launch and no warp of the CTA has acquired it since."""
    changes = c.world.maps.changes(address)
    if changes > c.maps.get(address, 0):
        missing = "acquire of it" if changes == c.world.maps.released(address) else "release"
        what = f"the tensor map at {address:#x} was changed, and no fence.proxy.tensormap::generic.{missing} since"
        raise Fault(MissingProxyFence, what, f"tensor map {address:#x}")
