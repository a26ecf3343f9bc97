"""Attention of a few new tokens over a cache, in plain PyTorch: the backend of CPU tensors, and the oracle of decode.

One sequence at a time: its keys and values are gathered from the pages, as far as its length and no further, and
brought to the compute dtype; the new tokens' intervals of keys go to the reference's forward.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from .autocast import without_autocast
from .caches import EIGHT_BITS, KVCache
from .mask.dense import runs_of_rows
from .reference import attention_forward, compute_dtype

__all__ = ["decode_reference", "gathered", "intervals_of_tokens"]

Tensor = torch.Tensor


@without_autocast
def decode_reference(
    q: Tensor,
    cache: KVCache,
    sink: Tensor | None,
    tree: Tensor | None,
    softmax_scale: float,
    softcap: float,
    window: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Attention of checked tensors, the last t positions of each sequence being the queries.

    Args:
        q: `(b, t, heads_q, d)`. sink: None or `(s_sink, heads_q)`. tree: None or bool `(1 or b, t, t)`.
        window: keys to the left and to the right of a query's own position, -1 for all.

    Returns out `(b, t, heads_q, dv)` in q's dtype and lse `(b, heads_q, t)` in the compute dtype.
    """
    dtype = compute_dtype(q.dtype)
    batch, tokens, heads, _ = q.shape
    out = q.new_zeros(batch, tokens, heads, cache.values.shape[3])
    lse = q.new_full((batch, heads, tokens), -torch.inf, dtype=dtype)
    sinks = None if sink is None else sink.to(dtype)[None, None]
    for i, length in enumerate(cache.lengths.clamp(0, cache.capacity).tolist()):
        keys, values = gathered(cache, i, length, dtype)
        allowed = None if tree is None else tree[i if len(tree) > 1 else 0]
        lo, hi = intervals_of_tokens(tokens, length, window, allowed, q.device)
        query = q[i : i + 1].to(dtype)
        result = attention_forward(query, keys[None], values[None], lo[None], hi[None], sinks, softmax_scale, softcap)
        out[i], lse[i] = result[0][0].to(q.dtype), result[1][0]
    return out, lse


def intervals_of_tokens(
    tokens: int, length: int, window: tuple[int, int], tree: Tensor | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """lo, hi int32 `(layers, tokens)`: the keys of the last `tokens` of `length` positions.

    tree: None, or bool (tokens, tokens), which of them attend which of their own keys; earlier ones they attend all.
    """
    left, right = window
    position = length - tokens + torch.arange(tokens, device=device)
    low = (position - left if left >= 0 else torch.zeros_like(position)).clamp(0, length)
    high = (position + right + 1 if right >= 0 else torch.full_like(position, length)).clamp(0, length)
    if tree is None:
        lo, hi = low[None], high[None]
    else:
        runs = torch.stack(runs_of_rows(tree)) + (length - tokens)
        before = torch.stack([torch.zeros_like(position), torch.full_like(position, length - tokens)])[:, None]
        lo, hi = torch.cat([before, runs], 1).clamp(min=0)
        lo, hi = torch.maximum(lo, low), torch.minimum(hi, high)
        hi = torch.where(position < 0, lo, hi)
    return lo.int(), torch.maximum(lo, hi).int()


def gathered(cache: KVCache, sequence: int, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys and values `(length, heads_k, d)` of a sequence, dequantised."""
    own = slice(sequence, sequence + 1)
    if cache.table is not None:
        alone = replace(cache, lengths=cache.lengths[own], table=cache.table[own])
    elif cache.rows is not None:
        alone = replace(cache, lengths=cache.lengths[own], rows=cache.rows[own])
    else:
        alone = replace(cache, lengths=cache.lengths[own], rows=cache.lengths.new_full((1,), sequence))
    page, within, there = alone.places(torch.arange(length, device=cache.keys.device)[None])
    at = torch.where(there, page, 0)[0], within[0]
    found = []
    for x, scales in ((cache.keys, cache.key_scales), (cache.values, cache.value_scales)):
        eight = x.dtype in EIGHT_BITS
        rows_of = x.view(torch.uint8)[at].view(x.dtype) if eight else x[at]
        wide = rows_of.to(dtype)
        if scales is not None:
            scale = scales[at] if scales.ndim == 3 else scales[sequence] if scales.ndim == 2 else scales
            wide = wide * scale.to(dtype)[..., None]
        found.append(wide)
    return found[0], found[1]
