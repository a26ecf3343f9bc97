"""How far apart two orders of the same floating-point additions may lie: the rounding errors of each, added up.

An addition that gives r errs by at most u |r|, u the unit roundoff. So what a run left in an element is off by at most
u times the sum of the magnitudes of its intermediate results, and two runs differ by at most the sum of their errors.
"""

from __future__ import annotations

import numpy as np

from ..formats import bf16_bits, bf16_values

UNIT = {"bf16": 2.0**-8, "f2": 2.0**-11, "f4": 2.0**-24, "f8": 2.0**-53}  # by type of element


def numbers(bits: np.ndarray, kind: str) -> np.ndarray:
    """The numbers of a type whose bits these are; packed pairs come as two numbers along a new last axis."""
    bits = np.ascontiguousarray(bits)
    if kind == "bf16":
        return bf16_values(bits if bits.itemsize == 2 else bits[..., None].view(np.uint16))
    width = int(kind[1:])
    return (bits if bits.itemsize == width else bits[..., None].view(f"u{width}")).view(kind)


def magnitude(bits: np.ndarray, kind: str) -> np.ndarray:
    return np.abs(numbers(bits, kind))


def rounds(old: np.ndarray, new: np.ndarray, kind: str) -> bool:
    """Whether a sum of these bits of numbers is none of the type; of fp64 it is taken to be none."""
    if kind == "f8":
        return True
    exact = numbers(old, kind).astype(np.float64) + numbers(new, kind).astype(np.float64)
    rounded = bf16_values(bf16_bits(exact.astype(np.float32))) if kind == "bf16" else exact.astype(kind)
    return bool((rounded != exact).any())


class Additions:
    """The additions into one buffer."""

    def __init__(self, size: int, kind: str, *, watched: bool = False):
        self.kind, self._watched = kind, watched
        self.errors = np.zeros(size)  # at each element's first byte
        self.several = False  # whether an element received more than one: their order then matters
        self.rounded = False  # whether a sum was rounded, where that is watched

    def note(self, offset: np.ndarray, old: np.ndarray, new: np.ndarray) -> None:
        """Bits `new` are added to bits `old` at these bytes; the same byte may come several times."""
        if self._watched:
            self.rounded = self.rounded or rounds(old, new, self.kind)
        result = magnitude(old, self.kind) + magnitude(new, self.kind)
        if result.ndim > offset.ndim:
            result = result.max(-1)
        where = offset.reshape(-1)
        self.several = self.several or bool(self.errors[where].any()) or np.unique(where).size < where.size
        np.add.at(self.errors, where, UNIT[self.kind] * result.reshape(-1).astype(np.float64))

    def bound(self, data: np.ndarray) -> float:
        """The largest error of an element, relative to the largest element that the buffer holds in the end."""
        width = 2 if self.kind == "bf16" else int(self.kind[1:])
        values = magnitude(data[: data.size // width * width].view(f"u{width}"), self.kind)
        return _largest(self.errors) / (_largest(values) or 1.0)


def _largest(values: np.ndarray) -> float:
    return float(values[np.isfinite(values)].max(initial=0.0))
