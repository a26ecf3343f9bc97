"""Attention as custom ops: what torch.compile, autograd and the dispatcher see of it.

The mask travels as tensors (see MaskArgument) and is looked up inside the op, and the backend as its name, so that the
backward runs where the forward ran and a compiled graph depends on what it was compiled for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .. import reference
from ..backend import resolve
from . import kernels
from .plan_cache import MaskArgument, find_mask

__all__ = ["attention"]

Tensor = torch.Tensor


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None,
    mask: MaskArgument,
    softmax_scale: float,
    softcap: float,
    deterministic: bool,
    sm_margin: int,
    return_max_logits: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of checked arguments.

    Args:
        q: `(b, sq, heads_q, d)`; k: `(b, sk, heads_k, d)`; v: `(b, sk, heads_k, dv)`.
        sink: None or `(b or 1, sq or 1, s_sink, heads_q)`.

    Returns out `(b, sq, heads_q, dv)`, lse `(b, heads_q, sq)` and max_logits `(heads_q,)`, empty if not asked for.
    Gradients flow through out and lse. Raises NotImplementedError where the backend cannot serve the tensors.
    """
    name = resolve(q.device)
    scalars = (softmax_scale, softcap, deterministic, sm_margin, name, return_max_logits)
    return torch.ops.cute_attn.attention(q, k, v, sink, *mask, *scalars)


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None,
    mask_kind: str,
    mask_first: Tensor | None,
    mask_second: Tensor | None,
    mask_third: Tensor | None,
    window_left: int,
    window_right: int,
    softmax_scale: float,
    softcap: float,
    deterministic: bool,
    sm_margin: int,
    backend: str,
    return_max_logits: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    argument = MaskArgument(mask_kind, mask_first, mask_second, mask_third, window_left, window_right)
    mask = find_mask(argument, q.shape[1], k.shape[1], q.device)
    if backend != "reference":
        return kernels.attention_forward(
            q, k, v, mask, sink, softmax_scale, softcap, sm_margin, backend, return_max_logits
        )
    out, lse, max_logits = reference.attention_forward(q, k, v, mask.lo, mask.hi, sink, softmax_scale, softcap)
    return out, lse, max_logits if return_max_logits else max_logits.new_empty(0)


def _fake_forward(q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    dtype = reference.compute_dtype(q.dtype)
    batch, rows, heads, _ = q.shape
    return_max_logits = rest[-1]
    return (
        q.new_empty(batch, rows, heads, v.shape[3]),
        q.new_empty(batch, heads, rows, dtype=dtype),
        q.new_empty(heads if return_max_logits else 0, dtype=dtype),
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
    mask_kind: str,
    mask_first: Tensor | None,
    mask_second: Tensor | None,
    mask_third: Tensor | None,
    window_left: int,
    window_right: int,
    softmax_scale: float,
    softcap: float,
    deterministic: bool,
    sm_margin: int,
    backend: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and sink; an empty tensor stands for one that `needs` does not ask for."""
    argument = MaskArgument(mask_kind, mask_first, mask_second, mask_third, window_left, window_right)
    mask = find_mask(argument, q.shape[1], k.shape[1], q.device)
    if backend != "reference":
        grads = kernels.attention_backward(
            dout, dlse, q, k, v, out, lse, mask, sink, softmax_scale, softcap, deterministic, sm_margin, backend, needs
        )
    else:
        grads = reference.attention_backward(
            dout, dlse, q, k, v, out, lse, mask.lo, mask.hi, sink, softmax_scale, softcap, needs
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
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            out, lse, max_logits = _OPS.attention(*inputs)
        q, k, v, sink, mask_kind, mask_first, mask_second, mask_third, *numbers, _ = inputs
        ctx.mark_non_differentiable(max_logits)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, out, lse, sink, mask_first, mask_second, mask_third)
        ctx.mask_kind, ctx.numbers = mask_kind, numbers
        return out, lse, max_logits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        dout, dlse, _ = grads
        if dout is None and dlse is None:
            return (None,) * 16
        needs = list(ctx.needs_input_grad[:4])
        *tensors, mask_first, mask_second, mask_third = ctx.saved_tensors
        results = _OPS.attention_backward(
            dout, dlse, *tensors, ctx.mask_kind, mask_first, mask_second, mask_third, *ctx.numbers, needs
        )
        return *(grad if need else None for grad, need in zip(results, needs, strict=True)), *(None,) * 12


class _AttentionBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            return _OPS.attention_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        raise NotImplementedError(
            "attention has no second derivative: the gradients that cute_attn gives cannot be differentiated"
        )


# torch.library.custom_op does the same with less text, but its autograd does work on the host at every call that grows
# with the square of the number of arguments.
_LIBRARY = torch.library.Library("cute_attn", "FRAGMENT")
_OPS = torch.ops.cute_attn


def _register(name: str, function: Callable, fake: Callable, differentiable: type[torch.autograd.Function]) -> None:
    schema = torch.library.infer_schema(function, mutates_args=())
    _LIBRARY.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, differentiable.apply, "Autograd")
    torch.library.register_fake(f"cute_attn::{name}", fake, lib=_LIBRARY)


_register("attention", _forward, _fake_forward, _Attention)
_register("attention_backward", _backward, _fake_backward, _AttentionBackward)
