"""What a backend reads of a mask, as tensors: nothing else of a mask travels through a custom op."""

from __future__ import annotations

import functools
from dataclasses import astuple
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch

from ..launch import tuned
from ..mask import IntervalMask
from .tiles import read_tile, tile_of

if TYPE_CHECKING:
    from ..launch.backward import BackwardPlan
    from ..launch.forward import ForwardPlan
    from ..launch.shapes import PlanForm
    from ..spec.forward import Softmax

__all__ = ["FORM", "Call", "Plan", "backward_plan", "forward_plan", "launches", "make_plan", "tuned_generation"]

Tensor = torch.Tensor
MASK, FORWARD, BACKWARD = 2, 6, 6  # numbers in a plan's form
FORM = MASK + FORWARD + BACKWARD


class Plan(NamedTuple):
    """Of backend "reference" lo, hi, form and the seal; all of it on one device but for form and seal, on the CPU.

    lo, hi: of the IntervalMask; on kernels of one that a predicate thins, as `cute_attn.mask.thinned` has them tested.
    form: int64 (1,), the heads of the mask; on kernels (14,), with what chooses them: whether lo has marks; the fields
        of the forward's tile, whether its rows are bounded and the heads that share a tile; the same of the backward,
        zeros if it has no tables.
    items, runs, idle_keys: as in `cute_attn.launch.forward.ForwardPlan`.
    key_items, key_runs, bounds, key_idle_rows, key_idle_keys, turn_rows, turn_runs: as in
        `cute_attn.launch.backward.BackwardPlan`, in this order.
    seal: see `cute_attn.ops.recomputed`; None where nothing was looked up.
    """

    lo: Tensor
    hi: Tensor
    form: Tensor
    items: Tensor | None = None
    runs: Tensor | None = None
    idle_keys: Tensor | None = None
    key_items: Tensor | None = None
    key_runs: Tensor | None = None
    bounds: Tensor | None = None
    key_idle_rows: Tensor | None = None
    key_idle_keys: Tensor | None = None
    turn_rows: Tensor | None = None
    turn_runs: Tensor | None = None
    seal: Tensor | None = None

    @property
    def heads(self) -> int:
        """1, or how many heads of the mask have planes of their own."""
        return int(self.form[0])

    @property
    def is_marked(self) -> bool:
        """On kernels, whether some intervals are marked as certain."""
        return bool(self.form[1])


class Call(NamedTuple):
    """What besides a mask chooses the plan of a call.

    exact: whether the kernel keeps the exact maximum. backward: whether a backward may follow. has_graph: whether a
    score_mod or a predicate comes with the mask. tuned: which tables of
    tiles it was planned with, see `tuned_generation`. tile, backward_tile: that it asks for, see `tiles`; "" for none.
    """

    dtype: torch.dtype
    head_dim: int
    head_dim_v: int
    heads_q: int
    heads_k: int
    exact: bool
    backward: bool
    deterministic: bool
    has_graph: bool
    tuned: int
    tile: str = ""
    backward_tile: str = ""


def tuned_generation() -> int:
    """See `cute_attn.launch.tuned.generation`."""
    return tuned.generation()


@functools.cache
def launches() -> ModuleType:
    """The package `cute_attn.launch`, imported when first asked for, and once: to import takes a microsecond again."""
    from .. import launch
    from ..launch import backward, forward, rows  # noqa: F401

    return launch


def make_plan(mask: IntervalMask, call: Call) -> Plan:
    """The plan of a mask on the kernels."""
    from ..launch.backward import plan_backward
    from ..launch.forward import plan_forward

    arguments = call.dtype, (call.head_dim, call.head_dim_v), (call.heads_q, call.heads_k)
    softmax: Softmax = "exact" if call.exact else "stale"
    tile = read_tile("tile", call.tile)
    forward = plan_forward(mask, *arguments, softmax, tile, has_graph=call.has_graph)
    numbers: list[int] = [mask.heads, forward.form.is_marked, *_numbers(forward.form)]
    tables: tuple[Tensor | None, ...] = forward[3:]
    if call.backward:
        tile = read_tile("backward_tile", call.backward_tile)
        backward = plan_backward(mask, *arguments, call.deterministic, tile, has_graph=call.has_graph)
        numbers, tables = [*numbers, *_numbers(backward.form)], (*tables, *backward[3:])
    numbers += [0] * (FORM - len(numbers))
    return Plan(forward.lo, forward.hi, torch.tensor(numbers, dtype=torch.int64, device="cpu"), *tables)


def forward_plan(plan: Plan) -> ForwardPlan:
    """What `make_plan` had of the forward."""
    form = _plan_form("tile", tuple(plan.form.tolist()))
    return launches().forward.ForwardPlan(form, plan.lo, plan.hi, *plan[3:6])


def backward_plan(plan: Plan) -> BackwardPlan:
    """What `make_plan` had of the backward."""
    form = _plan_form("backward_tile", tuple(plan.form.tolist()))
    return launches().backward.BackwardPlan(form, plan.lo, plan.hi, *plan[6:13])


def _numbers(form: PlanForm) -> list[int]:
    """What a plan's form has of the forward, or of the backward."""
    return [*astuple(cast(Any, form.tile)), form.is_bounded, form.heads_in_tile]


@functools.lru_cache
def _plan_form(option: str, numbers: tuple[int, ...]) -> PlanForm:
    """option: "tile" of the forward, "backward_tile" of the backward."""
    from ..launch.shapes import PlanForm

    if len(numbers) != FORM:
        raise ValueError(
            f"a plan's form must have {FORM} numbers, got {len(numbers)}: an exported program holds what another "
            "version of cute_attn planned, and is to be exported anew"
        )
    heads, is_marked, *both = numbers
    *tile, is_bounded, heads_in_tile = both[:FORWARD] if option == "tile" else both[FORWARD:]
    return PlanForm(tile_of(option, tile), bool(is_bounded), bool(is_marked), heads, heads_in_tile)
