"""Runs the batches of a launch in several processes where that pays; the results are those of one process.

Forked processes see memory as it was at the fork, and note which bytes they read and write. If none touched what
another wrote, the order of the batches did not matter, and what they wrote is put together. Otherwise, and when one of
them meets an error, their work is thrown away and the batches run in turn: no result depends on the number of cores,
nor on when processes are thought to pay.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import time
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..formats import WORD
from ..launch import Buffer
from ..state.findings import Findings
from ..state.global_memory import GlobalMemory
from .batches import Batch
from .scheduler import Scheduler

# What processes cost. Measured: two forks take 0.01 s of CPU time, noting, sending and comparing 7 ns for each byte of
# the buffers. Both are taken as more, so that little work is never slower for it.
FORKING, COMPARING = 0.3, 1e-8  # seconds; seconds a byte
Warned = tuple[int, tuple[str, int | None], str]  # the number of its batch, what it is known by, its text
Numbered = Sequence[tuple[int, Batch]]  # batches with their numbers
_ONES = {n: np.frombuffer(bytes([1] * n), word)[0] for n, word in WORD.items()}


class Changes(NamedTuple):
    """What a process did to one buffer: a bit for each byte read and written, and the bytes written."""

    read: np.ndarray
    written: np.ndarray
    values: np.ndarray


class Outcome(NamedTuple):
    """What a process did."""

    changes: list[Changes]  # a buffer each
    warnings: list[Warned]  # in order
    statistics: dict[str, int]


class NotedMemory(GlobalMemory):
    """Global memory that notes which bytes are read and written."""

    def __init__(self, buffers: Sequence[Buffer], findings: Findings):
        super().__init__(buffers, findings)
        blank = lambda b: b._replace(data=np.zeros(b.data.size, np.uint8), unwritten=None)  # noqa: E731
        self.read, self.written = (GlobalMemory([blank(b) for b in self.buffers], findings) for _ in range(2))

    def load(self, address: np.ndarray, size: int, *, adds: bool = False) -> np.ndarray:
        self.read.store(address, size, _ONES[size])
        return super().load(address, size, adds=adds)

    def store(self, address: np.ndarray, size: int, values: np.ndarray) -> None:
        self.written.store(address, size, _ONES[size])
        super().store(address, size, values)

    def window(
        self, first: int, shape: Sequence[int], element: int, strides: Sequence[int], *, writes: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        notes = self.written if writes else self.read
        notes.window(first, shape, element, strides, writes=True)[0][...] = _ONES[element]
        return super().window(first, shape, element, strides, writes=writes)

    def changes(self) -> list[Changes]:
        found = []
        for b, read, written in zip(self.buffers, self.read.buffers, self.written.buffers, strict=True):
            values = b.data[written.data.view(bool)]
            found.append(Changes(np.packbits(read.data), np.packbits(written.data), values))
        return found


def run(scheduler: Scheduler, batches: Sequence[Batch], workers: int) -> None:
    """Runs batches in turn until it pays to run those left in up to `workers` processes."""
    left = list(enumerate(batches))
    last = 0.0  # seconds; says nothing before the second batch, for the first translates
    while left:
        start = time.perf_counter()
        scheduler.run(*left.pop(0))
        seconds = time.perf_counter() - start
        processes = min(workers, len(left))
        if processes > 1 and _pays(scheduler, min(last, seconds) * len(left), processes):
            if _side_by_side(scheduler, left, processes):
                return
            workers = 1  # what came in their way would come again
        last = seconds


def _pays(scheduler: Scheduler, seconds: float, processes: int) -> bool:
    size = sum(b.data.size for b in scheduler.machine.memory.buffers)
    return seconds * (1 - 1 / processes) > FORKING + COMPARING * size


def _side_by_side(scheduler: Scheduler, batches: Numbered, workers: int) -> bool:
    """Runs batches in as many processes; false, and nothing is done, if they met or one met an error."""
    outcomes = _outcomes(scheduler, batches, workers)
    if None in outcomes or _meet(outcomes):
        return False
    _merge(scheduler, outcomes)
    return True


def _outcomes(scheduler: Scheduler, batches: Numbered, workers: int) -> list[Outcome | None]:
    """What each process did; None for one that met an error."""
    children: list[int] = []
    pipes: list[int] = []
    try:
        for worker in range(workers):
            receive, send = os.pipe()
            pipes.append(receive)
            with warnings.catch_warnings():  # forking beside other threads: the child runs nothing of theirs
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if child == 0:
                _work(scheduler, batches[worker::workers], send)
            children.append(child)
            os.close(send)
        return [_receive(pipe) for pipe in pipes]
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)  # done, or not wanted any more
            os.waitpid(child, 0)
        for pipe in pipes:
            os.close(pipe)


def _receive(pipe: int) -> Outcome | None:
    with os.fdopen(pipe, "rb", closefd=False) as file:
        raw = file.read()
    return pickle.loads(raw) if raw else None


def _work(scheduler: Scheduler, batches: Numbered, send: int) -> None:
    """A child: its share of the batches, in turn, on memory of its own. It ends here, whatever happens."""
    try:
        gc.disable()  # objects of the parent's libraries must not be finalised here
        before = scheduler.machine.memory
        # copies: forking does not part memory that is shared between processes, as tensors may be
        memory = NotedMemory([b._replace(data=b.data.copy()) for b in before.buffers], before.findings)
        scheduler.machine.memory = memory
        scheduler.machine.statistics = dict.fromkeys(scheduler.machine.statistics, 0)
        warned: list[Warned] = []
        for number, batch in batches:
            known = len(scheduler.machine.warnings)
            scheduler.run(number, batch)
            warned += [(number, *warning) for warning in list(scheduler.machine.warnings.items())[known:]]
        raw = pickle.dumps(Outcome(memory.changes(), warned, scheduler.machine.statistics), protocol=5)
        with os.fdopen(send, "wb") as file:
            file.write(raw)
    finally:
        os._exit(0)


def _meet(outcomes: Sequence[Outcome | None]) -> bool:
    """Whether a process read or wrote bytes that another wrote."""
    for buffers in zip(*(outcome.changes for outcome in outcomes if outcome), strict=True):
        read, written = buffers[0].read.copy(), buffers[0].written.copy()
        for changes in buffers[1:]:
            if (changes.written & (read | written)).any() or (changes.read & written).any():
                return True
            read |= changes.read
            written |= changes.written
    return False


def _merge(scheduler: Scheduler, outcomes: Sequence[Outcome | None]) -> None:
    warned: list[Warned] = []
    for outcome in outcomes:
        assert outcome is not None
        for index, (buffer, changes) in enumerate(zip(scheduler.machine.memory.buffers, outcome.changes, strict=True)):
            if changes.read.any():
                scheduler.machine.memory.loaded.add(index)
            if changes.written.any():
                scheduler.machine.memory.stored.add(index)
            written = np.unpackbits(changes.written, count=buffer.data.size).view(bool)
            buffer.data[written] = changes.values
            if buffer.unwritten is not None:
                buffer.unwritten[written] = False
        for name, count in outcome.statistics.items():
            scheduler.machine.statistics[name] += count
        warned += outcome.warnings
    for _, key, warning in sorted(warned, key=lambda numbered: numbered[0]):  # those of a batch stay in order
        scheduler.machine.warnings.setdefault(key, warning)
