"""Attention under slices or interval masks, with the signature of MagiAttention's flexible flash attention."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch

from ..checks import (
    check_count,
    check_flag,
    check_integer_tensor,
    check_mask,
    check_max_seqlen,
    check_qkv,
    check_scale,
    check_sink,
    check_softcap,
    takes_keywords_of,
)
from ..elsewhere import KEYWORDS
from ..mask import AttnMaskType, IntervalMask
from ..mask.checks import shown
from ..mask.ranges import RangesLike, check_one_length, ranges_tensor, types_tensor
from ..mask.source import MaskSource
from .attention_op import attention, is_ours_alone, make_ready, ready_attention
from .mask_cache import find_mask, seen_mask
from .ready import kind_of_call, recall, remember, wants_gradients

__all__ = ["flex_flash_attn_func"]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

# Keywords of newer MagiAttention that steer its kernels, and those that would change the result.
HINTS = {
    "cat_gqa",
    "disable_bwd_dkv_atomic_reduction",
    "k_block_size",
    "pack_gqa",
    "q_block_size",
    "ref_block_size",
    "sparse_load",
    "swap_ab",
    "swap_bwd_qk_loop",
}
INDEXED = ("index_attn", "index_attn_indices")
_has_warned = False

TypesLike = torch.Tensor | AttnMaskType | str | int | Sequence[AttnMaskType | str | int]


def _as_newer_versions_call_it(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Lets calls written for newer MagiAttention pass: its hints fall, what would be silently different is said."""

    @functools.wraps(function)
    def call(*args: Parameters.args, **keywords: Parameters.kwargs) -> Result:
        for name in INDEXED:
            if name in keywords:
                raise TypeError(
                    f"{name} is not supported: give the blocks that are attended as slices, q_ranges and k_ranges"
                )
        has_no_types = len(args) < 8 and keywords.get("attn_type_map") is None
        if len(args) > 5 and has_no_types and not isinstance(args[3], IntervalMask):
            _note_sixth(args[5])
        for name in HINTS.intersection(keywords):
            del keywords[name]
        return function(*args, **keywords)

    return call


def _note_sixth(value: object) -> None:
    """The sixth positional argument is max_seqlen_q here and attn_type_map in newer MagiAttention."""
    global _has_warned
    if isinstance(value, (AttnMaskType, str, list, tuple)) or (isinstance(value, torch.Tensor) and value.ndim):
        raise TypeError(
            f"max_seqlen_q must be an int, got {shown(value)}: pass attn_type_map by keyword, it is the eighth argument"
        )
    if value is not None and not _has_warned and not torch.compiler.is_compiling():
        _has_warned = True
        warnings.warn(
            f"the sixth argument, {value!r}, is max_seqlen_q, and without attn_type_map all slices are full; "
            "if it is meant for types, pass attn_type_map by keyword",
            stacklevel=3,
        )


@_as_newer_versions_call_it
@takes_keywords_of(KEYWORDS)
def flex_flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_ranges: RangesLike | IntervalMask,
    k_ranges: RangesLike | None = None,
    max_seqlen_q: int | torch.Tensor | None = None,
    max_seqlen_k: int | torch.Tensor | None = None,
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
        q_ranges, k_ranges: int `(n, 2)`, half-open: tensors on any device, arrays, lists of pairs or AttnRanges. Or one
            IntervalMask as q_ranges, with k_ranges and attn_type_map None; it carries its plans from call to call.
        attn_type_map: `(n,)` of 0 full, 1 causal, 2 inverse causal, 3 bi-causal, names or AttnMaskType; one for all;
            None means all full.
        softmax_scale: None means `1 / sqrt(head_dim)`.
        softcap: c > 0 makes every score `c * tanh(score / c)`; 0 means off.
        deterministic: gradients bitwise equal from run to run.
        sm_margin: streaming multiprocessors left free for others.
        max_seqlen_q, max_seqlen_k, disable_fwd_atomic_reduction, auto_range_merge: hints that change nothing, as do, by
            keyword, those of newer MagiAttention: q_block_size, k_block_size, sparse_load, swap_ab, ref_block_size,
            pack_gqa, cat_gqa, swap_bwd_qk_loop, disable_bwd_dkv_atomic_reduction. A max_seqlen_* that is shorter than
            a range is refused where both are on the host; nothing is read off a GPU.
        sink: bf16, fp16, fp32 or fp64 extra logits without a value, taken to fp32 (fp64 with fp64 inputs): `(s_sink,
            heads_q)` or, for one, `(heads_q,)` for sink_layout "sh", `(num_tokens_q, s_sink, heads_q)` for "ssh". Its
            gradient is rounded to its dtype once.

    Returns:
        out `(num_tokens_q, heads_q, head_dim_v)` in q's dtype and lse `(heads_q, num_tokens_q)`, natural logarithm with
        sinks, fp32 (fp64 with fp64 inputs); with `return_max_logits` also max_logits `(heads_q,)`, the largest attended
        score after scale and softcap, before sinks. out and lse are differentiable. A row without keys has out 0, and
        lse -inf if it has no sink.

    Raises TypeError or ValueError naming the argument; NotImplementedError where no backend serves the device.
    """
    kind = None
    some_are_missing = q is None or k is None or v is None
    if sink is None and return_max_logits is False and not some_are_missing and is_ours_alone(q, k, v):
        others = disable_fwd_atomic_reduction, auto_range_merge, sink_layout
        kind = kind_of_call(q, k, v, softmax_scale, softcap, deterministic, sm_margin, *others)
        if kind is not None and max_seqlen_q is max_seqlen_k is None:
            known, seal = _known_mask(q, k, q_ranges, k_ranges, attn_type_map)
            call = None if known is None else recall(known, kind)
            if call is not None:
                return ready_attention(call, q, k, v, seal=seal)
    check_qkv(q, k, v, "(num_tokens, heads, head_dim)")
    scale = check_scale(softmax_scale, q.shape[2])
    cap = check_softcap(softcap)
    margin = check_count("sm_margin", sm_margin)
    check_flag("deterministic", deterministic)
    check_flag("disable_fwd_atomic_reduction", disable_fwd_atomic_reduction)
    check_flag("auto_range_merge", auto_range_merge)
    check_flag("return_max_logits", return_max_logits)
    sinks = check_sink(sink, sink_layout, q)
    mask: IntervalMask | MaskSource
    if isinstance(q_ranges, IntervalMask):
        mask = q_ranges
        _check_alone(k_ranges, attn_type_map)
        check_mask("q_ranges", mask, q[None], k[None])
    else:
        mask = _slice_argument(q_ranges, k_ranges, attn_type_map)
    for name, hint, bounds in (("max_seqlen_q", max_seqlen_q, 0), ("max_seqlen_k", max_seqlen_k, 1)):
        check_max_seqlen(name, hint, None if isinstance(mask, IntervalMask) else mask.tensors[bounds])
    if kind is not None:
        found, seal = (
            (mask, None) if isinstance(mask, IntervalMask) else find_mask(mask, q.shape[0], k.shape[0], q.device)
        )
        call = recall(found, kind)
        if call is None:
            backward = wants_gradients(q, k, v)
            call = make_ready(q, k, v, found, scale, cap, None, deterministic, margin, backward=backward)
            remember(found, kind, call)
        return ready_attention(call, q, k, v, seal=seal)
    q, k, v = q[None], k[None], v[None]
    out, lse, max_logits = attention(q, k, v, sinks, mask, scale, cap, deterministic, margin, return_max_logits)
    out, lse = out.squeeze(0), lse.squeeze(0)  # whose backward, unlike that of out[0], is a view
    return (out, lse, max_logits[0]) if return_max_logits else (out, lse)


def _known_mask(
    q: torch.Tensor, k: torch.Tensor, q_ranges: Any, k_ranges: Any, attn_type_map: Any
) -> tuple[IntervalMask | None, torch.Tensor | None]:
    """The mask of arguments that nobody checked, and the seal of its look-up; None unless they were met before."""
    if isinstance(q_ranges, IntervalMask):
        return (q_ranges if k_ranges is attn_type_map is None else None), None
    tensors = [q_ranges, k_ranges] if attn_type_map is None else [q_ranges, k_ranges, attn_type_map]
    if q.ndim != 3 or k.ndim != 3:
        return None, None
    for x in tensors:  # dense ones, whose numbers are here
        if type(x) is not torch.Tensor or not x.is_cpu or x.layout is not torch.strided:
            return None, None
    return seen_mask(_FORMS[len(tensors)], tensors, q.shape[0], k.shape[0], q.device) or (None, None)


_ANY = torch.empty(0, device="cpu")
_FORMS = {2: MaskSource("slices", _ANY, _ANY).form, 3: MaskSource("slices", _ANY, _ANY, _ANY).form}  # by tensors


def _refuse_other_masks(q_ranges: object) -> None:
    """What describes a mask elsewhere: errors say what does here."""
    instead = "slices (q_ranges and k_ranges), or an IntervalMask: a builder of cute_attn.mask makes one, and so does"
    if isinstance(q_ranges, (torch.Tensor, np.ndarray)) and q_ranges.dtype in (torch.bool, np.bool_):
        raise TypeError(
            f"q_ranges must hold integers, got booleans: where a dense mask stands elsewhere, give {instead} "
            "IntervalMask.from_dense(mask)"
        )
    if isinstance(q_ranges, str):
        raise TypeError(
            f"q_ranges must be ranges or an IntervalMask, got {q_ranges!r}: "
            "cute_attn.mask.from_spec(name, seqlen_q, seqlen_k) makes a mask from its name"
        )
    if type(q_ranges).__name__ == "BlockMask":  # ours or torch's
        raise TypeError(
            "q_ranges must be ranges or an IntervalMask, got a BlockMask: cute_attn.flex_attention takes it, and where "
            "it is intervals, `intervals` of cute_attn's is one"
        )
    if type(q_ranges).__name__ == "IntervalMask":
        raise TypeError(
            "q_ranges must be ranges or an IntervalMask, got one of another copy of the library, "
            f"{type(q_ranges).__module__}: make it by the mask module of {__name__.partition('.')[0]}"
        )
    if callable(q_ranges):
        raise TypeError(
            f"q_ranges must be ranges or an IntervalMask, got a function: a mask_mod is no mask here; give {instead} "
            "IntervalMask.from_function(mask_mod, seqlen_q, seqlen_k)"
        )


def _check_alone(k_ranges: object, attn_type_map: object) -> None:
    for name, value in (("k_ranges", k_ranges), ("attn_type_map", attn_type_map)):
        if value is not None:
            raise ValueError(f"{name} must be None where q_ranges is an IntervalMask, got {type(value).__name__}")


def _slice_argument(q_ranges: RangesLike, k_ranges: RangesLike | None, attn_type_map: object) -> MaskSource:
    _refuse_other_masks(q_ranges)
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
    check_one_length(first, second)
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
