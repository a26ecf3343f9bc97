"""The shared memory of a CTA, and a shadow that knows who wrote what and what is still in flight."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from ..errors import (
    CopyInFlight,
    Misaligned,
    MissingBarrier,
    MissingProxyFence,
    OutOfBounds,
    SharedMemoryExceeded,
    SimError,
    UninitializedRead,
)
from ..formats import SHIFT, WORD
from .fault import Fault
from .findings import Findings
from .order import NOBODY, Accessor, Order
from .shared_traffic import SharedTraffic

# shadow codes of a byte of shared memory
UNWRITTEN, WRITTEN, IN_FLIGHT, BARRIER, STALE = range(5)  # no other than BARRIER has a bit of IN_FLIGHT
_WRITTEN = {n: np.frombuffer(bytes([WRITTEN] * n), WORD[n])[0] for n in (1, 2, 4, 8)}
_BUSY = {n: np.frombuffer(bytes([IN_FLIGHT] * n), WORD[n])[0] for n in (1, 2, 4, 8)}


def granules(first: int, last: int) -> slice:
    """The granules of 16 bytes that hold these bytes."""
    return slice(first >> 4, (last + 15) >> 4)


class SharedMemory:
    """The shared memory of one CTA, addressed from 0; the kernel's own begins at `start`.

    Shadow: `code` says of each byte whether it was written; `writer` of each 16 bytes which warp of the cluster wrote
    it last with an ordinary store, and `written` when, on that warp's clock (see Order); `readers` how many
    asynchronous reads of it are in flight; `stamp` when it was last written, on this memory's own `clock`. `fills` has
    of each byte at which a copy to an mbarrier began the end of the last such copy, and its stamp.
    """

    def __init__(self, start: int, end: int, findings: Findings):
        size = -(-end // 1024) * 1024
        self.start, self.end, self.findings = start, end, findings
        self.data = np.empty(size, np.uint8)
        self.code = np.empty(size, np.uint8)
        self.writer = np.empty(size // 16, np.int16)
        self.written = np.empty(size // 16, np.int64)
        self.readers = np.empty(size // 16, np.int16)
        self.stamp = np.empty(size // 16, np.int64)
        self.clock = 0
        self.fills: dict[int, tuple[int, int]] = {}
        self.words: dict[int, np.ndarray] = {n: self.data.view(WORD[n]) for n in WORD}
        self.codes: dict[int, np.ndarray] = {n: self.code.view(WORD[n]) for n in WORD}
        self.granule_codes = self.code.view(np.uint64).reshape(-1, 2)
        self.pending: list[Any] = []  # asynchronous copies into or out of here, for messages
        self.traffic: SharedTraffic | None = None  # where races are looked for
        self.clear()

    def clear(self) -> None:
        self.data.fill(0xFF)
        self.code.fill(UNWRITTEN)
        self.writer.fill(NOBODY)
        self.written.fill(0)
        self.readers.fill(0)
        self.stamp.fill(0)
        self.fills.clear()
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
        index = offset >> SHIFT[size]
        codes = self.codes[size][index]
        if size == 16:
            codes = codes.view(np.uint64)
        if (codes != _WRITTEN[min(size, 8)]).any():
            self._unreadable(offset, size)
        return self.words[size][index]

    def store(self, offset: np.ndarray, size: int, values: np.ndarray, warps: Any, order: Order) -> None:
        """Ordinary stores by `warps` of the cluster, one a lane."""
        self.check(offset, size)
        index = offset >> SHIFT[size]
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

    def _unreadable(self, offset: np.ndarray, size: int) -> None:
        for first in np.unique(offset).tolist():
            self.check_readable(first, first + size)

    def _why_unreadable(self, byte: int) -> Fault:
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
        if code == STALE:
            what = f"read of shared address {byte:#x}, left from an earlier use: a shorter copy has begun its slot anew"
            return Fault(UninitializedRead, what, subject)
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
            bad = np.flatnonzero(code != WRITTEN)
            for at in sorted(np.unique(code[bad], return_index=True)[1].tolist()):  # a byte for each reason
                self.findings.found(self._why_unreadable(first + int(bad[at])))

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
            numbers = np.arange(self.writer.size)[selector].reshape(-1)[late.reshape(-1)]
            faults: dict[type[SimError], Fault] = {}  # one of each kind
            for number in numbers.tolist():
                fault = self._why_unordered(number, accessor, verb)
                if fault.error not in faults:
                    faults[fault.error] = fault
                    self.findings.found(fault)

    def _why_unordered(self, number: int, accessor: Accessor, verb: str) -> Fault:
        """Why asynchronous accesses may not rely on the ordinary stores to a granule."""
        store, when, subject = int(self.writer[number]), int(self.written[number]), f"shared {16 * number:#x}"
        what = f"asynchronous {verb} of shared address {16 * number:#x}, written by ordinary stores of "
        what += accessor.order.name(store)
        others = accessor.unordered(store, when)
        if others:
            return Fault(MissingBarrier, f"{what}: no barrier orders {', '.join(others)} behind them", subject)
        return Fault(MissingProxyFence, f"{what} with no fence.proxy.async since", subject)

    def begin_fill(self, first: int, last: int) -> None:
        """A copy to an mbarrier starts to fill a slot: what a longer one before it left behind the end is stale.

        What anything else has written there since is not.
        """
        end, stamp = self.fills.get(first, (last, 0))
        if end > last:
            rest = self.code[last:end]
            own = np.repeat(self.stamp[granules(last, end)] == stamp, 16)
            rest[own & (rest == WRITTEN)] = STALE

    def end_fill(self, first: int, last: int) -> None:
        """A copy to an mbarrier has filled a slot."""
        self.mark_written(first, last)
        self.fills[first] = last, self.clock

    def mark_written(self, first: int, last: int) -> None:
        """The async proxy wrote these bytes."""
        self.mark_stored(first, last)
        self.writer[granules(first, last)] = NOBODY

    def mark_stored(self, first: int, last: int) -> None:
        """These bytes were written by an asynchronous store; who wrote the rest of their granules is kept."""
        self.code[first:last] = WRITTEN
        self.clock += 1
        self.stamp[granules(first, last)] = self.clock
