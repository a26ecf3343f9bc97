"""calc_attn in a graph of torch.compile: two custom ops, behind which everything is as in eager mode.

A graph holds no plan. It holds the number of a key, as a tensor that it reads at every call, so that a graph that was
made with one key serves all others, each by its own plan. What is checked and planned, is when the ops run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from ..backend import resolve
from ..custom_ops import register
from ..reference import compute_dtype
from ..renamed import OPS
from .call import check_call
from .registry import DistAttnRuntimeKey, registry
from .runtime import CALL, backward, forward, kept_again

__all__ = ["attention_in_graph"]

Tensor = torch.Tensor
_SCALARS_SCHEMA = "float? softmax_scale, float softcap, bool deterministic, bool return_max_logits, str backend"
_RETURN_MAX_LOGITS = 3  # which of the scalars
_SCHEMA = (
    f"(Tensor q, Tensor k, Tensor v, Tensor? sink, Tensor key, {_SCALARS_SCHEMA}, bool[] requires_grad) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
_BACKWARD_SCHEMA = (
    "(Tensor dout, Tensor dlse, Tensor q, Tensor k, Tensor v, Tensor? sink, Tensor out, Tensor lse, Tensor key, "
    f"Tensor call, {_SCALARS_SCHEMA}, bool[] needs) -> (Tensor, Tensor, Tensor)"
)


def attention_in_graph(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key: DistAttnRuntimeKey,
    sink: Tensor | None,
    softmax_scale: float | None,
    softcap: float,
    deterministic: bool,
    return_max_logits: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """out, lse and max_logits, which is empty unless asked for, of the arguments of calc_attn."""
    if not isinstance(key, DistAttnRuntimeKey):
        raise TypeError(f"key must be a DistAttnRuntimeKey, got {type(key).__name__}")
    requires_grad = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in (q, k, v, sink)]
    scalars = softmax_scale, softcap, deterministic, return_max_logits, resolve(q.device)
    out, lse, max_logits, _ = OPS.calc_attn(q, k, v, sink, key.number, *scalars, requires_grad)
    return out, lse, max_logits


def _forward(
    q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, key: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """And the number of the call, which its backward compares."""
    manager = registry.numbered(int(key))
    call = check_call(manager, q, k, v, sink, *rest)
    with manager.guard.exchange(CALL, call.compared):
        *results, _ = forward(q, k, v, call.sink, call.route, call.settings, rest[_RETURN_MAX_LOGITS])
        number = torch.tensor(manager.guard.number(), device="cpu")
    out, lse, max_logits = (x.contiguous() for x in results)
    return out, lse, max_logits, number


def _fake_forward(
    q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, key: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype, heads = compute_dtype(q.dtype), q.shape[1]
    return (
        q.new_empty(q.shape[0], heads, v.shape[2]),
        q.new_empty(heads, q.shape[0], dtype=dtype),
        q.new_empty(heads if rest[_RETURN_MAX_LOGITS] else 0, dtype=dtype),
        torch.empty((), dtype=torch.int64, device="cpu"),
    )


def _backward(
    dout: Tensor,
    dlse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None,
    out: Tensor,
    lse: Tensor,
    key: Tensor,
    call_number: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, of k and v packed, and of sink; an empty tensor stands for one that nobody needs."""
    needs = rest[-1]
    manager = registry.numbered(int(key), "the backward of calc_attn: key", forgotten=True)
    call = check_call(manager, q, k, v, sink, *rest)
    with manager.guard.backward_exchange(CALL, int(call_number), needs):
        kept = kept_again(q, k, v, call.sink, out, lse, call.route)
        dq, dkv, dsink = backward(kept, dout, dlse, call.route, call.settings, needs)
    if sink is not None and dsink is not None:
        dsink = dsink.view(sink.shape).to(sink.dtype)
    dq, dkv, dsink = (q.new_empty(0) if x is None else x.contiguous() for x in (dq, dkv, dsink))
    return dq, dkv, dsink


def _fake_backward(
    dout: Tensor, dlse: Tensor, q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    needs_q, needs_k, needs_v, needs_sink = rest[-1]
    return (
        q.new_empty(q.shape if needs_q else 0),
        k.new_empty((*k.shape[:2], k.shape[2] + v.shape[2]) if needs_k or needs_v else 0),
        sink.new_empty(sink.shape) if needs_sink and sink is not None else q.new_empty(0),
    )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        q, k, v, sink, key, *rest = inputs
        with torch._C._AutoDispatchBelowAutograd():
            out, lse, max_logits, number = OPS.calc_attn(*inputs)
        ctx.mark_non_differentiable(max_logits, number)
        ctx.save_for_backward(q, k, v, sink, out, lse, key, number)
        ctx.scalars, ctx.inputs = rest[:-1], len(inputs)
        return out, lse, max_logits, number

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, dlse: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        needs = list(ctx.needs_input_grad[:4])
        saved = ctx.saved_tensors
        q = saved[0]
        dq, dkv, dsink = OPS.calc_attn_backward(dout, dlse, *saved, *ctx.scalars, needs)
        grads = dq, dkv[..., : q.shape[2]], dkv[..., q.shape[2] :], dsink
        return *(x if need else None for x, need in zip(grads, needs, strict=True)), *(None,) * (ctx.inputs - 4)


register("calc_attn", _SCHEMA, _forward, _fake_forward, _Attention.apply)
register("calc_attn_backward", _BACKWARD_SCHEMA, _backward, _fake_backward)
