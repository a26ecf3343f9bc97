"""Copies in im2col mode: as many pixels of images as a map says, in the order of the windows of a convolution."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..errors import OutOfBounds, UnsupportedDescriptor
from .combine import combine_bits
from .fault import Fault
from .global_memory import GlobalMemory
from .rounding import UNIT
from .tensor_map import TensorMap


class _Axis(NamedTuple):
    """Width, height or depth: where the first pixel is, which the bounding box has, and what the tensor is like."""

    at: int
    lower: int
    upper: int
    step: int
    size: int
    stride: int  # bytes
    offset: int

    @property
    def pixels(self) -> range:
        return range(self.lower, self.size + self.upper, self.step)


@dataclass
class Pixels:
    """One copy through a map in im2col mode, of the rows of channels at pixels that follow each other.

    The first pixel is at `coordinates`; the next ones go through the bounding box by its steps, width first, then
    height, depth and images. `offsets`, those of an element of the filter, come on top: only then what lies outside
    of the tensor counts, as zero.
    """

    map: TensorMap
    coordinates: tuple[int, ...]
    offsets: tuple[int, ...]  # w, h, d

    def __str__(self) -> str:
        channels, pixels = self.map.box
        return f"{pixels} pixels of {channels} channels at {self.coordinates} of a tensor {self.map.sizes}"

    @property
    def type(self) -> str:
        return self.map.type

    @cached_property
    def _axes(self) -> list[_Axis]:
        """Width, height and depth, as far as there are any."""
        m = self.map
        assert m.window is not None
        columns = self.coordinates[1:-1], *m.window, m.sizes[1:-1], m.strides[1:-1], self.offsets
        axes = [_Axis(*values) for values in zip(*columns, strict=True)]
        if sum((size - 1) * stride for size, stride in zip(m.sizes, m.strides, strict=True)) >> 48:
            raise Fault(UnsupportedDescriptor, f"{self}, which is larger than any memory")
        for axis in axes:
            if axis.at not in axis.pixels:
                what = f"{self}: {axis.at} is no pixel of the bounding box, {axis.pixels}"
                raise Fault(UnsupportedDescriptor, what)
        return axes

    @cached_property
    def _rows(self) -> tuple[np.ndarray, np.ndarray, int, int]:
        """Addresses of the rows inside of the tensor, which pixels these are, and their channels, from and to."""
        m, first, image = self.map, self.coordinates[0], self.coordinates[-1]
        low, high = max(0, -first), min(m.box[0], m.sizes[0] - first)
        address = np.full(m.box[1], (first + low) * m.element, np.int64)
        inside = np.full(m.box[1], low < high)
        carry = np.arange(m.box[1])
        for axis in self._axes:
            carry, number = np.divmod(carry + axis.pixels.index(axis.at), len(axis.pixels))
            place = axis.lower + axis.step * number + axis.offset
            inside &= (place >= 0) & (place < axis.size)
            address += place * axis.stride
        inside &= (carry + image >= 0) & (carry + image < m.sizes[-1])
        address += (carry + image) * m.strides[-1]
        which = np.flatnonzero(inside)
        if which.size and m.address >> 62:
            what = f"{self}, which begins at {m.address:#x}, beyond all memory"
            raise Fault(OutOfBounds, what, f"global {m.address:#x}")
        return address[which] + (m.address if which.size else 0), which, low, high

    def spans(self) -> tuple[np.ndarray, int] | None:
        """Addresses of the rows, and their length; None if none of them is inside the tensor."""
        address, _, low, high = self._rows
        return (address, (high - low) * self.map.element) if address.size else None

    def _elements(self) -> tuple[np.ndarray, tuple[np.ndarray, slice]]:
        """Addresses [rows, channels] of what is inside the tensor, and where that is among the pixels."""
        address, which, low, high = self._rows
        return address[:, None] + self.map.element * np.arange(high - low), (which, slice(low, high))

    def read(self, memory: GlobalMemory) -> np.ndarray:
        """The pixels as bytes; elements outside the tensor are zero."""
        channels, pixels = self.map.box
        full = np.zeros((pixels, channels), f"u{self.map.element}")
        address, where = self._elements()
        if address.size:
            full[where] = memory.load(address, self.map.element)
        return full.reshape(-1).view(np.uint8)

    def write(self, memory: GlobalMemory, raw: np.ndarray, operation: str | None) -> None:
        """Puts the bytes into the tensor, or combines them with it; elements outside are dropped."""
        address, where = self._elements()
        if not address.size:
            return
        values = raw.view(f"u{self.map.element}").reshape(self.map.box[::-1])[where]
        if operation is not None:
            before = memory.load(address, self.map.element, adds=True)
            if operation == "add" and self.map.type in UNIT:
                memory.note_additions(address, before, values, self.map.type)
            values = combine_bits(before, values, operation, self.map.type)
        memory.store(address, self.map.element, values)
