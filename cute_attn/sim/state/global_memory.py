"""Global memory, as the buffers of a launch: bounds, alignment, what nobody wrote, who was added into."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import Misaligned, OutOfBounds, UninitializedRead
from ..formats import SHIFT, WORD
from ..launch import Buffer
from .fault import Fault
from .findings import Findings
from .rounding import Additions


class GlobalMemory:
    """The buffers of a launch. Views of each element size are made once a buffer."""

    def __init__(self, buffers: Sequence[Buffer], findings: Findings):
        self.findings = findings
        self.buffers = sorted(buffers, key=lambda b: b.address)
        for buffer in self.buffers:
            if buffer.data.dtype != np.uint8 or buffer.data.ndim != 1:
                raise ValueError(
                    f"buffer {buffer.name}: data is {buffer.data.dtype}{buffer.data.shape}, allowed: flat uint8"
                )
        self.starts = [b.address for b in self.buffers]
        self.views: dict[tuple[int, int], np.ndarray | None] = {}
        self.shadows: dict[tuple[int, int], np.ndarray] = {}
        self.additions: dict[int, Additions] = {}  # by buffer, for those that receive floating-point additions
        self.loaded: set[int] = set()  # buffers whose contents somebody read
        self.stored: set[int] = set()
        self.watches_sums = False  # whether it matters that sums are rounded
        self.last = 0

    def note_additions(self, address: np.ndarray, old: np.ndarray, new: np.ndarray, kind: str) -> None:
        """Numbers of a type ("f4", "bf16", ...) are added at these addresses, all in one buffer or each in its own."""
        which = np.searchsorted(self.starts, address, side="right") - 1
        for index in np.unique(which).tolist():
            b, here = self.buffers[index], which == index
            noted = self.additions.setdefault(index, Additions(b.data.size, kind, watched=self.watches_sums))
            noted.note(address[here] - b.address, old[here], new[here])

    def find(self, low: int, high: int) -> int | None:
        """The buffer that holds [low, high), None if no single one does."""
        if self.buffers:
            b = self.buffers[self.last]
            if b.address <= low and high <= b.address + b.data.size:
                return self.last
            index = bisect_right(self.starts, low) - 1
            if index >= 0 and high <= self.starts[index] + self.buffers[index].data.size:
                self.last = index
                return index
        return None

    def outside(self, low: int, high: int) -> Fault:
        index = max(bisect_right(self.starts, low) - 1, 0)
        near = ""
        if self.buffers:
            b = self.buffers[index]
            side = (
                f"{low - b.address} bytes from the start"
                if low < b.address + b.data.size
                else f"{low - b.address - b.data.size} bytes past the end"
            )
            near = f"; nearest: {side} of {b.name} ({b.data.size} bytes)"
        return Fault(
            OutOfBounds, f"{high - low} bytes at global address {low:#x} are in no buffer{near}", f"global {low:#x}"
        )

    def locate(self, address: np.ndarray, size: int) -> tuple[int, np.ndarray]:
        """Buffer and byte offsets of accesses of `size` bytes that all lie in one buffer."""
        low, high = int(address.min()), int(address.max()) + size
        if size > 1 and (address & (size - 1)).any():
            bad = int(address[(address & (size - 1)) != 0].flat[0])
            raise Fault(Misaligned, f"global address {bad:#x} is not a multiple of {size}", f"global {bad:#x}")
        index = self.find(low, high)
        if index is None:
            for one in np.unique(address).tolist():
                if self.find(one, one + size) is None:
                    raise self.outside(one, one + size)
            return -1, address
        return index, address - self.buffers[index].address

    def _words(self, index: int, size: int) -> np.ndarray | None:
        key = (index, size)
        if key not in self.views:
            b = self.buffers[index]
            whole = b.data[: b.data.size // size * size]
            self.views[key] = whole.view(WORD[size]) if b.address % size == 0 and b.data.flags.c_contiguous else None
        return self.views[key]

    def _shadow(
        self, unwritten: np.ndarray, index: int, offset: np.ndarray, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """A buffer's shadow, and where in it accesses are: in words where they are aligned there too, else in bytes."""
        if self.buffers[index].address % size:
            return unwritten, offset[..., None] + np.arange(size)
        key = (index, size)
        if key not in self.shadows:
            whole, word = unwritten[: unwritten.size // size * size], min(size, 8)
            self.shadows[key] = whole.view(WORD[word]).reshape(-1, size // word)
        return self.shadows[key], offset >> SHIFT[size]

    def _unread(self, index: int, offset: int, size: int, reader: str) -> Fault:
        """Why an element may not be read: nobody wrote a byte of it."""
        b = self.buffers[index]
        assert b.unwritten is not None
        offset += int(b.unwritten[offset : offset + size].argmax())
        what = f"{reader} byte {offset} of {b.name} that nobody wrote"
        return Fault(UninitializedRead, what, f"global {b.address + offset:#x}")

    def load(self, address: np.ndarray, size: int, *, adds: bool = False) -> np.ndarray:
        """Words of `size` bytes; `adds`: only to be added to."""
        index, offset = self.locate(address, size)
        if index < 0:
            return self._apart(address, size, None)
        if not adds:
            self.loaded.add(index)
        b = self.buffers[index]
        if b.unwritten is not None:
            shadow, where = self._shadow(b.unwritten, index, offset, size)
            unwritten = shadow[where]
            if unwritten.any():
                first = int(offset.reshape(-1)[unwritten.reshape(offset.size, -1).any(1)][0])
                self.findings.found(self._unread(index, first, size, "read of"))
        words = self._words(index, size)
        if words is not None:
            return words[offset >> SHIFT[size]]
        raw = b.data[offset[..., None] + np.arange(size)]
        return raw.view(WORD[size])[..., 0]

    def store(self, address: np.ndarray, size: int, values: np.ndarray) -> None:
        index, offset = self.locate(address, size)
        if index < 0:
            self._apart(address, size, values)
            return
        self.stored.add(index)
        b = self.buffers[index]
        if b.unwritten is not None:
            shadow, where = self._shadow(b.unwritten, index, offset, size)
            shadow[where] = 0
        words = self._words(index, size)
        if words is not None:
            words[offset >> SHIFT[size]] = values
        else:
            raw = np.ascontiguousarray(np.broadcast_to(values, offset.shape))[..., None].view(np.uint8)
            b.data[offset[..., None] + np.arange(size)] = raw

    def window(
        self, first: int, shape: Sequence[int], element: int, strides: Sequence[int], *, writes: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """What a bulk or tensor copy reads or writes: its elements as a view, and their shadow, if any, as another."""
        last = first + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + element
        index = self.find(first, last)
        if index is None:
            raise self.outside(first, last)
        (self.stored if writes else self.loaded).add(index)
        b = self.buffers[index]
        offset = first - b.address
        view = np.ndarray(shape, f"u{element}", b.data, offset, strides)
        if b.unwritten is None:
            return view, None
        return view, np.ndarray(shape, f"u{element}", b.unwritten, offset, strides)

    def demand_written(self, first: int, shadow: np.ndarray | None, reader: str) -> None:
        """Finds fault with a read of a window at `first` with this shadow if nobody wrote some of it."""
        if shadow is not None and shadow.any():
            at = first + sum(i * s for i, s in zip(np.argwhere(shadow)[0].tolist(), shadow.strides, strict=True))
            index = self.find(at, at + 1)
            assert index is not None
            self.findings.found(self._unread(index, at - self.buffers[index].address, shadow.itemsize, reader))

    def _apart(self, address: np.ndarray, size: int, values: np.ndarray | None) -> np.ndarray:
        """Lanes in several buffers: buffer by buffer."""
        which = np.searchsorted(self.starts, address, side="right")
        result: Any = np.empty(address.shape, WORD[size])
        for index in np.unique(which).tolist():
            here = which == index
            if values is None:
                result[here] = self.load(address[here], size)
            else:
                self.store(address[here], size, np.broadcast_to(values, address.shape)[here])
        return result
