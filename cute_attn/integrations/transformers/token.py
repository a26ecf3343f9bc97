"""One new token a sequence over a cache of transformers', whose heads come before its tokens."""

from __future__ import annotations

from typing import Any

import torch

from ...ops.kvcache import flash_attn_with_kvcache
from .layer_mask import TokenKeys

__all__ = ["attend_keys"]

Tensor = torch.Tensor


def attend_keys(
    q: Tensor, key: Tensor, value: Tensor, keys: TokenKeys, scale: float, softcap: float, sinks: Tensor | None
) -> Any:
    """Attention over the keys that the tokens see, without a copy of the cache.

    q: `(batch, 1, heads_q, head_dim)`; key, value: `(batch, heads_k, keys, head_dim)`. Returns out like q. Raises
    ValueError for a mask of other sizes.
    """
    if keys.sees.shape != (wanted := (key.shape[0], key.shape[2])) or q.shape[1] != 1:
        got = tuple(keys.sees.shape)
        raise ValueError(
            f"attention_mask must be of {wanted[0]} sequences, {q.shape[1]} queries and {wanted[1]} keys, got one of "
            f"{got[0]}, 1 and {got[1]}"
        )
    options: dict[str, Any] = {"softmax_scale": scale, "softcap": softcap, "sink": sinks, "cache_seqlens": keys.lengths}
    if keys.order is None:
        return flash_attn_with_kvcache(q, key.transpose(1, 2), value.transpose(1, 2), **options)
    (key_pool, per_sequence), (value_pool, other) = _pool(key), _pool(value)
    if per_sequence != other:
        (key_pool, per_sequence), (value_pool, _) = (_pool(x.contiguous()) for x in (key, value))
    first = torch.arange(key.shape[0], dtype=torch.int32, device=key.device)[:, None] * per_sequence
    return flash_attn_with_kvcache(q, key_pool, value_pool, page_table=keys.order + first, **options)


def _pool(x: Tensor) -> tuple[Tensor, int]:
    """A cache as pages of one token, and how many of them lie between one sequence and the next. Pages overlap: where a
    token's heads are not together, each page holds every head at its own distance."""
    batch, heads, tokens, dim = x.shape
    if batch > 1 and x.stride(0) % x.stride(2):
        x = x.contiguous()
    per_sequence = x.stride(0) // x.stride(2) if batch > 1 else tokens
    pages = (batch - 1) * per_sequence + tokens
    return x.as_strided((pages, 1, heads, dim), (x.stride(2), x.stride(2), x.stride(1), x.stride(3))), per_sequence
