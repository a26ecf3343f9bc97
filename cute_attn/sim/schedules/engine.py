"""Runs a launch: checks its shapes, translates its kernel once, and lets the scheduler run it."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import torch

from ..code.program import program_of
from ..errors import Place, SharedMemoryExceeded, SimError
from ..launch import Buffer, Launch, Report, Schedule
from ..properties import PROPERTIES
from ..state.findings import Findings
from ..state.global_memory import GlobalMemory
from ..state.steps import Recorder
from . import blas, side_by_side
from .batches import cut
from .scheduler import Scheduler

RESERVED_SHARED, RESIDENT_CTAS = 1024, 32  # of a multiprocessor: bytes that each CTA takes besides, CTAs at a time


def execute(
    launch: Launch,
    buffers: Sequence[Buffer],
    schedule: Schedule,
    workers: int | None = None,
    warned: Collection[type[SimError]] = (),
    recorder: Recorder | None = None,
) -> Report:
    """Runs one launch on the CPU; writes the buffers.

    Uses up to `workers` processes where that pays, which changes no result; None: as many as PyTorch uses threads.
    Findings of the classes `warned` are warnings of the report, after which the kernel goes on. A recorder is told what
    every warp does to synchronise; the launch then runs in this process.

    Raises:
        SimError: for everything that the kernel does wrong, or that is not modelled.
        ValueError: for a launch whose shapes do not fit each other, or buffers that are not flat uint8.
    """
    _check(launch)
    program = program_of(launch.ptx, launch.kernel)
    with np.errstate(all="ignore"), blas.one_thread():
        scheduler = Scheduler(launch, program, GlobalMemory(buffers, Findings(warned)), schedule)
        if recorder:
            recorder.begin(scheduler.machine.memory)
            scheduler.machine.recorder = recorder
        most = torch.get_num_threads() if workers is None else workers
        side_by_side.run(scheduler, cut(launch, program, schedule.mode), 1 if recorder else most)
        if recorder:
            recorder.finished = True
        return scheduler.machine.report()


def _check(launch: Launch) -> None:
    """What the driver would refuse."""
    name = launch.kernel
    for shape, triple in (("grid", launch.grid), ("block", launch.block), ("cluster", launch.cluster)):
        if len(triple) != 3 or min(triple) < 1:
            raise ValueError(f"{name}: {shape} is {triple}; allowed: three positive numbers")
    if any(g % c for g, c in zip(launch.grid, launch.cluster, strict=True)):
        raise ValueError(f"{name}: grid is {launch.grid}; it must be a multiple of the cluster {launch.cluster}")
    if (threads := math.prod(launch.block)) > (most := PROPERTIES.max_threads_per_block):
        raise ValueError(f"{name}: block is {launch.block}, {threads} threads; allowed: at most {most}")
    if not 0 <= launch.smem_bytes <= (most := PROPERTIES.shared_memory_per_block_optin):
        what = f"{launch.smem_bytes} bytes of dynamic shared memory; a CTA has {most}"
        raise SharedMemoryExceeded(what, Place(name))
    together = min(
        PROPERTIES.shared_memory_per_multiprocessor // (launch.smem_bytes + RESERVED_SHARED),
        PROPERTIES.max_threads_per_multi_processor // threads,
        RESIDENT_CTAS,
    )
    if launch.cooperative and (ctas := math.prod(launch.grid)) > (most := together * PROPERTIES.multi_processor_count):
        raise ValueError(f"{name}: a cooperative launch of {ctas} CTAs; at most {most} of them are resident together")
