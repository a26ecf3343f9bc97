"""torch.nn.functional.scaled_dot_product_attention, with masks that are intervals."""

from __future__ import annotations

from typing import Any

import torch

from ...checks import check_flag, check_heads_first, check_mask, check_scale, check_unsupported
from ...mask import IntervalMask
from ...mask.checks import shown
from ...mask.source import MaskSource
from ...ops.attention_op import attention

__all__ = ["scaled_dot_product_attention"]

Tensor = torch.Tensor


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: IntervalMask | Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Exact attention with the arguments of torch.nn.functional.scaled_dot_product_attention.

    Args:
        query: `(..., heads_q, tokens_q, head_dim)`, bf16, fp16, fp32 or fp64, any strides.
        key: `(..., heads_k, tokens_kv, head_dim)`, value: `(..., heads_k, tokens_kv, head_dim_v)`.
        attn_mask: None; an IntervalMask, whose plans are made once; or bool that broadcasts to `(..., heads_q,
            tokens_q, tokens_kv)`, True where a key is attended, whose runs are found at every call: that reads all of
            it, and waits for a GPU. A floating bias is refused.
        dropout_p: 0.
        is_causal: query i attends keys up to i, counted from the first one as PyTorch does; not with attn_mask.
        scale: None means `1 / sqrt(head_dim)`.
        enable_gqa: allows fewer key heads than query heads: query head h uses key head `h // (heads_q / heads_k)`.

    Returns out `(..., heads_q, tokens_q, head_dim_v)` in query's dtype. A row that attends nothing is 0. Gradients are
    deterministic where torch.use_deterministic_algorithms is on.

    Raises TypeError or ValueError naming the argument; NotImplementedError where no backend serves the tensors.
    """
    check_unsupported(dropout_p=(dropout_p, 0.0))
    check_flag("is_causal", is_causal)
    check_flag("enable_gqa", enable_gqa)
    q, k, v, leading = _in_four_dims(query, key, value)
    check_heads_first(q, k, v, enable_gqa)
    softmax_scale = check_scale(scale, q.shape[3], "scale")
    mask: IntervalMask | MaskSource
    if attn_mask is None:
        mask = MaskSource("tokens", window_right=0) if is_causal else MaskSource("window")
    elif is_causal:
        raise ValueError("is_causal must be False where attn_mask is given, which says all, got True")
    else:
        mask = _as_intervals(attn_mask, (*leading, q.shape[1], q.shape[2], k.shape[2]))
    q, k, v = (x.transpose(1, 2) for x in (q, k.expand(len(q), -1, -1, -1), v.expand(len(q), -1, -1, -1)))
    if isinstance(mask, IntervalMask):
        check_mask("attn_mask", mask, q, k)
    deterministic = torch.are_deterministic_algorithms_enabled()
    out = attention(q, k, v, None, mask, softmax_scale, 0.0, deterministic, 0, False)[0]
    return out.transpose(1, 2).reshape(*leading, *query.shape[-3:-1], value.shape[-1])


def _in_four_dims(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, torch.Size]:
    """`(batch, heads, tokens, head_dim)` of each, and the dimensions that are the batch."""
    for name, x in (("query", query), ("key", key), ("value", value)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
        if x.ndim < 3 or x.ndim != query.ndim:
            rule = "three dimensions or more" if query.ndim < 3 else f"{query.ndim} dimensions, as query has"
            raise ValueError(f"{name} must be (..., heads, tokens, head_dim), {rule}, got shape {tuple(x.shape)}")
    leading = query.shape[:-3]
    if query.ndim > 4 and not leading == key.shape[:-3] == value.shape[:-3]:
        raise ValueError(
            f"key and value must have the batch dimensions of query, {tuple(leading)}, got {tuple(key.shape[:-3])} "
            f"and {tuple(value.shape[:-3])}"
        )
    batch = leading.numel()  # 1 of no dimensions
    q, k, v = (x if x.ndim == 4 else x.reshape(batch, *x.shape[-3:]) for x in (query, key, value))
    return q, k, v, leading


def _as_intervals(mask: Any, shape: tuple[int, ...]) -> IntervalMask:
    if isinstance(mask, IntervalMask):
        return mask
    if not isinstance(mask, Tensor):
        raise TypeError(
            f"attn_mask must be an IntervalMask, a bool tensor or None, got {shown(mask)}; a BlockMask goes to "
            "cute_attn.flex_attention"
        )
    if mask.is_floating_point():
        raise TypeError(
            f"attn_mask must be bool, got {mask.dtype}: a bias that is added to scores is a score_mod of "
            "cute_attn.flex_attention, which reads it where it lies: lambda score, b, h, q_idx, kv_idx: score + "
            "bias[q_idx, kv_idx]"
        )
    if mask.dtype != torch.bool:
        raise TypeError(f"attn_mask must be bool, got {mask.dtype}: attn_mask.bool() keeps what is not 0")
    try:
        dense = mask.expand(shape)
    except RuntimeError:
        raise ValueError(f"attn_mask must broadcast to {shape}, got {tuple(mask.shape)}") from None
    if len(shape) == 4:  # one plane stays one
        kept = (1,) * (4 - mask.ndim) + tuple(mask.shape)
        dense = dense[: kept[0], : kept[1]]
    return IntervalMask.from_dense(dense.reshape(-1, *dense.shape[-3:]))
