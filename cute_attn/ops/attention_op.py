"""Attention as custom ops: what torch.compile, autograd and the dispatcher see of it.

The mask travels as the tensors of its plan (see `plans`), which the backward gets as the forward had them, and the
backend with its options as a text, so that the backward runs where and as the forward ran, on whatever thread, and a
compiled graph depends on what it was compiled for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad

from ..backend import resolve
from ..backends.find import find
from ..backends.plan import Plan
from ..checks import check_flag, check_mask, check_qkv
from ..custom_ops import register
from ..mask import IntervalMask
from ..mask.source import MaskSource
from ..reference import compute_dtype
from ..renamed import OPS
from .library import PLAN_SCHEMA
from .plans import is_traced, plan_of, prepare_calls
from .ready import Ready, wants_gradients

__all__ = [
    "attention",
    "attention_gradients",
    "is_ours_alone",
    "make_ready",
    "planned_attention",
    "prepare",
    "ready_attention",
]

Tensor = torch.Tensor


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None,
    mask: IntervalMask | MaskSource,
    softmax_scale: float,
    softcap: float,
    deterministic: bool,
    sm_margin: int,
    return_max_logits: bool,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of checked arguments.

    Args:
        q: `(b, sq, heads_q, d)`; k: `(b, sk, heads_k, d)`; v: `(b, sk, heads_k, dv)`.
        sink: None or `(b or 1, sq or 1, s_sink, heads_q)`.
        mask: an IntervalMask on their device, of their lengths, batch 1 or b and heads 1 or heads_q; or what describes
            one.
        backend: as `resolve` gives it, with the options of this call; None asks.

    Returns out `(b, sq, heads_q, dv)`, lse `(b, heads_q, sq)` and max_logits `(b, heads_q)`, empty if not asked for.
    Gradients flow through out and lse. Raises NotImplementedError where the backend cannot serve the tensors.
    """
    if backend is None:
        backend = resolve(q.device)
    if not torch.compiler.is_compiling():
        find(backend).check_served(q.dtype, (q.shape[3], v.shape[3]), q.device)  # before anything is planned
    plan = plan_of(mask, q, k, v, backend, deterministic, return_max_logits)
    scalars = softmax_scale, softcap, deterministic, sm_margin, backend, return_max_logits
    return planned_attention(q, k, v, sink, plan, scalars)


def planned_attention(
    q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, plan: Plan, scalars: tuple[Any, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """`attention` with its plan. scalars: the arguments of the op behind it."""
    if not is_ours_alone(q, k, v, sink):
        return OPS.attention(q, k, v, sink, *plan, *scalars)
    if wants_gradients(q, k, v, sink):
        return _AttentionAlone.apply(q, k, v, sink, plan, scalars, None, (plan.seal,))
    return _attend(q, k, v, sink, plan, scalars)


def ready_attention(
    call: Ready, q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None = None, seal: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """out and lse of a call, for tensors of which `is_ours_alone` holds, with gradients where it has a backward.

    sink: as `check_sink` has it. seal: of the look-up, where the mask was looked up.
    """
    if not call.has_backward:
        return call.attend(q, k, v, sink)
    plan = call.plan
    if call.is_packed and _saves_are_seen(True):
        q, k, v = call.batched(q, k, v)
        plan = plan if seal is None else plan._replace(seal=seal)
        out, lse, _ = planned_attention(q, k, v, sink, plan, call.scalars)
        return out.squeeze(0), lse.squeeze(0)
    out, lse, _ = _AttentionAlone.apply(q, k, v, sink, plan, call.scalars, call, (seal,))
    return out, lse


def make_ready(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: IntervalMask,
    softmax_scale: float,
    softcap: float,
    sink: Tensor | None,
    deterministic: bool,
    sm_margin: int,
    *,
    backward: bool,
    is_public: bool = False,
) -> Ready:
    """The call of checked arguments, packed or in batches. backward, is_public: see `Ready`. Raises as `attention`."""
    backend = resolve(q.device)
    find(backend).check_served(q.dtype, (q.shape[-1], v.shape[-1]), q.device)
    batch_q, batch_k, batch_v = (x[None] if x.ndim == 3 else x for x in (q, k, v))
    plan = plan_of(mask, batch_q, batch_k, batch_v, backend, deterministic, False, needs_grad=backward)
    scalars = softmax_scale, softcap, deterministic, sm_margin, backend, False
    return Ready(q, k, v, plan, scalars, has_sink=sink is not None, backward=backward, is_public=is_public)


@torch.no_grad()
def attention_gradients(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: IntervalMask | MaskSource,
    softmax_scale: float,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv of a call of `attention`, without sinks and softcap, of which nothing was kept but its tensors."""
    backend = resolve(q.device)
    find(backend).check_served(q.dtype, (q.shape[3], v.shape[3]), q.device)
    plan = plan_of(mask, q, k, v, backend, deterministic, False, needs_grad=True)
    needs = [True, True, True, False]
    scalars = softmax_scale, 0.0, deterministic, 0, backend
    dq, dk, dv, _ = _backward(dout, None, q, k, v, out, lse, None, *plan, *scalars, needs)
    return dq, dk, dv


def is_ours_alone(*tensors: Tensor | None) -> bool:
    """Whether nobody but us would see the op: then the dispatcher adds nothing but 30 us, for so many arguments."""
    if (
        is_traced()
        or _is_torch_function_mode_enabled()
        or _is_traced_by_jit()
        or forward_ad._current_level >= 0
        or _is_profiled()
    ):
        return False
    # Of each its memory holds its numbers, and all of them are ours: gradients may come as a batch of them.
    for x in tensors:
        if x is not None and (type(x) not in _OURS or x.is_meta or x.is_neg() or _is_batched(x)):
            return False
    return True


_OURS = (Tensor, torch.nn.Parameter)
# By a checkpoint, which may compute a call again another way and wants tensors of the same shapes then.
_saves_are_seen = torch._C._autograd._top_saved_tensors_default_hooks
_is_batched = torch._C._functorch.is_legacy_batchedtensor
_is_torch_function_mode_enabled = torch._C._is_torch_function_mode_enabled
_is_traced_by_jit = torch._C._is_tracing
_is_profiled = torch.autograd._profiler_enabled


def prepare(mask: IntervalMask, q: Tensor, k: Tensor, v: Tensor, backward: bool) -> None:
    """See IntervalMask.prepare."""
    check_flag("backward", backward)
    packed = isinstance(q, Tensor) and q.ndim == 3
    check_qkv(q, k, v, "(tokens, heads, head_dim)" if packed else "(batch, tokens, heads, head_dim)")
    if packed:
        q, k, v = q[None], k[None], v[None]
    check_mask("the mask", mask, q, k)
    backend = resolve(q.device)
    find(backend).check_served(q.dtype, (q.shape[3], v.shape[3]), q.device)
    prepare_calls(mask, q, k, v, backend, backward)


IntervalMask._prepare = prepare

_SCALARS_SCHEMA = "float softmax_scale, float softcap, bool deterministic, SymInt sm_margin, str backend"
_SCHEMA = (
    f"(Tensor q, Tensor k, Tensor v, Tensor? sink, {PLAN_SCHEMA}, {_SCALARS_SCHEMA}, bool return_max_logits) "
    "-> (Tensor, Tensor, Tensor)"
)
_BACKWARD_SCHEMA = (
    "(Tensor? dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor? sink, "
    f"{PLAN_SCHEMA}, {_SCALARS_SCHEMA}, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)"
)
_FIELDS = len(Plan._fields)


def _forward(q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _attend(q, k, v, sink, Plan(*rest[:_FIELDS]), rest[_FIELDS:])


def _attend(
    q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, plan: Plan, scalars: tuple[Any, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    softmax_scale, softcap, _, sm_margin, backend, return_max_logits = scalars
    out, lse, max_logits = find(backend).forward(
        q,
        k,
        v,
        plan,
        sink,
        softmax_scale=softmax_scale,
        softcap=softcap,
        sm_margin=sm_margin,
        return_max_logits=return_max_logits,
    )
    return out, lse, lse.new_empty(0) if max_logits is None else max_logits


def _fake_forward(q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(q.dtype)
    batch, rows, heads, _ = q.shape
    return_max_logits = rest[-1]
    return (
        q.new_empty(batch, rows, heads, v.shape[3]),
        q.new_empty(batch, heads, rows, dtype=dtype),
        q.new_empty((batch, heads) if return_max_logits else 0, dtype=dtype),
    )


def _backward(
    dout: Tensor | None,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    sink: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and sink; an empty tensor stands for one that `needs` does not ask for."""
    plan = Plan(*rest[:_FIELDS])
    softmax_scale, softcap, deterministic, sm_margin, backend, needs = rest[_FIELDS:]
    grads = find(backend).backward(
        dout,
        dlse,
        q,
        k,
        v,
        out,
        lse,
        plan,
        sink,
        softmax_scale=softmax_scale,
        softcap=softcap,
        deterministic=deterministic,
        sm_margin=sm_margin,
        needs=needs,
    )
    dq, dk, dv, dsink = (q.new_empty(0) if grad is None else grad for grad in grads)
    return dq, dk, dv, dsink


def _fake_backward(
    dout: Tensor | None,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    sink: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, ...]:
    needs = rest[-1]
    return tuple(
        torch.empty(x.shape, dtype=x.dtype, device=x.device) if need and x is not None else q.new_empty(0)
        for x, need in zip((q, k, v, sink), needs, strict=True)
    )


class _Attention(torch.autograd.Function):
    """What the op is above autograd."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        q, k, v, sink, *rest = inputs
        with torch._C._AutoDispatchBelowAutograd():
            results = OPS.attention(*inputs)
        plan = Plan(*rest[:_FIELDS])
        _keep(ctx, q, k, v, sink, plan, plan.seal, tuple(rest[_FIELDS:]), results)
        ctx.inputs = len(inputs)
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, *grads), *(None,) * (ctx.inputs - 4)


class _AttentionAlone(torch.autograd.Function):
    """The same where nobody else would see the op; the plan comes whole, since autograd looks at each argument."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sink: Tensor | None,
        plan: Plan,
        scalars: tuple[Any, ...],
        call: Ready | None,
        seal: tuple[Tensor | None],
    ) -> tuple[Tensor | None, ...]:
        """call: where one is ready; then q, k and v may be packed, without a batch, and so are the results. seal: of
        the look-up, within a tuple, where autograd does not see it."""
        results = _attend(q, k, v, sink, plan, scalars) if call is None else (*call.attend(q, k, v, sink), None)
        _keep(ctx, q, k, v, sink, plan, seal[0], scalars, results)
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, *grads), *(None,) * 4


def _keep(
    ctx: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None,
    plan: Plan,
    seal: Tensor | None,
    scalars: tuple[Any, ...],
    results: tuple[Tensor | None, ...],
) -> None:
    """What `_gradients` reads."""
    out, lse, max_logits = results
    if max_logits is not None:
        ctx.mark_non_differentiable(max_logits)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, out, lse, sink, seal)
    # Not saved: checkpointing would drop it, and hand the backward the plan of the forward that it computes again.
    ctx.plan = plan if plan.seal is None else plan._replace(seal=None)
    ctx.scalars = scalars[:-1]


def _gradients(ctx: Any, dout: Tensor | None, dlse: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    """Of q, k, v and sink; None for one that is not needed."""
    if dout is None and dlse is None:
        return (None,) * 4
    needs = list(ctx.needs_input_grad[:4])
    q, k, v, out, lse, sink, _ = ctx.saved_tensors
    tensors = [dout, dlse, q, k, v, out, lse]
    is_packed = q.ndim == 3
    if is_packed:
        tensors = [x if x is None else x[None] for x in tensors]
    inputs = (*tensors, sink, *ctx.plan, *ctx.scalars, needs)
    # With gradients on, a second derivative is asked for: the op says that there is none.
    is_alone = not torch.is_grad_enabled() and is_ours_alone(*tensors, sink)
    dq, dk, dv, dsink = (_backward if is_alone else OPS.attention_backward)(*inputs)
    if is_packed:
        dq, dk, dv = (x.squeeze(0) if need else x for x, need in zip((dq, dk, dv), needs, strict=False))
    return tuple(grad if need else None for grad, need in zip((dq, dk, dv, dsink), needs, strict=True))


class _AttentionBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            return OPS.attention_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        raise NotImplementedError(
            "attention has no second derivative: the gradients that cute_attn gives cannot be differentiated"
        )


register("attention", _SCHEMA, _forward, _fake_forward, _Attention.apply)
register("attention_backward", _BACKWARD_SCHEMA, _backward, _fake_backward, _AttentionBackward.apply)
