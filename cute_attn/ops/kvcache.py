"""Attention of new tokens over caches of keys and values, as FlashAttention-3 names and orders the arguments."""

from __future__ import annotations

import torch

from ..caches import KVCache
from ..checks import (
    check_count,
    check_flag,
    check_scale,
    check_softcap,
    check_unsupported,
    check_window,
    takes_keywords_of,
)
from ..elsewhere import KEYWORDS
from ..mask import IntervalMask
from .decode_op import attend_cache, check_cache_served
from .kvcache_checks import (
    check_caches,
    check_descale,
    check_new,
    check_no_gradient,
    check_positions,
    check_queries,
    check_rows,
    check_seqlens,
    check_sinks,
    check_table,
    check_tree,
    check_written,
)
from .sink import Window

__all__ = ["flash_attn_with_kvcache"]

Tensor = torch.Tensor


@takes_keywords_of(KEYWORDS)
def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    *,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    page_table: Tensor | None = None,
    k_descale: float | Tensor | None = None,
    v_descale: float | Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    num_splits: int = 0,
    sm_margin: int = 0,
    return_softmax_lse: bool = False,
    sink: Tensor | None = None,
    mask: Tensor | IntervalMask | None = None,
    qv: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    rotary_seqlens: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    max_seqlen_q: int | None = None,
    q_descale: Tensor | None = None,
    attention_chunk: int = 0,
    scheduler_metadata: Tensor | None = None,
    rotary_interleaved: bool = True,
    pack_gqa: bool | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of t new tokens a sequence over what its cache holds, after new keys and values were appended to it.

    Args:
        q: `(b, t, heads_q, d)`, bf16, fp16, fp32 or fp64: the last t positions of each sequence.
        k_cache, v_cache: `(b, s, heads_k, d)` and `(b, s, heads_k, dv)`, or with page_table pools `(num_pages,
            page_size, heads_k, d)`, in q's dtype, int8, float8_e4m3fn or float8_e5m2. Never copied: of any strides, on
            kernels of a last stride of 1 and others that are multiples of 16 bytes.
        k, v: None, or `(b, n, heads_k, d)` and `(b, n, heads_k, dv)` like q: written behind each sequence, in place.
            Expanded caches are refused then; on the host, so are pages in which two tokens would have one place.
        cache_seqlens: int or int32 `(b,)`, the lengths without k; None means the whole cache, where neither k nor
            page_table is given. Nothing beyond a length (and k) reaches a result.
        cache_batch_idx: int32 `(b,)`, the row of a contiguous cache that a sequence has.
        page_table: int32 `(b, max_pages)`; entries past the end of a sequence are never read and may be -1.
        k_descale, v_descale: what an 8-bit cache is multiplied with: a number, `(b, heads_k)`, or for each token
            `(b, s, heads_k)` (`(num_pages, page_size, heads_k)`), fp32 or fp64. Appended rows are divided by a given
            number or that of their head and saturate; for each token they get one of their own, written in place:
            their largest magnitude / 127 (int8), / 448 (e4m3), / 57344 (e5m2), or 1 for zeros.
        softmax_scale: None means `1 / sqrt(d)`. softcap: c > 0 makes every score `c * tanh(score / c)`.
        causal, window_size: aligned to the last token and the last key; a window is inclusive, -1 or None unlimited.
        mask: bool `(t, t)` or `(b, t, t)`, or an IntervalMask of t queries and keys, in the place of causality among
            the new tokens, such as a tree of guesses; all earlier keys are attended. A window holds besides, by index.
            Tokens before position 0 attend nothing. On kernels for t up to 64.
        sink: `(heads_q,)` or `(s_sink, heads_q)`, logits without a value that join every row.
        num_splits: parts in which the keys of a sequence are attended side by side; 0 chooses from shapes alone. With 1
            a sequence has the same bits whatever shares its batch; every number has the same bits from run to run. A
            prefill, of more than 64 tokens over a cache of 16 bits, is never divided.
        sm_margin: streaming multiprocessors that num_splits=0 leaves out of account, and a prefill leaves alone.
        rotary_interleaved, pack_gqa: hints that change nothing.
        qv, rotary_cos, rotary_sin, rotary_seqlens, cache_leftpad, cu_seqlens_q, cu_seqlens_k_new, max_seqlen_q,
            q_descale, attention_chunk, scheduler_metadata: not supported, they only complete the signature; anything
            but their defaults raises ValueError that names what serves it, as do version 2's keywords.

    A position past the capacity, and one whose page is not in the pool, is written nowhere; to attend to it reads no
    memory outside of the cache, but gives numbers without a meaning. Where lengths and pages are on the host it raises
    ValueError. On a GPU nothing is read by the host: lengths and pages may change between the replays of a CUDA graph.

    Returns out `(b, t, heads_q, dv)` like q, with return_softmax_lse also lse `(b, heads_q, t)`, the natural logarithm
    with the sinks in it, fp32 (fp64 for fp64). A row without keys has out 0 and lse = logsumexp(sinks). There are no
    gradients.

    Raises TypeError or ValueError for bad arguments, naming them, NotImplementedError for what no backend serves.
    """
    _check_extras(
        rotary_interleaved,
        pack_gqa,
        qv=(qv, None),
        rotary_cos=(rotary_cos, None),
        rotary_sin=(rotary_sin, None),
        rotary_seqlens=(rotary_seqlens, None),
        cache_leftpad=(cache_leftpad, None),
        cu_seqlens_q=(cu_seqlens_q, None),
        cu_seqlens_k_new=(cu_seqlens_k_new, None),
        max_seqlen_q=(max_seqlen_q, None),
        q_descale=(q_descale, None),
        attention_chunk=(attention_chunk, 0),
        scheduler_metadata=(scheduler_metadata, None),
    )
    check_queries(q)
    paged, indexed, appends = page_table is not None, cache_batch_idx is not None, k is not None
    if paged and indexed:
        raise ValueError("cache_batch_idx must be None with page_table, which says itself where a sequence lies")
    if appends != (v is not None):
        missing, there = ("v", "k") if appends else ("k", "v")
        raise ValueError(f"{missing} must be given with {there}: both are appended, or neither")
    check_caches(q, k_cache, v_cache, paged, indexed)
    if k is not None and v is not None:
        check_new(q, k, v, k_cache, v_cache)
    check_rows(cache_batch_idx, q, k_cache.shape[0], appends)
    check_table(page_table, q)
    key_scales = check_descale("k_descale", k_descale, k_cache, q)
    value_scales = check_descale("v_descale", v_descale, v_cache, q)
    if appends:
        check_written(k_cache=k_cache, v_cache=v_cache, k_descale=key_scales, v_descale=value_scales)
    sinks = check_sinks(sink, q)
    scale, cap = check_scale(softmax_scale, q.shape[3]), check_softcap(softcap)
    check_flag("return_softmax_lse", return_softmax_lse)
    window = check_window(window_size, causal)
    tree = check_tree(mask, causal, q)
    splits, margin = check_count("num_splits", num_splits), check_count("sm_margin", sm_margin)
    check_no_gradient(
        q=q, k_cache=k_cache, v_cache=v_cache, k=k, v=v, k_descale=k_descale, v_descale=v_descale, sink=sink
    )
    capacity = k_cache.shape[1] * (page_table.shape[1] if page_table is not None else 1)
    lengths = check_seqlens(cache_seqlens, q, capacity, "k" if appends else "page_table" if paged else "")
    cache = KVCache(k_cache, v_cache, lengths, cache_batch_idx, page_table, key_scales, value_scales)
    check_positions(cache, k.shape[1] if k is not None else 0, cache_seqlens)
    check_cache_served(q, cache, tree)
    out, lse = attend_cache(q, cache, k, v, sinks, tree, scale, cap, window, splits, margin)
    return (out, lse) if return_softmax_lse else out


def _check_extras(rotary_interleaved: object, pack_gqa: object, **unsupported: tuple[object, ...]) -> None:
    """What is there for the sake of the signature: hints, and what must be left alone."""
    check_flag("rotary_interleaved", rotary_interleaved)
    if pack_gqa is not None:
        check_flag("pack_gqa", pack_gqa)
    check_unsupported(**unsupported)
