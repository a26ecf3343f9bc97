"""Runs a case under every schedule and demands the same result: what `strict` accepts does not depend on timing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..errors import Place, SimError
from ..launch import Report, Schedule
from .calls import argument_names, run, simulated
from .capture import merged

STARVED = 5  # a warp of the second warpgroup, where there is one: its peers get ahead of it
SCHEDULES = (
    Schedule("eager", races=True),
    Schedule("late"),
    *(Schedule("random", seed) for seed in (1, 2, 3)),
    Schedule("starve", STARVED),
)


class ScheduleDependence(SimError):
    """Two schedules left different results."""


def strict(
    function: Any,
    *args: Any,
    deterministic: bool = False,
    ptx: str | None = None,
    fresh: Sequence[torch.Tensor | None] = (),
    warn: Sequence[type[SimError]] | None = None,
) -> Report:
    """Runs `function(*args)` in eager, late, three random and a starving schedule and compares what they leave.

    In the eager one races are looked for: accesses to global memory that nothing orders, whatever the schedule.

    Args:
        function: a compiled function, as `run` takes it; or Python code that calls compiled functions or cute_attn's
            own, which then runs in `simulated`, and whose returned tensors are compared too.
        args: its arguments. Tensors start every run with the same contents, and end with those of the eager run.
        deterministic: whether the function claims the same bits in every run: then floating-point additions of one
            element that nothing orders are races too, if a sum in its tensor is rounded.
        ptx, fresh, warn: as for `run`; fresh is for compiled functions only.

    Returns:
        The report of the eager run.

    Raises:
        ScheduleDependence: a tensor differs between two schedules in any bit; or, if it received floating-point
            additions in an order that the hardware chooses, or was computed from what did, and the function does not
            claim to be deterministic, by more than another order of summation and one more rounding explain. In Python
            code every floating-point tensor counts as computed from reduced ones if there were any.
        SimError: whatever a run finds.
        ValueError: fresh tensors for Python code, whose own are found by themselves.
    """
    is_kernel = hasattr(function, "ir_module") or ptx is not None
    if fresh and not is_kernel:
        raise ValueError(f"fresh has {len(fresh)} tensors; Python code takes none, it is watched as it allocates")
    tensors = dict(_tensors(args, argument_names(function, args)))
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    outcomes: list[tuple[Report, dict[str, torch.Tensor]]] = []
    for schedule in SCHEDULES:
        for name, tensor in tensors.items():
            tensor.detach().copy_(before[name])
        returned: dict[str, torch.Tensor] = {}
        watched: Any = {"warn": warn, "races": schedule.races, "deterministic": deterministic}
        if is_kernel:
            report = run(function, *args, mode=schedule.mode, seed=schedule.seed, ptx=ptx, fresh=fresh, **watched)
        else:
            with simulated(schedule.mode, schedule.seed, **watched) as reports:
                returned = dict(_tensors([function(*args)], ["result"]))
            report = merged(reports)
        outcomes.append((report, {name: t.detach().clone() for name, t in {**tensors, **returned}.items()}))
    (report, expected), *others = outcomes
    for schedule, (other, left) in zip(SCHEDULES[1:], others, strict=True):
        for name, value in left.items():
            allowed = 0.0
            if not deterministic and is_kernel:
                allowed = _rounding(report, name) + _rounding(other, name)
                if any(name in names.split("+") for names in (*report.derived, *other.derived)):
                    allowed += _unit(value)
            elif not deterministic and report.reduced:  # what Python code made of reduced buffers, rounded once more
                allowed = sum(report.rounding.values()) + sum(other.rounding.values()) + _unit(value)
            _compare(name, expected[name], value, schedule, allowed)
    for name, tensor in tensors.items():
        tensor.detach().copy_(expected[name])
    return report


def _rounding(report: Report, tensor: str) -> float:
    """Of the buffer that holds a tensor: tensors that share memory make up one, named "k+v"."""
    errors = (*report.rounding.items(), *report.derived.items())
    return max((error for names, error in errors if tensor in names.split("+")), default=0.0)


def _unit(value: torch.Tensor) -> float:
    return torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0


def _tensors(values: Sequence[Any], names: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    for value, name in zip(values, names, strict=True):
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value, [f"{name}[{i}]" for i in range(len(value))])


def _compare(name: str, expected: torch.Tensor, value: torch.Tensor, schedule: Schedule, allowed: float) -> None:
    """Raises unless the two are equal bit by bit or differ by at most `allowed` times the largest element."""
    if torch.equal(_bits(expected), _bits(value)):
        return
    if allowed and value.is_floating_point():
        first, second = expected.double(), value.double()
        different = ~((first - second).abs() <= allowed * first.abs().max()) & ~_same(expected, value)
    else:
        different = ~_same(expected, value)
    if bool(different.any()):
        index = tuple(int(i) for i in different.nonzero()[0])
        raise ScheduleDependence(
            f"{name}: {int(different.sum())} of {value.numel()} elements depend on the schedule; at {index} eager left "
            f"{expected[index].item()!r}, {schedule.mode} (seed {schedule.seed}) left {value[index].item()!r}",
            Place("all launches"),
            subject=name,
        )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _same(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Elementwise equality of bits, so that equal NaNs are equal and zeros of either sign are not."""
    bytes_of = lambda t: t.contiguous().reshape(-1, 1).view(torch.uint8)  # noqa: E731
    return (bytes_of(first) == bytes_of(second)).all(1).reshape(first.shape)
