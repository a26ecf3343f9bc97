"""What the backend of a call reads of its mask, as tensors: nothing else travels through a custom op.

An IntervalMask keeps the plans made of it; a mask described by other tensors is looked up by content, and its plans
with it. In a graph (torch.compile, torch.export, make_fx) an op makes the plan, which is the graph's own: the memory of
what an op returns may be used again, and a kept plan must not change.
"""

from __future__ import annotations

import functools
from dataclasses import astuple
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch._library.fake_impl import allocate_size

from ..backend import current
from ..mask import IntervalMask
from ..mask.source import MaskSource
from .plan_cache import find_mask, refuse_capture

if TYPE_CHECKING:
    from ..launch.backward import BackwardPlan
    from ..launch.forward import ForwardPlan
    from ..spec.tiles import BackwardTile, TileConfig

__all__ = ["Plan", "backward_plan", "forward_plan", "heads_of", "plan_of", "prepare_calls"]

Tensor = torch.Tensor
FORWARD, BACKWARD = 7, 7  # numbers in a plan's form, behind the heads


class Plan(NamedTuple):
    """Of backend "reference" lo, hi, form and the seal; all of it on one device but for form and seal, on the CPU.

    lo, hi: of the IntervalMask.
    form: int64 (1,), the heads of the mask; on kernels (15,), with what chooses them: the fields of the forward's tile
        and layers, has_lower, has_upper of its schedule; the same of the backward, zeros if it has no tables.
    items, runs, idle_keys: as in `cute_attn.launch.forward.ForwardPlan`.
    key_items, key_runs, bounds, key_idle_rows, key_idle_keys, turn_ranges, turn_runs: as in
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
    turn_ranges: Tensor | None = None
    turn_runs: Tensor | None = None
    seal: Tensor | None = None


class Call(NamedTuple):
    """What besides a mask chooses the plan of a call.

    exact: whether the kernel keeps the exact maximum. backward: whether a backward may follow. tuned: which tables of
    tiles it was planned with.
    """

    dtype: torch.dtype
    head_dim: int
    head_dim_v: int
    heads_q: int
    heads_k: int
    exact: bool
    backward: bool
    deterministic: bool
    tuned: int


def plan_of(
    mask: IntervalMask | MaskSource,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    backend: str,
    deterministic: bool,
    return_max_logits: bool,
) -> Plan:
    """The plan of a call on checked tensors `(b, s, heads, d)`."""
    needs_grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    call = _call(q, k, v, backend, return_max_logits, needs_grad, deterministic and needs_grad)
    if isinstance(mask, IntervalMask):
        return _kept(mask, call)
    lengths = q.shape[1], k.shape[1]
    if _is_traced():
        return _in_graph(mask, *lengths, q.device, call)
    found, seal = find_mask(mask, *lengths, q.device)
    return _kept(found, call)._replace(seal=seal)


def prepare_calls(mask: IntervalMask, q: Tensor, k: Tensor, v: Tensor, backend: str, backward: bool) -> None:
    """Makes the plans of all calls on checked tensors `(b, s, heads, d)`."""
    for exact in (False, True):
        for needs_grad, deterministic in ((False, False), (True, False), (True, True))[: 3 if backward else 1]:
            _kept(mask, _call(q, k, v, backend, exact, needs_grad, deterministic))


def _call(
    q: Tensor, k: Tensor, v: Tensor, backend: str, return_max_logits: bool, needs_grad: bool, deterministic: bool
) -> Call | None:
    """None for the reference, which reads nothing but the intervals."""
    if backend == "reference":
        return None
    # What a softmax was asked for cannot be read in a graph; any tile serves both.
    exact = return_max_logits or (not torch.compiler.is_compiling() and _softmax() == "exact")
    dims, heads = (q.shape[3], v.shape[3]), (q.shape[2], k.shape[2])
    return Call(q.dtype, *dims, *heads, exact, needs_grad, deterministic, _generation())


def _generation() -> int:
    from ..launch.tuned import generation

    return generation()


def _softmax() -> str:
    return current().options.get("softmax", "stale")


def _kept(mask: IntervalMask, call: Call | None) -> Plan:
    """The plan that a mask keeps, made now if it does not; in a graph, by an op of the graph."""
    if call is None:
        return Plan(mask.lo, mask.hi, torch.tensor([mask.heads], dtype=torch.int64, device="cpu"))
    plan = mask._plans.get(call)
    if plan is None:
        if not _is_traced():
            refuse_capture(mask.device, "a mask is planned")
            plan = mask._plans[call] = make_plan(mask, call)
        else:
            source = MaskSource("intervals", mask.lo, mask.hi, heads=mask.heads)
            plan = _in_graph(source, mask.seqlen_q, mask.seqlen_k, mask.device, call)
            if (
                torch.compiler.is_dynamo_compiling()
            ):  # which hands what the graph returned to the mask, as eager code does
                mask._plans[call] = plan
    return plan


def make_plan(mask: IntervalMask, call: Call) -> Plan:
    """The plan of a mask on the kernels."""
    from ..launch.backward import plan_backward
    from ..launch.forward import plan_forward

    arguments = call.dtype, (call.head_dim, call.head_dim_v), (call.heads_q, call.heads_k)
    forward = plan_forward(mask, *arguments, "exact" if call.exact else "stale")
    numbers: list[int] = [mask.heads, *astuple(forward.tile), *forward[1:4]]
    tables: tuple[Tensor | None, ...] = forward[7:]
    if call.backward:
        backward = plan_backward(mask, *arguments, call.deterministic)
        numbers, tables = [*numbers, *astuple(backward.tile), *backward[1:4]], (*tables, *backward[7:])
    numbers += [0] * (1 + FORWARD + BACKWARD - len(numbers))
    return Plan(forward.lo, forward.hi, torch.tensor(numbers, dtype=torch.int64, device="cpu"), *tables)


def heads_of(plan: Plan) -> int:
    """1, or how many heads of the mask have planes of their own."""
    return int(plan.form[0])


def forward_plan(plan: Plan) -> ForwardPlan:
    """What `make_plan` had of the forward."""
    from ..launch.forward import ForwardPlan

    form = tuple(plan.form.tolist())
    return ForwardPlan(*_forward_form(form), form[0], plan.lo, plan.hi, *plan[3:6])  # type: ignore[arg-type]


def backward_plan(plan: Plan) -> BackwardPlan:
    """What `make_plan` had of the backward."""
    from ..launch.backward import BackwardPlan

    form = tuple(plan.form.tolist())
    return BackwardPlan(*_backward_form(form), form[0], plan.lo, plan.hi, *plan[6:13])  # type: ignore[arg-type]


@functools.lru_cache
def _forward_form(form: tuple[int, ...]) -> tuple[TileConfig, int, bool, bool]:
    """The first fields of a ForwardPlan."""
    from ..spec.tiles import TileConfig

    m, n, stages, ping_pong, layers, has_lower, has_upper = form[1 : 1 + FORWARD]
    return TileConfig(m, n, stages, bool(ping_pong)), layers, bool(has_lower), bool(has_upper)


@functools.lru_cache
def _backward_form(form: tuple[int, ...]) -> tuple[BackwardTile, int, bool, bool]:
    """The first fields of a BackwardPlan."""
    from ..spec.tiles import BackwardTile

    *tile, layers, has_lower, has_upper = form[1 + FORWARD :]
    return BackwardTile(*tile), layers, bool(has_lower), bool(has_upper)


# ---------------------------------------------------------------- in a graph


def _is_traced() -> bool:
    """Whether what is called now is recorded, mapped or seen by a mode that wants to see ops: an op makes the plan."""
    if torch.compiler.is_compiling():
        return True
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._functorch.peek_interpreter_stack() is not None


def _in_graph(source: MaskSource, seqlen_q: int, seqlen_k: int, device: torch.device, call: Call | None) -> Plan:
    """call: None for the reference, of which nothing but the first three tensors are asked for."""
    dtype, *numbers, _ = _NO_CALL if call is None else call
    made = torch.ops.cute_attn.plan(*source, seqlen_q, seqlen_k, device, call is not None, dtype, *numbers)
    return Plan(*made)


_NO_CALL = Call(torch.float32, 0, 0, 0, 0, False, False, False, 0)


def _plan(
    kind: str,
    first: Tensor | None,
    second: Tensor | None,
    third: Tensor | None,
    window_left: int,
    window_right: int,
    heads: int,
    seqlen_q: int,
    seqlen_k: int,
    device: torch.device,
    on_kernels: bool,
    dtype: torch.dtype,
    head_dim: int,
    head_dim_v: int,
    heads_q: int,
    heads_k: int,
    exact: bool,
    backward: bool,
    deterministic: bool,
) -> list[Tensor]:
    """The fields of a Plan that are there, none of which anybody else holds."""
    source = MaskSource(kind, first, second, third, window_left, window_right, heads)
    mask, _ = find_mask(source, seqlen_q, seqlen_k, device, is_op=True)
    call = None
    if on_kernels:
        exact = exact or _softmax() == "exact"
        numbers = head_dim, head_dim_v, heads_q, heads_k, exact, backward, deterministic
        call = Call(dtype, *numbers, _generation())
    return [tensor.clone() for tensor in _kept(mask, call) if tensor is not None]


def _fake_plan(
    kind: str,
    first: Tensor | None,
    second: Tensor | None,
    third: Tensor | None,
    window_left: int,
    window_right: int,
    heads: int,
    seqlen_q: int,
    seqlen_k: int,
    device: torch.device,
    on_kernels: bool,
    dtype: torch.dtype,
    head_dim: int,
    head_dim_v: int,
    heads_q: int,
    heads_k: int,
    exact: bool,
    backward: bool,
    deterministic: bool,
) -> list[Tensor]:
    shapes = torch.library.get_ctx()._shape_env

    def size() -> int | torch.SymInt:
        """One that the mask decides. `new_dynamic_size` would break the graph where torch.compile may break graphs."""
        return 1 if shapes is None else allocate_size(shapes)  # without shapes nobody reads them

    def integers(*shape: int | torch.SymInt) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=device)

    planes: int | torch.SymInt = 1
    layers: int | torch.SymInt
    if kind == "intervals" and first is not None:
        planes, layers = first.shape[:2]
    else:
        layers = size()
    tensors = [integers(planes, layers, seqlen_q) for _ in range(2)]
    tensors.append(torch.empty(1 + (FORWARD + BACKWARD if on_kernels else 0), dtype=torch.int64, device="cpu"))
    if on_kernels:
        tensors += [integers(size(), 7), integers(size(), 4), integers(planes, size(), 32)]
    if backward:
        q_tiles, rows = size(), size()
        columns, key_planes = (7, planes) if heads == 1 else (4 + 3 * (heads // heads_k), planes // heads * heads_k)
        tensors += [integers(size(), columns), integers(size(), 4), integers(planes, q_tiles, layers, 2, rows)]
        tensors += [integers(planes, size(), 32), integers(key_planes, size(), 32)]
        if deterministic:
            tensors += [integers(planes, q_tiles, 2), integers(size(), 4)]
    return tensors


_LIBRARY = torch.library.Library("cute_attn", "FRAGMENT")
_SCHEMA = torch.library.infer_schema(_plan, mutates_args=())
_LIBRARY.define(f"plan{_SCHEMA}", tags=(torch.Tag.pt2_compliant_tag,))
_LIBRARY.impl("plan", _plan, "CompositeExplicitAutograd")
torch.library.register_fake("cute_attn::plan", _fake_plan, lib=_LIBRARY)
