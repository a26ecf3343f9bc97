"""The operators of PyTorch's flash attention, computed here: dense `(b, s, heads, d)`, or packed `(tokens, heads, d)`
with cumulative lengths, whose causality is aligned to the last query and the last key.

Names, order and results are those of PyTorch's schemas. What these have and kernels here have not is refused by name.
"""

from __future__ import annotations

from typing import Any

import torch

from ...checks import check_cu_seqlens, check_qkv, check_scale, check_unsupported, check_window
from ...mask.source import MaskSource
from ...ops.attention_op import attention, attention_gradients

__all__ = ["OPERATORS"]

Tensor = torch.Tensor
Auxiliary = tuple[Tensor, Tensor, Tensor]


def flash_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor | None,
    cum_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    seqused_k: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    check_unsupported(dropout_p=(dropout_p, 0.0), return_debug_mask=(return_debug_mask, False))
    check_unsupported(num_splits=(num_splits, None, 0, 1))
    for name, given, instead in (
        ("seqused_k", seqused_k, "cute_attn.flash_attn_with_kvcache has cache_seqlens"),
        ("block_table", block_table, "cute_attn.flash_attn_with_kvcache has page_table"),
        ("alibi_slopes", alibi_slopes, "they are a score_mod of cute_attn.flex_attention"),
    ):
        if given is not None:
            raise ValueError(f"{name} is not supported here, it must be None: {instead}")
    window = check_window((window_size_left, window_size_right), is_causal)
    mask = _mask(cum_seq_q, cum_seq_k, window)
    q, k, v = _in_four_dims(query, key, value, mask)
    with torch.no_grad():
        out, lse, _ = attention(q, k, v, None, mask, check_scale(scale, q.shape[3], "scale"), 0.0, False, 0, False)
    if mask.kind == "documents":
        out, lse = out[0], lse[0]
    return out, lse, *_auxiliary(query)


def flash_attention_forward_no_dropout_inplace(out: Tensor, *rest: Any, **options: Any) -> Tensor:
    """rest, options: as `flash_attention_forward` has them."""
    found, lse, *_ = flash_attention_forward(*rest, **options)
    out.copy_(found)
    return lse


def flash_attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    cum_seq_q: Tensor | None,
    cum_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    rng_state: Tensor,
    unused: Tensor,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    check_unsupported(dropout_p=(dropout_p, 0.0))
    window = check_window((window_size_left, window_size_right), is_causal)
    mask = _mask(cum_seq_q, cum_seq_k, window)
    is_packed = mask.kind == "documents"
    dout, o, lse = (x[None] if is_packed else x for x in (grad_out, out, logsumexp))
    q, k, v = _in_four_dims(query, key, value, mask)
    deterministic = torch.are_deterministic_algorithms_enabled()
    scale = check_scale(scale, q.shape[3], "scale")
    dq, dk, dv = attention_gradients(dout, q, k, v, o, lse, mask, scale, deterministic)
    return (dq[0], dk[0], dv[0]) if is_packed else (dq, dk, dv)


def scaled_dot_product_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, None, None, int, int, Tensor, Tensor, Tensor]:
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    lengths = q.shape[1], k.shape[1]
    _refuse_unaligned(is_causal, *lengths)
    found, lse, *rest = flash_attention_forward(
        q, k, v, None, None, *lengths, dropout_p, is_causal, return_debug_mask, scale=scale
    )
    out, laid = found.transpose(1, 2), torch.empty_like(query, device="meta").stride()
    if out.stride() != laid:  # compilers expect the strides of query
        out = torch.empty_like(query).copy_(out)
    return (out, lse, None, None, *lengths, *rest)  # type: ignore[return-value]


def scaled_dot_product_flash_attention_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, *rest: Any, scale: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """rest: as `flash_attention_backward` has it."""
    dout, q, k, v, o = (x.transpose(1, 2) for x in (grad_out, query, key, value, out))
    dq, dk, dv = flash_attention_backward(dout, q, k, v, o, *rest, scale=scale)
    return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)


OPERATORS = {
    "_flash_attention_forward": flash_attention_forward,
    "_flash_attention_forward_no_dropout_inplace": flash_attention_forward_no_dropout_inplace,
    "_flash_attention_backward": flash_attention_backward,
    "_scaled_dot_product_flash_attention": scaled_dot_product_flash_attention,
    "_scaled_dot_product_flash_attention_backward": scaled_dot_product_flash_attention_backward,
}


def _mask(cum_seq_q: Tensor | None, cum_seq_k: Tensor | None, window: tuple[int, int]) -> MaskSource:
    left, right = window
    if cum_seq_q is None and cum_seq_k is None:
        return MaskSource("window", window_left=left, window_right=right)
    if cum_seq_q is None or cum_seq_k is None:
        missing = "cum_seq_q" if cum_seq_q is None else "cum_seq_k"
        raise ValueError(f"{missing} must be given where the other one is, got None")
    check_cu_seqlens(cum_seq_q, cum_seq_k)
    return MaskSource("documents", cum_seq_q, cum_seq_k, window_left=left, window_right=right)


def _in_four_dims(query: Tensor, key: Tensor, value: Tensor, mask: MaskSource) -> tuple[Tensor, Tensor, Tensor]:
    is_packed = mask.kind == "documents"
    check_qkv(query, key, value, "(tokens, heads, head_dim)" if is_packed else "(batch, tokens, heads, head_dim)")
    if query.shape[-1] != value.shape[-1]:
        raise ValueError(
            f"value must have the head_dim of query, {query.shape[-1]}, as PyTorch's operators have it, got "
            f"{value.shape[-1]}: cute_attn.integrations.torch.scaled_dot_product_attention takes another"
        )
    return (query[None], key[None], value[None]) if is_packed else (query, key, value)


def _refuse_unaligned(is_causal: bool, rows: int, keys: int) -> None:
    if is_causal and rows != keys:
        raise ValueError(
            f"is_causal must be False where there are {rows} queries and {keys} keys: PyTorch's operator does not say "
            "which of them are aligned; cute_attn.integrations.torch.scaled_dot_product_attention aligns the first"
        )


def _auxiliary(query: Tensor) -> Auxiliary:
    """What dropout would need and show: the state of a generator that nobody asks, and no mask."""
    state = torch.zeros(2, dtype=torch.uint64, device=query.device)
    return state, torch.zeros((), dtype=torch.uint64, device=query.device), query.new_empty(0)
