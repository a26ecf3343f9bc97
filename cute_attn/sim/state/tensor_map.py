"""The global side of an asynchronous copy: a box of a tensor, as its map says, or consecutive bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..errors import Misaligned, OutOfBounds, UnsupportedDescriptor
from .combine import combine_bits
from .fault import Fault
from .global_memory import GlobalMemory
from .rounding import UNIT

# type field of a tensor map: size of an element, and how reductions read it
_TYPES = {0: (1, "u1"), 1: (2, "u2"), 2: (4, "u4"), 6: (2, "f2"), 7: (4, "f4"), 10: (2, "bf16")}
_SWIZZLES = {0: 0, 1: 0x10, 2: 0x30, 3: 0x70}  # none, 32, 64, 128 bytes: address bits that are XORed
# word 2: mode, rank, type and swizzle mean something here, L2 promotion (bits 18 to 23) does not; bit 1 is always 1
_KNOWN_BITS = 1 | 0x70 | 0x780 | 0x6000 | 0xFC0000
_CORNER_BITS = {3: 16, 4: 8, 5: 5}  # of each axis, by rank: two corners in word 14


class Window(NamedTuple):
    """Of a map in im2col mode: the bounding box of the first pixels of windows, and its steps; for w, h, d each.

    `lower` counts from the first pixel, `upper` from behind the last one.
    """

    lower: tuple[int, ...]
    upper: tuple[int, ...]
    steps: tuple[int, ...]


@dataclass(frozen=True)
class TensorMap:
    """What the first 64 bytes of a CUtensorMap say; dimension 0 is the fastest."""

    address: int
    rank: int
    element: int  # bytes
    type: str
    swizzle: int
    strides: tuple[int, ...]  # bytes
    sizes: tuple[int, ...]
    box: tuple[int, ...]  # in im2col mode channels and pixels
    window: Window | None = None

    @property
    def box_bytes(self) -> int:
        return int(np.prod(self.box)) * self.element


@lru_cache(maxsize=256)
def decode_map(raw: bytes) -> TensorMap:
    """Reads a tensor map as the compiled host code writes it.

    Raises:
        Fault: for fields that are not known.
    """
    w = np.frombuffer(raw[:64], np.uint32).tolist()
    if (w[2] ^ 2) & ~_KNOWN_BITS:
        raise Fault(UnsupportedDescriptor, f"word 2 of the tensor map has unknown bits: {w[2]:#010x}")
    rank, kind, swizzle = (w[2] >> 4 & 7) + 1, w[2] >> 7 & 15, w[2] >> 13 & 3
    if kind not in _TYPES or rank > 5:
        raise Fault(UnsupportedDescriptor, f"tensor map of type {kind} and rank {rank}")
    element, name = _TYPES[kind]
    box, window = _pixels(w, rank) if w[2] & 1 else _box(w, rank)
    return TensorMap(
        w[0] | w[1] << 32,
        rank,
        element,
        name,
        _SWIZZLES[swizzle],
        (element, *(16 * s for s in w[3 : 2 + rank])),
        tuple(s + 1 for s in w[8 : 8 + rank]),
        box,
        window,
    )


def _box(w: list[int], rank: int) -> tuple[tuple[int, ...], None]:
    boxes = (w[13] >> 24, w[14] & 255, w[14] >> 8 & 255, w[14] >> 16 & 255, w[14] >> 24)
    _none_of(w, {7: w[7], 13: w[13] & 0xFFFFFF, 15: w[15]})
    return tuple(b + 1 for b in boxes[:rank]), None


def _pixels(w: list[int], rank: int) -> tuple[tuple[int, ...], Window]:
    if rank not in _CORNER_BITS:
        raise Fault(UnsupportedDescriptor, f"a tensor map in im2col mode of rank {rank}")
    axes, bits = range(rank - 2), _CORNER_BITS[rank]
    steps = sum(7 << 3 * (axis + 1) for axis in axes)
    corners = sum(((1 << bits) - 1) << bits * axis for axis in axes) * 0x10001
    _none_of(w, {7: w[7], 13: w[13] & 0xFFFFFF & ~steps, 14: w[14] & ~corners, 15: w[15] & ~0x3FF})

    def corner(half: int) -> tuple[int, ...]:
        fields = (half >> bits * axis & (1 << bits) - 1 for axis in axes)
        return tuple(f - (f >> bits - 1 << bits) for f in fields)

    window = Window(
        corner(w[14] & 0xFFFF), corner(w[14] >> 16), tuple((w[13] >> 3 * (axis + 1) & 7) + 1 for axis in axes)
    )
    return ((w[13] >> 24) + 1, w[15] + 1), window


def _none_of(w: list[int], unknown: dict[int, int]) -> None:
    """Raises if any of these bits of the words are set."""
    if any(unknown.values()):
        words, what = ", ".join(map(str, unknown)), ", ".join(f"{w[i]:#x}" for i in unknown)
        raise Fault(UnsupportedDescriptor, f"words {words} of the tensor map have unknown bits: {what}")


@lru_cache(maxsize=4096)
def swizzled(first: int, count: int, mask: int) -> np.ndarray:
    """Which granules of 16 bytes a dense run from byte `first` is stored in."""
    address = first + 16 * np.arange(count)
    return (address ^ ((address >> 3) & mask)) >> 4


@dataclass
class Box:
    """One tensor copy: a map and where its box lies."""

    map: TensorMap
    coordinates: tuple[int, ...]

    def __str__(self) -> str:
        return f"box {self.map.box} at {self.coordinates} of a tensor {self.map.sizes}"

    def _inside(self) -> tuple[int, list[int], tuple[slice, ...]] | None:
        """The part inside the tensor: its address, its extents, where it lies in the box; slowest axis first."""
        m = self.map
        low = [max(0, -c) for c in self.coordinates]
        high = [min(b, s - c) for b, s, c in zip(m.box, m.sizes, self.coordinates, strict=True)]
        if any(h <= lo for lo, h in zip(low, high, strict=True)):
            return None
        first = m.address + sum((c + lo) * s for c, lo, s in zip(self.coordinates, low, m.strides, strict=True))
        if first >> 62:
            raise Fault(OutOfBounds, f"{self} begins at {first:#x}, beyond all memory", f"global {first:#x}")
        where = tuple(slice(lo, h) for lo, h in zip(low[::-1], high[::-1], strict=True))
        return first, [s.stop - s.start for s in where], where

    @property
    def type(self) -> str:
        return self.map.type

    def spans(self) -> tuple[np.ndarray, int] | None:
        """Addresses of the rows of the box, and their length; None if none of it is inside the tensor."""
        inside = self._inside()
        if inside is None:
            return None
        first, extent, _ = inside
        axes = [n * s for n, s in zip(map(np.arange, extent[:-1]), self.map.strides[:0:-1], strict=True)]
        starts = first + np.asarray(sum(np.ix_(*axes)) if axes else 0, np.int64)
        return starts.reshape(-1), extent[-1] * self.map.element

    def read(self, memory: GlobalMemory) -> np.ndarray:
        """The box as bytes; elements outside the tensor are zero."""
        inside = self._inside()
        shape = self.map.box[::-1]
        if inside is None:
            return np.zeros(self.map.box_bytes, np.uint8)
        first, extent, where = inside
        view, unwritten = memory.window(first, extent, self.map.element, self.map.strides[::-1], writes=False)
        memory.demand_written(first, unwritten, f"tensor copy of {self} reads")
        if view.shape == shape:
            return np.ascontiguousarray(view).reshape(-1).view(np.uint8)
        full = np.zeros(shape, view.dtype)
        full[where] = view
        return full.reshape(-1).view(np.uint8)

    def write(self, memory: GlobalMemory, raw: np.ndarray, operation: str | None) -> None:
        """Puts the box's bytes into the tensor, or combines them with it; elements outside are dropped."""
        inside = self._inside()
        if inside is None:
            return
        first, extent, where = inside
        view, unwritten = memory.window(first, extent, self.map.element, self.map.strides[::-1], writes=True)
        values = raw.view(view.dtype).reshape(self.map.box[::-1])[where]
        if operation is None:
            view[...] = values
        else:
            memory.demand_written(first, unwritten, f"tensor {operation} to {self} reads")
            if operation == "add" and self.map.type in UNIT:
                memory.note_additions(self._addresses(where), view, values, self.map.type)
            view[...] = combine_bits(view, values, operation, self.map.type)
        if unwritten is not None:
            unwritten[...] = 0

    def _addresses(self, where: tuple[slice, ...]) -> np.ndarray:
        """Of the elements of this part of the box."""
        corners, strides = self.coordinates[::-1], self.map.strides[::-1]
        axes = [(c + np.arange(w.start, w.stop)) * s for c, s, w in zip(corners, strides, where, strict=True)]
        return self.map.address + np.asarray(sum(np.ix_(*axes)))


@dataclass
class Span:
    """Consecutive bytes of global memory: the other side of a one-dimensional bulk copy."""

    first: int
    size: int
    type: str = "u1"

    def __str__(self) -> str:
        return f"{self.size} bytes at global {self.first:#x}"

    def spans(self) -> tuple[np.ndarray, int]:
        return np.array([self.first]), self.size

    def _window(self, memory: GlobalMemory, *, writes: bool) -> tuple[np.ndarray, np.ndarray | None]:
        if self.first % 16 or self.size % 16:
            raise Fault(Misaligned, f"a bulk copy of {self}: both must be multiples of 16", f"global {self.first:#x}")
        return memory.window(self.first, (self.size,), 1, (1,), writes=writes)

    def read(self, memory: GlobalMemory) -> np.ndarray:
        view, unwritten = self._window(memory, writes=False)
        memory.demand_written(self.first, unwritten, f"bulk copy of {self} reads")
        return view.copy()

    def write(self, memory: GlobalMemory, raw: np.ndarray, operation: str | None) -> None:
        target, unwritten = self._window(memory, writes=True)
        if operation is None:
            target[...] = raw
        else:
            memory.demand_written(self.first, unwritten, f"bulk {operation} to {self} reads")
            width = 2 if self.type == "bf16" else int(self.type[1:])
            whole = target.copy().view(f"u{width}")
            if operation == "add" and self.type in UNIT:
                addresses = np.arange(self.first, self.first + self.size, width)
                memory.note_additions(addresses, whole, raw.view(f"u{width}"), self.type)
            target[...] = combine_bits(whole, raw.view(f"u{width}"), operation, self.type).view(np.uint8)
        if unwritten is not None:
            unwritten[...] = 0
