"""Loads and stores of a CTA as translated code calls them, in every address space; `where` switches lanes off.

Addresses come as [..., lanes]; stacking adds leading axes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import OutOfBounds, UnsupportedInstruction
from .cta import CTA
from .fault import Fault
from .flags import Strength
from .groups import Group
from .races import Races
from .shared_traffic import ATOMIC, LOAD, STORE
from .spaces import put, resolve, wide, words_at


def load_parameter(c: CTA, site: tuple[int, ...], g: Group, name: str, offset: int, dtype: str, count: int) -> Any:
    first, size = c.translation.parameters.get(name, (0, 0))
    total = int(dtype[1:]) * count
    if not 0 <= offset <= size - total:
        what = f"bytes {offset} to {offset + total - 1} of parameter {name}, which has {size}"
        c.raise_fault(Fault(OutOfBounds, what), site, g)
    first += offset
    return _split(c.world.parameters[first : first + total].copy()[None], dtype, count)


def _split(raw: np.ndarray, dtype: str, count: int) -> Any:
    """Bytes [..., size * count] as elements; a tuple of them if there are several."""
    elements = raw.view(dtype)
    return tuple(elements[..., i] for i in range(count)) if count > 1 else elements[..., 0]


def load(
    c: CTA,
    site: tuple[int, ...],
    g: Group,
    space: str,
    address: np.ndarray,
    offset: Any,
    dtype: str,
    count: int,
    where: Any,
    strength: Strength | None = None,
) -> Any:
    """Elements of a type at these addresses; a tuple of them, for `count` in a row, if there are several."""
    total = wide(address, offset, g)
    if space == "generic":
        space, total = resolve(total)
    loaded = _load(c, space, site, g, total, dtype, count, where)
    if c.world.races:
        _note_load(c, c.world.races, site, g, space, total, int(dtype[1:]) * count, where, strength)
    return loaded


def _note_load(
    c: CTA,
    races: Races,
    site: tuple[int, ...],
    g: Group,
    space: str,
    address: np.ndarray,
    size: int,
    where: Any,
    strength: Strength | None,
) -> None:
    """Tells those who look for races."""
    warps = g.lanes.warp + g.wg.number
    if where is not None:
        address, warps = address[..., where], warps[where]
    for i in range(0, size if warps.size else 0, 16):
        part = min(16, size - i)
        if space == "global":
            races.load(c, warps, site, address + i, part, strength)
        elif space in ("shared", "cluster") and strength is None:  # others poll: see acquire_all
            races.shared(c, warps, site, space, address + i, part, LOAD)


def _load(
    c: CTA, space: str, site: tuple[int, ...], g: Group, address: np.ndarray, dtype: str, count: int, where: Any
) -> Any:
    size = int(dtype[1:]) * count
    try:
        if where is not None:
            return _load_some(c, space, site, g, address, dtype, count, where)
        if size > 16:  # v8 of 32 bits: two words of 16 bytes
            words = np.stack([words_at(c, space, g, address + 16 * i, 16) for i in range(size // 16)], axis=-1)
        else:
            words = words_at(c, space, g, address, size)
    except Fault as fault:
        c.raise_fault(fault, site, g)
    c.warn_found(site, g)
    if count == 1:
        return words.view(dtype)
    raw = (words if size > 16 else words[..., None]).view(np.uint8)
    return _split(raw, dtype, count)


def _load_some(
    c: CTA, space: str, site: Any, g: Group, address: np.ndarray, dtype: str, count: int, where: np.ndarray
) -> Any:
    full = np.zeros((count, *address.shape), dtype)
    if where.any():
        part = _load(c, space, site, g, address[..., where], dtype, count, None)
        for i in range(count):
            full[i][..., where] = part[i] if count > 1 else part
    return tuple(full) if count > 1 else full[0]


def store(
    c: CTA,
    site: tuple[int, ...],
    g: Group,
    space: str,
    address: np.ndarray,
    offset: Any,
    dtype: str,
    values: tuple[Any, ...],
    where: Any,
    strength: Strength | None = None,
) -> None:
    """Puts elements of a type, so many in a row as there are values, at these addresses."""
    address = wide(address, offset, g)
    if space == "generic":
        space, address = resolve(address)
    size = int(dtype[1:]) * len(values)
    shape = np.broadcast_shapes(address.shape, *(np.shape(v) for v in values))
    raw = np.empty((*shape, len(values)), dtype)
    for i, value in enumerate(values):
        raw[..., i] = value
    address = np.broadcast_to(address, shape)
    warps = g.lanes.warp + g.wg.number
    if where is not None:
        if not where.any():
            return
        address, raw, warps = address[..., where], raw[..., where, :], warps[where]
    raw = raw.view(np.uint8)
    try:
        for i in range(0, size, 16):
            part = min(16, size - i)
            if c.world.races and space == "global":
                c.world.races.store(c, warps, site, address + i, raw[..., i : i + part], strength)
            elif c.world.races and space in ("shared", "cluster"):
                kind = STORE if strength is None else ATOMIC
                c.world.races.shared(c, warps, site, space, address + i, part, kind, values=raw[..., i : i + part])
            words = np.ascontiguousarray(raw[..., i : i + part]).view("c16" if part == 16 else f"u{part}")[..., 0]
            put(c, space, g, address + i, part, words, warps)
    except Fault as fault:
        c.raise_fault(fault, site, g)
    c.world.progress += 1


# ------------------------------------------------------------------ 8x8 matrices


def ldmatrix(c: CTA, site: Any, g: Group, address: np.ndarray, offset: Any, count: int, transposed: bool) -> Any:
    """Register i of lane l: elements 2(l % 4), +1 of row l / 4 of matrix i; row r's address is in lane 8i + r."""
    rows = _matrix_rows(c, site, g, address, offset, count)
    try:
        words = c.shared.load(rows, 16)
        if c.world.races:
            c.world.races.shared(c, np.array(g.numbers)[:, None, None], site, "shared", rows + c.base, 16, LOAD)
    except Fault as fault:
        c.raise_fault(fault, site, g)
    c.warn_found(site, g)
    halves = words[..., None].view(np.uint16)  # [..., warps, matrices, 8, 8]
    if transposed:
        halves = np.ascontiguousarray(np.swapaxes(halves, -1, -2))
    registers = halves.view(np.uint32).reshape(*halves.shape[:-2], 32)  # [..., warps, matrices, 32]
    result = tuple(registers[..., i, :].reshape(*registers.shape[:-3], -1) for i in range(count))
    return result if count > 1 else result[0]


def stmatrix(
    c: CTA, site: Any, g: Group, address: np.ndarray, offset: Any, values: tuple[Any, ...], transposed: bool
) -> None:
    rows = _matrix_rows(c, site, g, address, offset, len(values))
    shape = (*rows.shape[:-2], 32)
    stacked = np.stack(
        [np.broadcast_to(v, (*rows.shape[:-3], g.lanes.count)).reshape(*rows.shape[:-3], -1, 32) for v in values],
        axis=-2,
    )
    halves = np.ascontiguousarray(stacked).view(np.uint16).reshape(*shape[:-1], len(values), 8, 8)
    if transposed:
        halves = np.swapaxes(halves, -1, -2)
    words = np.ascontiguousarray(halves).view(np.complex128)[..., 0]
    warps = np.asarray(g.numbers)[:, None, None]
    try:
        if c.world.races:
            raw = np.broadcast_to(words, rows.shape)[..., None].view(np.uint8)
            c.world.races.shared(c, warps, site, "shared", rows + c.base, 16, STORE, values=raw)
        c.shared.store(rows, 16, words, warps, c.cluster.order)
    except Fault as fault:
        c.raise_fault(fault, site, g)
    c.world.progress += 1


def _matrix_rows(c: CTA, site: Any, g: Group, address: np.ndarray, offset: Any, count: int) -> np.ndarray:
    """Offsets [..., warps, matrices, 8] of matrix rows."""
    if not g.lanes.whole:
        c.fail(UnsupportedInstruction, "a matrix instruction of a diverged warp", site, g)
    total = wide(address, offset, g) - c.base
    return total.reshape(*total.shape[:-1], g.lanes.warps, 4, 8)[..., :count, :]
