"""atom and red: read-modify-write of global and shared memory, one lane after another."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import OutOfBounds
from ..formats import WIDTH
from .combine import FLOATING, combined
from .cta import CTA
from .fault import Fault
from .flags import Strength
from .groups import Group
from .races import Races
from .shared_traffic import ATOMIC
from .spaces import put, resolve, wide, words_at

_ELEMENT = {"f32": "f4", "f64": "f8", "f16": "f2", "f16x2": "f2", "bf16": "bf16", "bf16x2": "bf16"}


def atomic(
    c: CTA,
    site: Any,
    g: Group,
    space: str,
    operation: str,
    kind: str,
    address: Any,
    offset: Any,
    values: Any,
    returns: bool,
    where: Any,
    strength: Strength,
) -> Any:
    """Old values if `returns`: one a lane, or a tuple where the operation is one on vectors."""
    total = wide(address, offset, g)
    if space == "generic":
        space, total = resolve(total)
    if c.world.recorder and space == "global":
        c.world.recorder.atomic(c, g, site, operation, kind, total, values, where)
    try:
        if c.world.races:
            _note(c, c.world.races, g, site, space, operation, kind, total, len(values), returns, where, strength)
        old = _apply(c, g, space, operation, kind, total, values, returns, where)
    except Fault as fault:
        c.raise_fault(fault, site, g)
    c.warn_found(site, g)
    return old


def _note(
    c: CTA,
    races: Races,
    g: Group,
    site: Any,
    space: str,
    operation: str,
    kind: str,
    address: np.ndarray,
    values: int,
    returns: bool,
    where: Any,
    strength: Strength,
) -> None:
    """Tells those who look for races."""
    warps = g.lanes.warp + g.wg.number
    if where is not None:
        address, warps = address[..., where], warps[where]
    size = WIDTH[kind] // 8 * (1 if operation == "cas" else values)
    if warps.size and space in ("shared", "cluster"):
        races.shared(c, warps, site, space, address, size, ATOMIC)
    elif warps.size:
        adds = operation == "add" and kind in FLOATING
        races.atomic(c, warps, site, address, size, strength, returns=returns, adds=adds)


def _apply(
    c: CTA,
    g: Group,
    space: str,
    operation: str,
    kind: str,
    address: np.ndarray,
    values: tuple[Any, ...],
    returns: bool,
    where: Any,
) -> Any:
    """Addresses are [lanes]; a vector operation touches consecutive elements."""
    size = WIDTH[kind] // 8
    lanes = address.reshape(-1)
    columns = [np.broadcast_to(v, lanes.shape) for v in values]
    active = np.flatnonzero(where) if where is not None else np.arange(lanes.size)
    load: Callable
    store: Callable
    count = 1 if operation == "cas" else len(values)
    old = np.zeros((count, lanes.size), f"u{size}")
    if active.size:
        if space == "global":
            memory = c.world.memory
            load, store = functools.partial(memory.load, adds=not returns), memory.store
        elif space in ("shared", "cluster"):
            load, store = _shared(c, g, space)
        else:
            raise Fault(OutOfBounds, f"atomic operation in {space} memory")
        combine = combined(operation, kind)
        for element in range(count):
            operands = [c[active] for c in (columns if operation == "cas" else columns[element : element + 1])]
            where_to = lanes[active] + size * element
            old[element, active], changed = _update(load, store, where_to, size, combine, operands)
            if space == "global" and operation == "add" and kind in FLOATING:
                memory.note_additions(where_to, old[element, active], operands[0], _ELEMENT[kind])
            c.world.progress += changed  # a spin on an atomic that changes nothing is no progress
    shaped = old.reshape(count, *address.shape)
    return (tuple(shaped) if count > 1 else shaped[0]) if returns else None


def _update(
    load: Callable, store: Callable, address: np.ndarray, size: int, combine: Callable, operands: list[np.ndarray]
) -> tuple[np.ndarray, bool]:
    """Lanes with different addresses at once; equal ones in rounds, in lane order. Old values; whether any changed."""
    old = np.empty(address.shape, f"u{size}")
    left, changed = np.arange(address.size), False
    while left.size:
        _, first = np.unique(address[left], return_index=True)
        now = left[np.sort(first)]
        before = load(address[now], size)
        old[now] = before
        after = combine(before, *(o[now] for o in operands))
        store(address[now], size, after)
        changed = changed or bool((after != before).any())
        left = np.setdiff1d(left, now, assume_unique=True)
    return old, changed


def _shared(c: CTA, g: Group, space: str) -> tuple[Callable, Callable]:
    warps = g.lanes.warp + g.wg.number

    def load(address: np.ndarray, size: int) -> np.ndarray:
        return words_at(c, space, g, address, size)

    def store(address: np.ndarray, size: int, values: np.ndarray) -> None:
        put(c, space, g, address, size, values, np.broadcast_to(warps[:1], address.shape))

    return load, store
