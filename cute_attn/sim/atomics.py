"""atom and red: read-modify-write of global and shared memory, one lane after another."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import OutOfBounds
from .functions import bf16_bits, bf16_values
from .memory import Fault
from .template import WIDTH

if TYPE_CHECKING:
    from .groups import Group
    from .load_store import LoadStore

_VALUE_TYPE = {
    "f32": np.float32,
    "f64": np.float64,
    "f16": np.float16,
    "f16x2": np.float16,
    "bf16": "bf16",
    "bf16x2": "bf16",
}
FLOATING = frozenset(_VALUE_TYPE)
_ELEMENT = {"f32": "f4", "f64": "f8", "f16": "f2", "f16x2": "f2", "bf16": "bf16", "bf16x2": "bf16"}


def apply(
    cta: LoadStore,
    g: Group,
    space: str,
    operation: str,
    kind: str,
    address: np.ndarray,
    values: tuple[Any, ...],
    returns: bool,
    where: Any,
) -> Any:
    """Old values if `returns`. Addresses are [lanes]; a vector operation touches consecutive elements."""
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
            memory = cta.machine.memory
            load, store = functools.partial(memory.load, adds=not returns), memory.store
        elif space in ("shared", "cluster"):
            load, store = _shared(cta, g, space)
        else:
            raise Fault(OutOfBounds, f"atomic operation in {space} memory")
        combine = _combine(operation, kind)
        for element in range(count):
            operands = [c[active] for c in (columns if operation == "cas" else columns[element : element + 1])]
            where_to = lanes[active] + size * element
            old[element, active], changed = _update(load, store, where_to, size, combine, operands)
            if space == "global" and operation == "add" and kind in FLOATING:
                memory.note_additions(where_to, old[element, active], operands[0], _ELEMENT[kind])
            cta.machine.progress += changed  # a spin on an atomic that changes nothing is no progress
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


def _shared(cta: LoadStore, g: Group, space: str) -> tuple[Callable, Callable]:
    warps = g.lanes.warp + g.wg.number

    def load(address: np.ndarray, size: int) -> np.ndarray:
        return cta._words(space, g, address, size)

    def store(address: np.ndarray, size: int, values: np.ndarray) -> None:
        cta._put(space, g, address, size, values, np.broadcast_to(warps[:1], address.shape))

    return load, store


_BITWISE: dict[str, Callable[..., Any]] = {
    "cas": lambda old, compare, value: np.where(old == compare, value, old),
    "exch": lambda old, value: value,
    "inc": lambda old, limit: np.where(old >= limit, np.uint32(0), old + np.uint32(1)),
    "dec": lambda old, limit: np.where((old == 0) | (old > limit), limit, old - np.uint32(1)),
}


def _combine(operation: str, kind: str) -> Callable[..., np.ndarray]:
    """The function of old and given bits that gives new bits."""
    if operation in _BITWISE:
        return _BITWISE[operation]
    ufunc = combine_values(operation)
    value_type = _VALUE_TYPE.get(kind, f"{'i' if kind[0] == 's' else 'u'}{WIDTH[kind] // 8}")
    if value_type == "bf16":
        return lambda old, value: _bf16(ufunc, old, value)

    def combine(old: np.ndarray, value: np.ndarray) -> np.ndarray:
        a, b = (np.ascontiguousarray(x).view(value_type) for x in (old, value))
        return np.asarray(ufunc(a, b)).view(old.dtype)

    return combine


def combine_values(operation: str) -> Callable[..., np.ndarray]:
    return {
        "add": np.add,
        "min": np.fmin,
        "max": np.fmax,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }[operation]


def _bf16(ufunc: Callable, old: np.ndarray, value: np.ndarray) -> np.ndarray:
    a, b = (bf16_values(np.ascontiguousarray(x).view(np.uint16)) for x in (old, value))
    return bf16_bits(ufunc(a, b)).astype(np.uint16).view(old.dtype)
