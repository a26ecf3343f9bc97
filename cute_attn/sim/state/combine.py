"""What atomics and reductions make of the number in memory and the one that comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import UnsupportedDescriptor
from ..formats import WIDTH, bf16_bits, bf16_values
from .fault import Fault

_VALUE_TYPE = {
    "f32": np.float32,
    "f64": np.float64,
    "f16": np.float16,
    "f16x2": np.float16,
    "bf16": "bf16",
    "bf16x2": "bf16",
}
FLOATING = frozenset(_VALUE_TYPE)
_BITWISE: dict[str, Callable[..., Any]] = {
    "cas": lambda old, compare, value: np.where(old == compare, value, old),
    "exch": lambda old, value: value,
    "inc": lambda old, limit: np.where(old >= limit, np.uint32(0), old + np.uint32(1)),
    "dec": lambda old, limit: np.where((old == 0) | (old > limit), limit, old - np.uint32(1)),
}


def combined(operation: str, kind: str) -> Callable[..., np.ndarray]:
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


def combine_bits(old: np.ndarray, new: np.ndarray, operation: str, kind: str) -> np.ndarray:
    """A reduction on bits of a type: u4, i4, f4, f2, bf16, ..."""
    if operation in ("inc", "dec"):
        raise Fault(UnsupportedDescriptor, f"bulk reduction {operation}")
    ufunc = combine_values(operation)
    if kind == "bf16":
        return bf16_bits(ufunc(bf16_values(np.ascontiguousarray(old)), bf16_values(np.ascontiguousarray(new)))).astype(
            np.uint16
        )
    a, b = np.ascontiguousarray(old).view(kind), np.ascontiguousarray(new).view(kind)
    return ufunc(a, b).view(old.dtype)
