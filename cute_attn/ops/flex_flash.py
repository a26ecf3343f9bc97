"""Attention under slices or interval masks, with the signature of MagiAttention's flexible flash attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..mask import AttnMaskType, IntervalMask
from ..mask.ranges import RangesLike, ranges_tensor, types_tensor
from ..mask.source import MaskSource
from .attention_op import attention
from .checks import (
    check_count,
    check_flag,
    check_integer_tensor,
    check_mask,
    check_qkv,
    check_scale,
    check_sink,
    check_softcap,
)

__all__ = ["flex_flash_attn_func"]

TypesLike = torch.Tensor | AttnMaskType | str | int | Sequence[AttnMaskType | str | int]


def flex_flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_ranges: RangesLike | IntervalMask,
    k_ranges: RangesLike | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    attn_type_map: TypesLike | None = None,
    softmax_scale: float | None = None,
    softcap: float = 0.0,
    deterministic: bool = False,
    sm_margin: int = 0,
    disable_fwd_atomic_reduction: bool = False,
    auto_range_merge: bool = False,
    *,
    sink: torch.Tensor | None = None,
    sink_layout: str = "sh",
    return_max_logits: bool = False,
) -> tuple[torch.Tensor, ...]:
    """Exact attention of packed tokens under any union of slices.

    Slice j lets the queries of `q_ranges[j]` see the keys of `k_ranges[j]` as `attn_type_map[j]` says; a pair that
    several slices cover counts once.

    Args:
        q: `(num_tokens_q, heads_q, head_dim)`, bf16, fp16, fp32 or fp64.
        k: `(num_tokens_kv, heads_k, head_dim)`; heads_q is a multiple of heads_k, query head h uses key head
            `h // (heads_q / heads_k)`.
        v: `(num_tokens_kv, heads_k, head_dim_v)`.
        q_ranges, k_ranges: int `(n, 2)`, half-open: tensors on any device, lists of pairs or AttnRanges. Or one
            IntervalMask as q_ranges, with k_ranges and attn_type_map None; it carries its plans from call to call.
        attn_type_map: `(n,)` of 0 full, 1 causal, 2 inverse causal, 3 bi-causal, names or AttnMaskType; one for all;
            None means all full.
        softmax_scale: None means `1 / sqrt(head_dim)`.
        softcap: c > 0 makes every score `c * tanh(score / c)`; 0 means off.
        deterministic: gradients bitwise equal from run to run.
        sm_margin: streaming multiprocessors left free for others.
        max_seqlen_q, max_seqlen_k, disable_fwd_atomic_reduction, auto_range_merge: hints that change nothing.
        sink: fp32 (fp64 with fp64 inputs) extra logits without a value: `(s_sink, heads_q)` for sink_layout "sh",
            `(num_tokens_q, s_sink, heads_q)` for "ssh".

    Returns:
        out `(num_tokens_q, heads_q, head_dim_v)` in q's dtype and lse `(heads_q, num_tokens_q)`, natural logarithm with
        sinks, fp32 (fp64 with fp64 inputs); with `return_max_logits` also max_logits `(heads_q,)`, the largest attended
        score after scale and softcap, before sinks. out and lse are differentiable. A row without keys has out 0, and
        lse -inf if it has no sink.

    Raises TypeError or ValueError naming the argument; NotImplementedError where no backend serves the device.
    """
    check_qkv(q, k, v, "(num_tokens, heads, head_dim)")
    scale = check_scale(softmax_scale, q.shape[2])
    cap = check_softcap(softcap)
    check_count("max_seqlen_q", max_seqlen_q)
    check_count("max_seqlen_k", max_seqlen_k)
    check_count("sm_margin", sm_margin)
    check_flag("deterministic", deterministic)
    check_flag("disable_fwd_atomic_reduction", disable_fwd_atomic_reduction)
    check_flag("auto_range_merge", auto_range_merge)
    check_flag("return_max_logits", return_max_logits)
    sinks = check_sink(sink, sink_layout, q)
    mask: IntervalMask | MaskSource
    q, k, v = q[None], k[None], v[None]
    if isinstance(q_ranges, IntervalMask):
        mask = q_ranges
        _check_alone(k_ranges, attn_type_map)
        check_mask("q_ranges", mask, q, k)
    else:
        mask = _slice_argument(q_ranges, k_ranges, attn_type_map)
    out, lse, max_logits = attention(q, k, v, sinks, mask, scale, cap, deterministic, sm_margin, return_max_logits)
    return (out[0], lse[0], max_logits) if return_max_logits else (out[0], lse[0])


def _check_alone(k_ranges: object, attn_type_map: object) -> None:
    for name, value in (("k_ranges", k_ranges), ("attn_type_map", attn_type_map)):
        if value is not None:
            raise ValueError(f"{name} must be None where q_ranges is an IntervalMask, got {type(value).__name__}")


def _slice_argument(q_ranges: RangesLike, k_ranges: RangesLike | None, attn_type_map: object) -> MaskSource:
    if q_ranges is None or k_ranges is None:
        missing = "q_ranges" if q_ranges is None else "k_ranges"
        raise TypeError(
            f"{missing} is missing: slices need both q_ranges and k_ranges, or one IntervalMask as q_ranges"
        )
    ranges = []
    for name, value in (("q_ranges", q_ranges), ("k_ranges", k_ranges)):
        if isinstance(value, torch.Tensor):
            check_integer_tensor(name, value, "(n, 2)")
            ranges.append(value)
        else:
            ranges.append(ranges_tensor(name, value))
    first, second = ranges
    if first.shape[0] != second.shape[0]:  # len() would make torch.export take the number for a constant
        raise ValueError(f"q_ranges and k_ranges must have one length, got {first.shape[0]} and {second.shape[0]}")
    types = attn_type_map
    if types is not None and not isinstance(types, torch.Tensor):
        types = types_tensor("attn_type_map", types, first.shape[0])
    if isinstance(types, torch.Tensor):
        check_integer_tensor("attn_type_map", types, "(n,)")
        if types.shape[0] != first.shape[0]:
            raise ValueError(
                f"attn_type_map must have shape ({first.shape[0]},), one type a slice, got {tuple(types.shape)}"
            )
        return MaskSource("slices", first, second, types)
    return MaskSource("slices", first, second)
