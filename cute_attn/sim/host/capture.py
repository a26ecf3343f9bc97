"""One call of host code that is linked to the stub: launches are captured and executed, errors brought back."""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ..code.program import program_of
from ..errors import SimError
from ..launch import Buffer, Launch, Report, Schedule
from ..schedules.engine import execute
from ..state.steps import Recorder
from . import stub
from .arguments import buffers_of, converted

COOPERATIVE = 2  # cudaLaunchAttributeCooperative
CLUSTER_DIMENSION = 4  # cudaLaunchAttributeClusterDimension
TAKEN = 0x7A6B  # stub.c's word for a launch that was taken; whatever else is returned is an error of the launch


@dataclass
class _Call:
    """What the launches of one call need, and what they left behind."""

    ptx: str
    schedule: Schedule
    buffers: Sequence[Buffer]
    warned: Collection[type[SimError]] = ()
    reports: list[Report] = field(default_factory=list)
    error: BaseException | None = None


_current: contextvars.ContextVar[_Call | None] = contextvars.ContextVar("cute_attn_sim_call", default=None)
collected: contextvars.ContextVar[list[Report] | None] = contextvars.ContextVar("cute_attn_sim_reports", default=None)
_recording: contextvars.ContextVar[list[tuple[Launch, Recorder]] | None] = contextvars.ContextVar(
    "cute_attn_sim_recording", default=None
)


def simulate(
    function: Callable,
    names: Sequence[str],
    values: Sequence[Any],
    ptx: str,
    schedule: Schedule,
    fresh: Sequence[torch.Tensor | None] = (),
    warned: Collection[type[SimError]] = (),
) -> Report:
    """Calls host code that is linked to the stub, with its launches executed; the report of all of them."""
    _hook()
    tensors: dict[str, torch.Tensor] = {}
    arguments = [converted(value, name, tensors) for value, name in zip(values, names, strict=True)]
    call = _Call(ptx, schedule, buffers_of(tensors, _checked_fresh(fresh, tensors)), warned)
    token = _current.set(call)
    try:
        function(*arguments)
    finally:
        _current.reset(token)
    if call.error is not None:
        raise call.error
    report = replace(merged(_spread(call.reports)), unwritten=_left_unwritten(call.buffers))
    reports = collected.get()
    if reports is not None:
        reports.append(report)
    return report


@contextlib.contextmanager
def recorded() -> Iterator[list[tuple[Launch, Recorder]]]:
    """Within it, what the warps of every launch do to synchronise is recorded into the list."""
    records: list[tuple[Launch, Recorder]] = []
    token = _recording.set(records)
    try:
        yield records
    finally:
        _recording.reset(token)


def _checked_fresh(fresh: Sequence[torch.Tensor | None], tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    if isinstance(fresh, torch.Tensor):
        raise TypeError("fresh is a tensor; it must be a sequence of tensors")
    checked = []
    for i, tensor in enumerate(fresh):
        if tensor is None:
            continue
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"fresh[{i}] is a {type(tensor).__name__}; it must be a tensor or None")
        if not any(tensor is argument for argument in tensors.values()):
            allowed = ", ".join(tensors)
            raise ValueError(f"fresh[{i}] of shape {tuple(tensor.shape)} is none of the tensors passed: {allowed}")
        checked.append(tensor)
    return checked


def _left_unwritten(buffers: Sequence[Buffer]) -> dict[str, int]:
    left = {b.name: int(np.count_nonzero(b.unwritten)) for b in buffers if b.unwritten is not None}
    return {name: count for name, count in left.items() if count}


def _spread(reports: Sequence[Report]) -> list[Report]:
    """The reports of the launches of one call; what a launch wrote that read reduced buffers is reduced."""
    errors: Counter[str] = Counter()  # of every buffer so far
    spread = []
    for report in reports:
        errors.update(report.rounding)
        error = float(sum(errors[name] for name in report.loaded))
        derived = dict.fromkeys(report.stored - report.reduced, error) if errors.keys() & report.loaded else {}
        errors |= Counter(derived)
        spread.append(replace(report, reduced=report.reduced | derived.keys(), derived=derived))
    return spread


def merged(reports: Sequence[Report]) -> Report:
    """One report of several launches, or calls."""
    statistics: Counter[str] = Counter()
    for report in reports:
        statistics.update(report.statistics)
    reduced = frozenset().union(*(report.reduced for report in reports))
    rounding: Counter[str] = Counter()
    for report in reports:
        rounding.update(report.rounding)
    warnings = tuple(warning for report in reports for warning in report.warnings)
    unwritten: Counter[str] = Counter()
    for report in reports:
        unwritten |= Counter(report.unwritten)
    derived: Counter[str] = Counter()
    for report in reports:
        derived |= Counter(report.derived)
    loaded, stored = (frozenset().union(*(getattr(r, x) for r in reports)) for x in ("loaded", "stored"))
    return Report(reduced, warnings, dict(statistics), dict(rounding), dict(unwritten), dict(derived), loaded, stored)


def _on_launch(kernel: bytes, image: int, config_address: int, arguments: Any) -> int:
    """What the stub calls for each launch. Errors wait until the host code has returned: it cannot carry them."""
    call = _current.get()
    if call is None:
        return 0
    if call.error is None:
        try:
            launch = _launch(kernel.decode(), call.ptx, stub.LaunchConfig.from_address(config_address), arguments)
            recorder, records = None, _recording.get()
            if records is not None:
                recorder = Recorder(launch.cluster, math.prod(launch.block))
                records.append((launch, recorder))
            call.reports.append(execute(launch, call.buffers, call.schedule, warned=call.warned, recorder=recorder))
        except BaseException as error:  # KeyboardInterrupt too: none may cross the C frames
            call.error = error
    return TAKEN


_callback = stub.LaunchCallback(_on_launch)


@functools.cache
def _hook() -> None:
    stub.library().cute_attn_stub_on_launch(_callback)


@contextlib.contextmanager
def launches_are_left_out() -> Iterator[None]:
    """Within it every launch is taken and does nothing: for who measures what a call costs beside it."""
    nothing = stub.LaunchCallback(lambda *launch: TAKEN)
    _hook()
    stub.library().cute_attn_stub_on_launch(nothing)
    try:
        yield
    finally:
        stub.library().cute_attn_stub_on_launch(_callback)


def _launch(kernel: str, ptx: str, config: stub.LaunchConfig, arguments: Any) -> Launch:
    cluster, cooperative = (1, 1, 1), False
    attributes = (stub.LaunchAttribute * config.n_attributes).from_address(config.attributes or 0)
    for attribute in attributes if config.n_attributes else ():
        if attribute.id == CLUSTER_DIMENSION:
            cluster = tuple(attribute.value[:3])
        elif attribute.id == COOPERATIVE:
            cooperative = bool(attribute.value[0])
    grid, block = tuple(config.grid), tuple(config.block)
    parameters = program_of(ptx, kernel).kernel.params.values()
    values = tuple(ctypes.string_at(arguments[i], parameter.size) for i, parameter in enumerate(parameters))
    return Launch(kernel, ptx, grid, block, cluster, config.smem_bytes, values, cooperative)
