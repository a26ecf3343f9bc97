"""Attention of a layer over caches that are read as they are, pools of pages and quantised ones:
`flash_attn_with_kvcache` with the arguments of the layer."""

from __future__ import annotations

import re
from typing import Any, NoReturn, Protocol

import torch

from ..backend import resolve
from ..mask.layer import Reach
from ..ops.kvcache import flash_attn_with_kvcache
from . import checks
from .attention_type import AUTOREGRESSIVE
from .quantize import KVQuant, KVTensor

__all__ = ["attend_cache", "attend_pages", "check_pages", "reads_cache"]

Tensor = torch.Tensor


class Layer(Protocol):
    """What of an AttentionOp is read here."""

    num_query_heads: int
    num_kv_heads: int
    reach: Reach
    moba: tuple[int, int] | None
    scale: float
    attn_logits_soft_cap: float
    kv_quant: KVQuant | None


def check_pages(
    op: Layer,
    model_mode: str,
    prompt: checks.Cache | None,
    decoded: checks.Cache | None,
    indexer_mask: object,
    record_max_logits: bool,
) -> checks.Cache:
    """The pools of a call with a page_state; raises for what does not go with it, saying what would do."""
    if model_mode != AUTOREGRESSIVE:
        raise ValueError(f"page_state must be None in model_mode {model_mode!r}, got pages of a cache")
    if prompt is None or prompt.segment_ids is not None or decoded is not None:
        raise ValueError("cached_values must be [(key, value, None), None] with page_state, pools of pages")
    missing = {
        "attention_type 'chunk'": op.reach.chunk,
        "moba_chunk_size": op.moba is not None,
        "indexer_mask": indexer_mask is not None,
        "record_max_logits": record_max_logits,
    }
    for name, is_asked in missing.items():
        if is_asked:
            raise NotImplementedError(
                f"{name} is not supported with page_state; gather the pages of each sequence, pool[page_map]"
                ".flatten(1, 2), and give that copy to apply_attention, with the lengths"
            )
    return prompt


def attend_pages(op: Layer, query: Tensor, pools: checks.Cache, page_state: Any, sinks: Tensor | None) -> Tensor:
    """The last rows of each sequence over its pages, `(b, t, heads, dv)`; without gradient."""
    out, _ = attend_cache(op, query, pools, page_state.sequence_lengths, sinks, page_state.page_map)
    return out


def reads_cache(op: Layer, query: Tensor, cache: checks.Cache, indexer_mask: object, record_max_logits: bool) -> bool:
    """Whether `attend_cache` serves the last rows over keys without pages: quantised ones, where the backend multiplies
    nothing out."""
    quantised = isinstance(cache.key, KVTensor) and isinstance(cache.value, KVTensor)
    chosen = op.moba is not None or indexer_mask is not None or record_max_logits
    if not quantised or chosen or op.reach.chunk or cache.segment_ids is not None:
        return False
    checks.check_is_tensor("query", query)
    return resolve(query.device).partition(":")[0] != "reference"


def attend_cache(
    op: Layer,
    query: Tensor,
    cache: checks.Cache,
    lengths: Tensor | None,
    sinks: Tensor | None,
    page_map: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The last rows of each sequence, `(b, t, heads, dv)`, and their lse `(b, heads, t)`; without gradient.

    lengths: None for all of a cache without pages.
    """
    checks.check_floating("query", query)
    checks.check_sinks(sinks, query)
    key_name, value_name = cache.names
    (key, key_scale), (value, value_scale) = (
        _read(name, x, query, op) for name, x in ((key_name, cache.key), (value_name, cache.value))
    )
    checks.check_heads(query, key_name, key, op.num_query_heads, op.num_kv_heads)
    try:
        return flash_attn_with_kvcache(
            query,
            key,
            value,
            cache_seqlens=None if lengths is None else _int32(lengths),
            page_table=None if page_map is None else _int32(page_map),
            k_descale=key_scale,
            v_descale=value_scale,
            softmax_scale=op.scale,
            causal=op.reach.right == 0,
            window_size=(op.reach.left, op.reach.right),
            softcap=op.attn_logits_soft_cap,
            sink=sinks,
            return_softmax_lse=True,
        )  # type: ignore[return-value]
    except (TypeError, ValueError, NotImplementedError) as error:
        _raise_in_names_of_the_layer(error, key_name, value_name, "lengths" if page_map is None else None)


def _raise_in_names_of_the_layer(error: Exception, key: str, value: str, lengths: str | None) -> NoReturn:
    names = {
        "q": "query",
        "k_cache": key,
        "v_cache": value,
        "k_descale": f"scale of {key}",
        "v_descale": f"scale of {value}",
        "page_table": "page_map of page_state",
        "cache_seqlens": lengths or "sequence_lengths of page_state",
        "sink": "sinks",
    }
    raise type(error)(re.sub(rf"\b({'|'.join(names)})\b", lambda name: names[name[0]], str(error))) from None


def _int32(x: Tensor) -> Tensor:
    """Integers as int32; one that does not fit is no length and no page afterwards either."""
    return x if x.dtype == torch.int32 else x.long().clamp(-1, 2**31 - 1).int()


def _read(name: str, x: Tensor | KVTensor, query: Tensor, op: Layer) -> tuple[Tensor, Tensor | None]:
    """What a cache holds and, of a quantised one, the scales of tokens and heads."""
    if not isinstance(x, KVTensor):
        checks.check_is_tensor(name, x)
        if x.dtype != query.dtype:
            raise TypeError(f"{name} must have the dtype of query, {query.dtype}, or be a KVTensor, got {x.dtype}")
        checks.check_floating(name, x)
        return x, None
    checks.check_quantised(name, x, op.kv_quant)
    scale = x.scale[..., 0].expand(x.shape[:3])
    return x.qvalue, scale if scale.dtype == torch.float64 else scale.float()
