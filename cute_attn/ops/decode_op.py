"""Attention over a cache as custom ops: one that writes new keys and values into it, one that attends.

The first changes its arguments, and says so: torch.compile and functionalisation see it. Neither has a gradient.
"""

from __future__ import annotations

from typing import Any

import torch

from ..backend import resolve
from ..backends.find import find
from ..caches import KVCache, append
from ..custom_ops import register
from ..reference import compute_dtype
from ..renamed import OPS

__all__ = ["attend_cache", "check_cache_served"]

Tensor = torch.Tensor


def check_cache_served(q: Tensor, cache: KVCache, tree: Tensor | None) -> None:
    """Raises NotImplementedError or ValueError where the backend of q's device cannot serve such a call."""
    if not torch.compiler.is_compiling():
        find(resolve(q.device)).check_decode_served(q, cache, tree)


def attend_cache(
    q: Tensor,
    cache: KVCache,
    k: Tensor | None,
    v: Tensor | None,
    sink: Tensor | None,
    tree: Tensor | None,
    softmax_scale: float,
    softcap: float,
    window: tuple[int, int],
    num_splits: int,
    sm_margin: int,
) -> tuple[Tensor, Tensor]:
    """Appends k and v, if given, to a checked cache, then attends to all of it; out and lse as in `Backend.decode`."""
    lengths = cache.lengths
    tensors = (cache.rows, cache.table, cache.key_scales, cache.value_scales)
    if k is not None and v is not None:
        written = [s if s is not None and s.ndim == 3 else None for s in (cache.key_scales, cache.value_scales)]
        given = [None if s is not None and s.ndim == 3 else s for s in (cache.key_scales, cache.value_scales)]
        OPS.append_kv(cache.keys, cache.values, *written, k, v, lengths, cache.rows, cache.table, *given)
        lengths = lengths + k.shape[1]
    scalars = (softmax_scale, softcap, *window, num_splits, sm_margin, resolve(q.device))
    return OPS.decode(q, cache.keys, cache.values, lengths, *tensors, sink, tree, *scalars)


def _append(
    keys: Tensor,
    values: Tensor,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    rows: Tensor | None,
    table: Tensor | None,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
) -> None:
    scales = [
        own if own is not None else given for own, given in ((key_scales, key_scale), (value_scales, value_scale))
    ]
    append(k, v, KVCache(keys, values, lengths, rows, table, *scales))


def _fake_append(*arguments: Any) -> None:
    return None


def _decode(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    rows: Tensor | None,
    table: Tensor | None,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
    sink: Tensor | None,
    tree: Tensor | None,
    softmax_scale: float,
    softcap: float,
    left: int,
    right: int,
    num_splits: int,
    sm_margin: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return find(backend).decode(
        q,
        KVCache(keys, values, lengths, rows, table, key_scales, value_scales),
        sink,
        tree,
        softmax_scale=softmax_scale,
        softcap=softcap,
        window=(left, right),
        num_splits=num_splits,
        sm_margin=sm_margin,
    )


def _fake_decode(q: Tensor, keys: Tensor, values: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, _ = q.shape
    out = q.new_empty(batch, tokens, heads, values.shape[3])
    return out, q.new_empty(batch, heads, tokens, dtype=compute_dtype(q.dtype))


_PLACES = "Tensor lengths, Tensor? rows, Tensor? table"
_SCHEMAS = {
    "append_kv": "(Tensor(a!) keys, Tensor(b!) values, Tensor(c!)? key_scales, Tensor(d!)? value_scales, Tensor k, "
    f"Tensor v, {_PLACES}, Tensor? key_scale, Tensor? value_scale) -> ()",
    "decode": f"(Tensor q, Tensor keys, Tensor values, {_PLACES}, Tensor? key_scales, Tensor? value_scales, "
    "Tensor? sink, Tensor? tree, float softmax_scale, float softcap, SymInt left, SymInt right, SymInt num_splits, "
    "SymInt sm_margin, str backend) -> (Tensor, Tensor)",
}
register("append_kv", _SCHEMAS["append_kv"], _append, _fake_append)
register("decode", _SCHEMAS["decode"], _decode, _fake_decode)
