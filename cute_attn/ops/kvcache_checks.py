"""Checks of `flash_attn_with_kvcache`: each raises TypeError or ValueError naming argument, value and what is allowed.

What lies on the host is checked by value; a GPU is never read.
"""

from __future__ import annotations

import numpy as np
import torch

from ..caches import EIGHT_BITS, KVCache
from ..checks import DTYPES, check_scale, is_readable
from ..kinds import is_int, is_number
from ..mask import IntervalMask
from ..mask.checks import END, check_is_dense, shown

__all__ = [
    "check_caches",
    "check_descale",
    "check_new",
    "check_no_gradient",
    "check_positions",
    "check_queries",
    "check_rows",
    "check_seqlens",
    "check_sinks",
    "check_table",
    "check_tree",
    "check_written",
]

Tensor = torch.Tensor


def check_queries(q: Tensor) -> None:
    _check_dense("q", q)
    if q.dtype not in DTYPES:
        raise TypeError(f"q must be bfloat16, float16, float32 or float64, got {q.dtype}")
    if q.ndim != 4 or q.shape[2] < 1 or q.shape[3] < 1:
        raise ValueError(f"q must have shape (batch, tokens, heads_q, head_dim), got {tuple(q.shape)}")


def check_caches(q: Tensor, k_cache: Tensor, v_cache: Tensor, paged: bool, indexed: bool) -> None:
    """The caches fit each other and q; `indexed`: their rows are chosen by cache_batch_idx."""
    layout = "(num_pages, page_size, heads_k, head_dim)" if paged else "(batch, seqlen, heads_k, head_dim)"
    for name, x in (("k_cache", k_cache), ("v_cache", v_cache)):
        _check_dense(name, x)
        if x.ndim != 4:
            raise ValueError(f"{name} must have shape {layout}, got {tuple(x.shape)}")
        _check_device(name, x, q)
        if x.dtype != q.dtype and x.dtype not in EIGHT_BITS:
            raise TypeError(
                f"{name} must have the dtype of q, {q.dtype}, or int8, float8_e4m3fn or float8_e5m2, got {x.dtype}"
            )
    if k_cache.dtype != v_cache.dtype:
        raise TypeError(f"k_cache and v_cache must have one dtype, got {k_cache.dtype} and {v_cache.dtype}")
    if not _has_shape(v_cache, (*k_cache.shape[:3], v_cache.shape[3])):
        raise ValueError(
            f"k_cache and v_cache must differ in head_dim alone, got {tuple(k_cache.shape)} and {tuple(v_cache.shape)}"
        )
    heads_q, heads_k = q.shape[2], k_cache.shape[2]
    if heads_k < 1 or heads_q % heads_k:
        raise ValueError(
            f"the heads of q must be a multiple of the heads of k_cache (at least one), got heads_q = {heads_q} and "
            f"heads_k = {heads_k}"
        )
    if k_cache.shape[3] != q.shape[3] or v_cache.shape[3] < 1:
        raise ValueError(
            f"k_cache must have the head_dim of q, {q.shape[3]}, and v_cache one of at least 1, got "
            f"{k_cache.shape[3]} and {v_cache.shape[3]}"
        )
    if paged and k_cache.shape[1] < 1:
        raise ValueError(f"k_cache must have a page_size of at least 1, got {k_cache.shape[1]}")
    if not paged and not indexed and k_cache.shape[0] != q.shape[0]:
        raise ValueError(
            f"k_cache must have the batch of q, {q.shape[0]}, unless cache_batch_idx or page_table says which part of "
            f"it belongs to which sequence, got {k_cache.shape[0]}"
        )


def check_new(q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor) -> None:
    """New keys and values fit q and the caches."""
    for name, x, cache in (("k", k, k_cache), ("v", v, v_cache)):
        _check_dense(name, x)
        wanted = (q.shape[0], cache.shape[2], cache.shape[3])
        if x.ndim != 4 or not _has_shape(x, (wanted[0], x.shape[1], *wanted[1:])):
            shape = f"({wanted[0]}, new tokens, {wanted[1]}, {wanted[2]})"
            raise ValueError(f"{name} must have shape {shape}, got {tuple(x.shape)}")
        _check_device(name, x, q)
        if x.dtype != q.dtype:
            raise TypeError(f"{name} must have the dtype of q, {q.dtype}, got {x.dtype}")
    if k.shape[1] != v.shape[1]:
        raise ValueError(f"k and v must have one number of tokens, got {k.shape[1]} and {v.shape[1]}")


def check_written(**tensors: Tensor | None) -> None:
    """What is appended to, caches and scales of tokens, has a place in memory for each element; what is appended can be
    divided by the other scales."""
    for name, x in tensors.items():
        if x is None:
            continue
        if x.ndim < 3 and is_readable(x) and not bool((x.isfinite() & (x != 0)).all()):
            raise ValueError(
                f"{name} must hold finite numbers other than 0 where k and v are appended: they are divided by it"
            )
        if x.ndim >= 3 and any(step == 0 and size > 1 for step, size in zip(x.stride(), x.shape, strict=True)):
            raise ValueError(
                f"{name} must not be an expanded tensor where k and v are appended, got shape {tuple(x.shape)} and "
                f"strides {x.stride()}: elements that share memory would be written over"
            )


def check_rows(cache_batch_idx: Tensor | None, q: Tensor, rows: int, appends: bool) -> None:
    """cache_batch_idx, int32 `(b,)` within the rows of the cache; each once where something is appended."""
    if cache_batch_idx is None:
        return
    _check_ints("cache_batch_idx", cache_batch_idx, q, 1)
    if is_readable(cache_batch_idx) and cache_batch_idx.numel():
        low, high = (int(x) for x in cache_batch_idx.aminmax())
        if low < 0 or high >= rows:
            raise ValueError(f"cache_batch_idx must lie in [0, {rows}), got {low if low < 0 else high}")
        if appends and len(cache_batch_idx.unique()) < len(cache_batch_idx):
            raise ValueError(
                "cache_batch_idx must name each row once where k and v are appended: two would be written over"
            )


def check_table(page_table: Tensor | None, q: Tensor) -> None:
    if page_table is not None:
        _check_ints("page_table", page_table, q, 2)


def check_seqlens(cache_seqlens: int | Tensor | None, q: Tensor, capacity: int, needed: str) -> Tensor:
    """The lengths as int32 `(b,)`; None is the whole capacity, unless something needs them."""
    if cache_seqlens is None:
        if needed:
            raise ValueError(f"cache_seqlens must be given with {needed}, got None")
        cache_seqlens = capacity
    if isinstance(cache_seqlens, np.integer):
        cache_seqlens = int(cache_seqlens)
    if is_int(cache_seqlens, torch.SymInt):
        if not 0 <= cache_seqlens < END:
            raise ValueError(f"cache_seqlens must be >= 0 and below 2^31, got {cache_seqlens}")
        return torch.full((q.shape[0],), cache_seqlens, dtype=torch.int32, device=q.device)
    if not isinstance(cache_seqlens, torch.Tensor):
        raise TypeError(f"cache_seqlens must be an int or an int32 tensor (batch,), got {shown(cache_seqlens)}")
    _check_ints("cache_seqlens", cache_seqlens, q, 1)
    return cache_seqlens


def check_positions(cache: KVCache, new: int, given: int | Tensor | None) -> None:
    """What is attended or appended lies within the capacity, and in pages of the pool, where the host knows."""
    if isinstance(given, (int, np.integer)):
        if given + new > cache.capacity:
            raise ValueError(
                f"cache_seqlens{_and(new)} must be at most the capacity, {cache.capacity}, got {given + new}"
            )
        if cache.table is None or not is_readable(cache.table):
            return
    if not is_readable(cache.lengths) or cache.lengths.numel() == 0:
        return
    low, high = int(cache.lengths.min()), int(cache.lengths.max()) + new
    if low < 0 or high > cache.capacity:
        got = low if low < 0 else high
        raise ValueError(f"cache_seqlens{_and(new)} must lie in [0, {cache.capacity}], the capacity, got {got}")
    if cache.table is None or not is_readable(cache.table):
        return
    page_size, pages = cache.keys.shape[1], cache.keys.shape[0]
    used = torch.arange(cache.table.shape[1], device="cpu") * page_size < cache.lengths[:, None] + new
    wrong = used & ((cache.table < 0) | (cache.table >= pages))
    if wrong.any():
        sequence, column = (int(x) for x in wrong.nonzero()[0])
        raise ValueError(
            f"page_table must name a page in [0, {pages}) for every position below the length, got "
            f"{int(cache.table[sequence, column])} for entry {column} of sequence {sequence}"
        )
    if new:
        page, within, _ = cache.places(cache.lengths.long()[:, None] + torch.arange(new, device="cpu"))
        places = (page * page_size + within).flatten()
        if len(places.unique()) < len(places):
            raise ValueError(
                "page_table must name a place of the pool once where k and v are appended: two would be written over"
            )


def check_descale(name: str, descale: float | Tensor | None, cache: Tensor, q: Tensor) -> Tensor | None:
    """None, or a tensor: 0-d, (b, heads_k) or for each token of the cache."""
    if descale is None:
        return None
    if cache.dtype not in EIGHT_BITS:
        raise ValueError(f"{name} must be None where the cache is not int8 or fp8, it is {cache.dtype}")
    if is_number(descale, np.integer, np.floating):
        descale = check_scale(descale, 1, name)
        return torch.full((), descale, dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)
    if not isinstance(descale, torch.Tensor):
        raise TypeError(f"{name} must be a number or a tensor, got {shown(descale)}")
    _check_dense(name, descale)
    if descale.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} must be float32 or float64, got {descale.dtype}")
    allowed = ((), (q.shape[0], cache.shape[2]), tuple(cache.shape[:3]))
    if not _has_shape(descale, *allowed):
        raise ValueError(
            f"{name} must have shape {', '.join(map(str, allowed[:2]))} or {allowed[2]}, got {tuple(descale.shape)}"
        )
    _check_device(name, descale, q)
    return descale


def check_sinks(sink: Tensor | None, q: Tensor) -> Tensor | None:
    """The sinks as `(s_sink, heads_q)`."""
    if sink is None:
        return None
    _check_dense("sink", sink)
    if sink.dtype not in DTYPES:
        raise TypeError(f"sink must be bfloat16, float16, float32 or float64, got {sink.dtype}")
    _check_device("sink", sink, q)
    if sink.ndim not in (1, 2) or sink.shape[-1] != q.shape[2]:
        heads = q.shape[2]
        raise ValueError(f"sink must have shape ({heads},) or (s_sink, {heads}), got {tuple(sink.shape)}")
    return sink.view(1, -1) if sink.ndim == 1 else sink


def check_tree(mask: Tensor | IntervalMask | None, causal: bool, q: Tensor) -> Tensor | None:
    """Which new tokens attend which, as bool `(1 or b, t, t)`."""
    if mask is None:
        return None
    if causal:
        raise ValueError("causal must be False with mask: the mask says itself what new tokens attend of each other")
    batch, tokens = q.shape[:2]
    if isinstance(mask, IntervalMask):
        if mask.heads != 1 or mask.batch not in (1, batch) or (mask.seqlen_q, mask.seqlen_k) != (tokens, tokens):
            raise ValueError(
                f"mask must be an IntervalMask of {tokens} queries and keys, batch 1 or {batch} and heads 1, got {mask}"
            )
        if mask.device != q.device:
            raise ValueError(f"mask must be on the device of q, {q.device}, got {mask.device}")
        return mask.to_dense()
    if not isinstance(mask, torch.Tensor):
        raise TypeError(f"mask must be a bool tensor or an IntervalMask, got {shown(mask)}")
    _check_dense("mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, got {mask.dtype}")
    _check_device("mask", mask, q)
    if not _has_shape(mask, (tokens, tokens), (batch, tokens, tokens)):
        raise ValueError(
            f"mask must have shape ({tokens}, {tokens}) or ({batch}, {tokens}, {tokens}), got {tuple(mask.shape)}"
        )
    return mask[None] if mask.ndim == 2 else mask


def check_no_gradient(**tensors: object) -> None:
    """None of them asks for a gradient where gradients are recorded."""
    if not torch.is_grad_enabled():
        return
    for name, x in tensors.items():
        if isinstance(x, torch.Tensor) and x.requires_grad:
            raise ValueError(
                f"{name} must not require a gradient: attention over a cache has none; call it under torch.no_grad()"
            )


def _and(new: int) -> str:
    return f" and the {new} new tokens" if new else ""


def _has_shape(x: Tensor, *allowed: tuple[int, ...]) -> bool:
    """Size by size: torch.compile compares no tuples of symbolic ones."""
    return any(x.ndim == len(shape) and all(a == b for a, b in zip(x.shape, shape, strict=True)) for shape in allowed)


def _check_dense(name: str, x: object) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {shown(x)}")
    check_is_dense(name, x)


def _check_device(name: str, x: Tensor, q: Tensor) -> None:
    if x.device != q.device:
        raise ValueError(f"{name} must be on the device of q, {q.device}, got {x.device}")


def _check_ints(name: str, x: Tensor, q: Tensor, ndim: int) -> None:
    _check_dense(name, x)
    if x.dtype != torch.int32:
        raise TypeError(f"{name} must be int32, got {x.dtype}")
    if x.ndim != ndim or x.shape[0] != q.shape[0]:
        wanted = f"({q.shape[0]}, max_pages)" if ndim == 2 else f"({q.shape[0]},)"
        raise ValueError(f"{name} must have shape {wanted}, got {tuple(x.shape)}")
    _check_device(name, x, q)
