"""Global and shared memory: bounds, alignment, and a shadow that knows who wrote what and what is still in flight."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from .errors import (
    CopyInFlight,
    Misaligned,
    MissingBarrier,
    MissingProxyFence,
    OutOfBounds,
    Place,
    SharedMemoryExceeded,
    SimError,
    UninitializedRead,
)
from .launch import Buffer
from .order import NOBODY, Accessor, Order
from .rounding import Additions

# shadow codes of a byte of shared memory
UNWRITTEN, WRITTEN, IN_FLIGHT, BARRIER = range(4)
WORD = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}
_WRITTEN = {n: np.frombuffer(bytes([WRITTEN] * n), WORD[n])[0] for n in (1, 2, 4, 8)}
_BUSY = {n: np.frombuffer(bytes([IN_FLIGHT] * n), WORD[n])[0] for n in (1, 2, 4, 8)}
_SHIFT = {1: 0, 2: 1, 4: 2, 8: 3, 16: 4}


class Fault(Exception):
    """Something wrong with an access, before the place is known."""

    def __init__(self, error: type[SimError], what: str, subject: str = "", notes: Sequence[str] = ()):
        super().__init__(what)
        self.error, self.what, self.subject, self.notes = error, what, subject, notes

    def with_note(self, note: str) -> Fault:
        return Fault(self.error, self.what, self.subject, (*self.notes, note))

    def at(self, place: Place) -> SimError:
        return self.error(self.what, place, subject=self.subject, notes=self.notes)


def granules(first: int, last: int) -> slice:
    """The granules of 16 bytes that hold these bytes."""
    return slice(first >> 4, (last + 15) >> 4)


def _word_view(array: np.ndarray, size: int) -> np.ndarray:
    return array.view(WORD[size])


class SharedMemory:
    """The shared memory of one CTA, addressed from 0; the kernel's own begins at `start`.

    Shadow: `code` says of each byte whether it was written; `writer` of each 16 bytes which warp of the cluster wrote
    it last with an ordinary store, and `written` when, on that warp's clock (see Order); `readers` how many
    asynchronous reads of it are in flight; `stamp` when it was last written, on this memory's own `clock`.
    """

    def __init__(self, start: int, end: int):
        size = -(-end // 1024) * 1024
        self.start, self.end = start, end
        self.data = np.empty(size, np.uint8)
        self.code = np.empty(size, np.uint8)
        self.writer = np.empty(size // 16, np.int16)
        self.written = np.empty(size // 16, np.int64)
        self.readers = np.empty(size // 16, np.int16)
        self.stamp = np.empty(size // 16, np.int64)
        self.clock = 0
        self.words = {n: _word_view(self.data, n) for n in WORD}
        self.codes = {n: _word_view(self.code, n) for n in WORD}
        self.granule_codes = self.code.view(np.uint64).reshape(-1, 2)
        self.pending: list[Any] = []  # asynchronous copies into or out of here, for messages
        self.clear()

    def clear(self) -> None:
        self.data.fill(0xFF)
        self.code.fill(UNWRITTEN)
        self.writer.fill(NOBODY)
        self.written.fill(0)
        self.readers.fill(0)
        self.stamp.fill(0)
        self.pending.clear()

    # ------------------------------------------------------------------ ordinary accesses: offsets of any shape

    def check(self, offset: np.ndarray, size: int) -> None:
        low, high = int(offset.min()), int(offset.max())
        if low < self.start or high + size > self.end:
            self._outside(low if low < self.start else high, size)
        if size > 1 and (offset & (size - 1)).any():
            bad = int(offset[(offset & (size - 1)) != 0].flat[0])
            raise Fault(Misaligned, f"shared address {bad:#x} is not a multiple of {size}", f"shared {bad:#x}")

    def _outside(self, offset: int, size: int) -> NoReturn:
        subject = f"shared {offset:#x}"
        if self.end <= offset + size - 1 < 1 << 24 and offset >= self.start:
            raise Fault(
                SharedMemoryExceeded,
                f"{size} bytes at shared {offset:#x} are beyond the shared memory asked for, up to {self.end:#x}",
                subject,
            )
        raise Fault(OutOfBounds, f"{size} bytes at {offset:#x} are outside this CTA's shared memory", subject)

    def load(self, offset: np.ndarray, size: int) -> np.ndarray:
        """Words of `size` bytes (16 as complex128) at checked offsets."""
        self.check(offset, size)
        index = offset >> _SHIFT[size]
        codes = self.codes[size][index]
        if size == 16:
            codes = codes.view(np.uint64)
        if (codes != _WRITTEN[min(size, 8)]).any():
            self._unreadable(offset, size)
        return self.words[size][index]

    def store(self, offset: np.ndarray, size: int, values: np.ndarray, warps: Any, order: Order) -> None:
        """Ordinary stores by `warps` of the cluster, one a lane."""
        self.check(offset, size)
        index = offset >> _SHIFT[size]
        granule = offset >> 4
        codes = self.codes[size][index]
        if size == 16:
            codes = codes.view(np.uint64)
        if (codes & _BUSY[min(size, 8)]).any() or self.readers[granule].any():
            self._unwritable(offset, size)
        self.words[size][index] = values
        if size == 16:
            self.granule_codes[index] = _WRITTEN[8]
        else:
            self.codes[size][index] = _WRITTEN[size]
        self.writer[granule] = warps
        self.written[granule] = order.clock[warps]
        self.clock += 1
        self.stamp[granule] = self.clock

    def _unreadable(self, offset: np.ndarray, size: int) -> NoReturn:
        for first in np.unique(offset).tolist():
            code = self.code[first : first + size]
            if (code != WRITTEN).any():
                byte = first + int(np.flatnonzero(code != WRITTEN)[0])
                raise self.unreadable(byte)
        raise AssertionError("no byte explains the fault")

    def unreadable(self, byte: int) -> Fault:
        """Why a byte may not be read."""
        code, subject = int(self.code[byte]), f"shared {byte:#x}"
        if code == IN_FLIGHT:
            return Fault(
                CopyInFlight,
                f"read of shared address {byte:#x} that a copy in flight writes",
                subject,
                self.copies(byte),
            )
        if code == BARRIER:
            return Fault(OutOfBounds, f"read of shared address {byte:#x} that belongs to an mbarrier", subject)
        return Fault(UninitializedRead, f"read of shared address {byte:#x} that nobody wrote", subject)

    def _unwritable(self, offset: np.ndarray, size: int) -> NoReturn:
        for first in np.unique(offset).tolist():
            self.check_writable(first, first + size)
        raise AssertionError("no byte explains the fault")

    def copies(self, byte: int) -> list[str]:
        return [str(c) for c in self.pending if any(a <= byte < b for a, b in c.spans)]

    # ------------------------------------------------------------------ asynchronous accesses: ranges of bytes

    def check_range(self, first: int, last: int, align: int = 16) -> None:
        if first < self.start or last > self.end:
            self._outside(
                first if first < self.start else max(first, self.end),
                1 if first >= self.end else last - max(first, self.end),
            )
        if first % align:
            raise Fault(Misaligned, f"shared address {first:#x} is not a multiple of {align}", f"shared {first:#x}")

    def check_writable(self, first: int, last: int) -> None:
        """No copy in flight, no asynchronous read and no mbarrier there."""
        code = self.code[first:last]
        if (code & IN_FLIGHT).any():
            byte = first + int(np.flatnonzero(code & IN_FLIGHT)[0])
            subject = f"shared {byte:#x}"
            if self.code[byte] == BARRIER:
                raise Fault(OutOfBounds, f"write to shared address {byte:#x} that belongs to an mbarrier", subject)
            raise Fault(
                CopyInFlight,
                f"write to shared address {byte:#x} that a copy in flight writes too",
                subject,
                self.copies(byte),
            )
        readers = self.readers[first >> 4 : (last + 15) >> 4]
        if readers.any():
            byte = max(first, (first >> 4) + int(np.flatnonzero(readers)[0]) << 4)
            what = f"write to shared address {byte:#x} that a wgmma or a bulk copy in flight still reads"
            raise Fault(CopyInFlight, what, f"shared {byte:#x}", self.copies(byte))

    def check_readable(self, first: int, last: int) -> None:
        """Written, and nothing in flight there."""
        code = self.code[first:last]
        if (code != WRITTEN).any():
            raise self.unreadable(first + int(np.flatnonzero(code != WRITTEN)[0]))

    def check_granules(self, selector: Any) -> None:
        """The same for granules of 16 bytes: a slice or an array of their numbers."""
        if (self.granule_codes[selector] != _WRITTEN[8]).any():
            for number in np.arange(self.writer.size)[selector].tolist():
                self.check_readable(16 * number, 16 * number + 16)

    def check_ordered(self, selector: Any, accessor: Accessor, verb: str) -> None:
        """Whether asynchronous accesses that start now are ordered behind all ordinary stores to these granules."""
        writer = self.writer[selector]
        if not writer.any():
            return
        late = self.written[selector] > accessor.newest[writer]
        if late.any():
            at = int(late.argmax())
            number = int(np.arange(self.writer.size)[selector].reshape(-1)[at])
            store, when = int(writer.flat[at]), int(self.written[number])
            what = f"asynchronous {verb} of shared address {16 * number:#x}, written by ordinary stores of "
            what += accessor.order.name(store)
            others = accessor.unordered(store, when)
            if others:
                what += f": no barrier orders {', '.join(others)} behind them"
                raise Fault(MissingBarrier, what, f"shared {16 * number:#x}")
            raise Fault(MissingProxyFence, f"{what} with no fence.proxy.async since", f"shared {16 * number:#x}")

    def mark_written(self, first: int, last: int) -> None:
        """The async proxy wrote these bytes."""
        self.code[first:last] = WRITTEN
        self.writer[first >> 4 : (last + 15) >> 4] = NOBODY
        self.clock += 1
        self.stamp[first >> 4 : (last + 15) >> 4] = self.clock


class GlobalMemory:
    """The buffers of a launch. Views of each element size are made once a buffer."""

    def __init__(self, buffers: Sequence[Buffer]):
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
        self.last = 0

    def note_additions(self, address: np.ndarray, old: np.ndarray, new: np.ndarray, kind: str) -> None:
        """Numbers of a type ("f4", "bf16", ...) are added at these addresses, all in one buffer or each in its own."""
        which = np.searchsorted(self.starts, address, side="right") - 1
        for index in np.unique(which).tolist():
            b, here = self.buffers[index], which == index
            noted = self.additions.setdefault(index, Additions(b.data.size, kind))
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
        return self.shadows[key], offset >> _SHIFT[size]

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
                raise self._unread(index, first, size, "read of")
        words = self._words(index, size)
        if words is not None:
            return words[offset >> _SHIFT[size]]
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
            words[offset >> _SHIFT[size]] = values
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
        """Refuses to read a window at `first` with this shadow if nobody wrote some of it."""
        if shadow is not None and shadow.any():
            at = first + sum(i * s for i, s in zip(np.argwhere(shadow)[0].tolist(), shadow.strides, strict=True))
            index = self.find(at, at + 1)
            assert index is not None
            raise self._unread(index, at - self.buffers[index].address, shadow.itemsize, reader)

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
