"""Attention as custom ops: what torch.compile, autograd and the dispatcher see of it.

The mask travels as tensors (see MaskArgument) and is looked up inside the op, and the backend as its name, so that the
backward runs where the forward ran and a compiled graph depends on what it was compiled for.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import reference
from ..backend import resolve
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
    return attention_forward(
        q, k, v, sink, *mask, softmax_scale, softcap, deterministic, sm_margin, name, return_max_logits
    )


@torch.library.custom_op("cute_attn::attention", mutates_args=())
def attention_forward(
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
    out, lse, max_logits = reference.attention_forward(q, k, v, mask.lo, mask.hi, sink, softmax_scale, softcap)
    return out, lse, max_logits if return_max_logits else max_logits.new_empty(0)


@attention_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    dtype = reference.compute_dtype(q.dtype)
    batch, rows, heads, _ = q.shape
    return_max_logits = rest[-1]
    return (
        q.new_empty(batch, rows, heads, v.shape[3]),
        q.new_empty(batch, heads, rows, dtype=dtype),
        q.new_empty(heads if return_max_logits else 0, dtype=dtype),
    )


@torch.library.custom_op("cute_attn::attention_backward", mutates_args=())
def attention_backward(
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
    grads = reference.attention_backward(
        dout, dlse, q, k, v, out, lse, mask.lo, mask.hi, sink, softmax_scale, softcap, needs
    )
    dq, dk, dv, dsink = (q.new_empty(0) if grad is None else grad for grad in grads)
    return dq, dk, dv, dsink


@attention_backward.register_fake
def _(
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


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, sink, mask_kind, mask_first, mask_second, mask_third, *numbers, _ = inputs
    out, lse, max_logits = output
    ctx.mark_non_differentiable(max_logits)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, out, lse, sink, mask_first, mask_second, mask_third)
    ctx.mask_kind, ctx.numbers = mask_kind, numbers


def _backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None, _: object) -> tuple[Any, ...]:
    needs = list(ctx.needs_input_grad[:4])
    nothing = (None,) * 12
    if dout is None and dlse is None:
        return (None, None, None, None, *nothing)
    *tensors, mask_first, mask_second, mask_third = ctx.saved_tensors
    grads = attention_backward(
        dout, dlse, *tensors, ctx.mask_kind, mask_first, mask_second, mask_third, *ctx.numbers, needs
    )
    return (*(grad if need else None for grad, need in zip(grads, needs, strict=True)), *nothing)


def _refuse_double_backward(ctx: Any, *grads: object) -> None:
    raise NotImplementedError("cute_attn has no second derivative: the gradients of attention cannot be differentiated")


attention_forward.register_autograd(_backward, setup_context=_save_for_backward)
attention_backward.register_autograd(_refuse_double_backward)
