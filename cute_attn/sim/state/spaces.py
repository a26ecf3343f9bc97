"""The words of every address space, as the lanes of a CTA reach them. Addresses come as [..., lanes]."""

from __future__ import annotations

import numpy as np

from ..addresses import GENERIC_LOCAL, GENERIC_SHARED, OFFSET_MASK, PARAM_BASE, RANK_SHIFT
from ..errors import Misaligned, OutOfBounds
from .cta import CTA
from .fault import Fault
from .groups import Group


def wide(address: np.ndarray, offset: np.ndarray, g: Group) -> np.ndarray:
    """Byte addresses as int64, one for every lane at least along the last axis."""
    total = address.astype(np.int64) + offset
    if address.itemsize == 4:
        total &= 0xFFFFFFFF  # the sum has the bits of the register
    return total if total.shape[-1] == g.lanes.count else np.broadcast_to(total, (*total.shape[:-1], g.lanes.count))


def resolve(address: np.ndarray) -> tuple[str, np.ndarray]:
    """The space of generic addresses (all lanes in one) and addresses in it."""
    top = int(address.flat[0]) >> 56
    if top == GENERIC_SHARED >> 56:
        return "cluster", address - GENERIC_SHARED
    if top == PARAM_BASE >> 56:
        return "param", address
    if top == GENERIC_LOCAL >> 56:
        return "local", address - GENERIC_LOCAL
    return "global", address


def words_at(c: CTA, space: str, g: Group, address: np.ndarray, size: int) -> np.ndarray:
    if space == "shared":
        return c.shared.load(address - c.base, size)
    if space == "global":
        return c.world.memory.load(address, size)
    if space == "cluster":
        ranks = address >> RANK_SHIFT
        result = np.empty(address.shape, "c16" if size == 16 else f"u{size}")
        for rank in np.unique(ranks).tolist():
            here = ranks == rank
            offsets = address[here] & OFFSET_MASK
            result[here] = c.peer(rank, int(offsets[0])).shared.load(offsets, size)
        return result
    if space == "param":
        offset = address - PARAM_BASE
        if int(offset.min()) < 0 or int(offset.max()) + size > c.world.parameters.size:
            raise Fault(OutOfBounds, "access outside the kernel parameters")
        raw = c.world.parameters[offset[..., None] + np.arange(size)]
        return raw.view("c16" if size == 16 else f"u{size}")[..., 0]
    local, index = _local(c, g, address, size)
    return local[index[..., None] + np.arange(size)].view("c16" if size == 16 else f"u{size}")[..., 0]


def put(c: CTA, space: str, g: Group, address: np.ndarray, size: int, words: np.ndarray, warps: np.ndarray) -> None:
    if space == "shared":
        c.shared.store(address - c.base, size, words, warps, c.cluster.order)
    elif space == "global":
        c.world.memory.store(address, size, words)
    elif space == "cluster":
        ranks = address >> RANK_SHIFT
        for rank in np.unique(ranks).tolist():
            here = ranks == rank
            who = np.broadcast_to(warps, address.shape)[here]
            offsets = address[here] & OFFSET_MASK
            peer = c.peer(rank, int(offsets[0]))
            peer.shared.store(offsets, size, words[here], who, c.cluster.order)
    elif space == "local":
        local, index = _local(c, g, address, size)
        local[index[..., None] + np.arange(size)] = np.ascontiguousarray(words)[..., None].view(np.uint8)
    else:
        raise Fault(OutOfBounds, "store to the kernel parameters")


def _local(c: CTA, g: Group, address: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    per_lane = c.translation.local_bytes
    if int(address.min()) < 0 or int(address.max()) + size > per_lane:
        raise Fault(OutOfBounds, f"access outside the {per_lane} bytes of local memory")
    if (address % size).any():
        raise Fault(Misaligned, f"local address {int(address.flat[0]):#x} is not a multiple of {size}")
    if g.wg.local is None:
        g.wg.local = np.full(128 * per_lane, 0xFF, np.uint8)
    return g.wg.local, address + g.lanes.lanes[: address.shape[-1]] * per_lane
