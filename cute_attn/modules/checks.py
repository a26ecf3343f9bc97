"""Checks of what AttentionOp is called with; what passed here is not checked again below. No value of a tensor is read:
what they must be is checked where a mask is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ..backend import resolve
from ..checks import DTYPES
from ..kinds import is_int
from ..mask.checks import check_integer_tensor, check_is_dense, check_number, shown
from ..reference import compute_dtype
from .quantize import KVQuant, KVTensor

__all__ = [
    "Cache",
    "check_cache_lengths",
    "check_caches",
    "check_floating",
    "check_heads",
    "check_indexer_mask",
    "check_is_tensor",
    "check_page_state",
    "check_previous",
    "check_qkv",
    "check_quantised",
    "check_sinks",
    "check_tokens",
    "plain",
]

Tensor = torch.Tensor


class Cache(NamedTuple):
    """Keys and values that were kept, and where: `(b, s, heads_k, d)`, plain or quantised."""

    name: str
    key: Tensor | KVTensor
    value: Tensor | KVTensor
    segment_ids: Tensor | None
    lengths: Tensor | int | None = None

    @property
    def names(self) -> tuple[str, str]:
        """Of its keys and of its values."""
        behind = f" of {self.name}" if self.name else ""
        return f"key{behind}", f"value{behind}"


def check_caches(cached_values: object) -> tuple[Cache | None, Cache | None]:
    """The two caches of `cached_values`: of the prompt, and of what was decoded since."""
    if cached_values is None:
        return None, None
    if not isinstance(cached_values, (list, tuple)) or len(cached_values) != 2:
        got = f"{len(cached_values)} of them" if isinstance(cached_values, (list, tuple)) else shown(cached_values)
        raise TypeError(f"cached_values must be None or a list of two caches, each None or a tuple, got {got}")
    caches = []
    for index, (cache, fields) in enumerate(
        zip(cached_values, ("(key, value, segment_ids)", "(key, value, segment_ids, lengths)"), strict=True)
    ):
        name = f"cached_values[{index}]"
        if cache is not None and (not isinstance(cache, (list, tuple)) or len(cache) != 3 + index):
            got = f"{len(cache)} entries" if isinstance(cache, (list, tuple)) else shown(cache)
            raise TypeError(f"{name} must be None or {fields}, got {got}")
        caches.append(None if cache is None else Cache(name, *cache))
    return caches[0], caches[1]


def plain(name: str, x: Tensor | KVTensor, query: Tensor, kv_quant: KVQuant | None) -> Tensor:
    """Keys or values as a tensor; quantised ones are multiplied out, where that costs nothing that was not to be."""
    if not isinstance(x, KVTensor):
        return x
    check_quantised(name, x, kv_quant)
    backend = resolve(query.device).partition(":")[0]
    if backend != "reference":
        count = x.qvalue.numel() * query.element_size()
        raise NotImplementedError(
            f"backend {backend!r} does not read a KVTensor, got one as {name}: this would need a copy of it of {count} "
            f"bytes in {query.dtype}, at every call. {name}.dequant(query.dtype) makes that copy; with "
            "cute_attn.backend('reference') it runs in plain PyTorch. In model_mode 'autoregressive' one cache of "
            "keys and values is read as it is, without segment ids, chunks, MoBA, indexer_mask and record_max_logits"
        )
    return x.dequant(query.dtype)


def check_is_tensor(name: str, x: object) -> None:
    if not isinstance(x, Tensor):
        allowed = "a torch.Tensor" if name == "query" else "a torch.Tensor or a KVTensor"
        raise TypeError(f"{name} must be {allowed}, got {shown(x)}")


def check_floating(name: str, x: Tensor) -> None:
    """A dense tensor `(batch, length, heads, head_dim)` of one of our dtypes."""
    check_is_tensor(name, x)
    check_is_dense(name, x)
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} must be bfloat16, float16, float32 or float64, got {x.dtype}")
    if x.ndim != 4:
        raise ValueError(f"{name} must have shape (batch, length, heads, head_dim), got {tuple(x.shape)}")


def check_qkv(query: Tensor, named: Sequence[tuple[str, Tensor]]) -> None:
    """query `(b, t, heads_q, d)`, and a key and a value with their names that fit it, `(b, s, heads_k, d or dv)`."""
    (key_name, key), (value_name, value) = named
    for name, x in (("query", query), *named):
        check_floating(name, x)
        if x.dtype != query.dtype:
            raise TypeError(f"{name} must have the dtype of query, {query.dtype}, got {x.dtype}")
        if x.device != query.device:
            raise ValueError(f"{name} must be on the device of query, {query.device}, got {x.device}")
        if x.shape[0] != query.shape[0]:
            raise ValueError(f"{name} must have the batch size of query, {query.shape[0]}, got {x.shape[0]}")
        if x.shape[3] < 1:
            raise ValueError(f"{name} must have head_dim >= 1, got shape {tuple(x.shape)}")
    if key.shape[1:3] != value.shape[1:3]:
        raise ValueError(
            f"{value_name} must have the length and heads of {key_name}, {tuple(key.shape[1:3])}, "
            f"got {tuple(value.shape[1:3])}"
        )
    if key.shape[3] != query.shape[3]:
        raise ValueError(f"{key_name} must have the head_dim of query, {query.shape[3]}, got {key.shape[3]}")


def check_heads(query: Tensor, key_name: str, key: Tensor, num_query_heads: int, num_kv_heads: int) -> None:
    for name, x, wanted in (("query", query, num_query_heads), (key_name, key, num_kv_heads)):
        if x.shape[2] != wanted:
            argument = "num_query_heads" if name == "query" else "num_kv_heads"
            raise ValueError(f"{name} must have {argument} = {wanted} heads, got {x.shape[2]}")


def check_tokens(name: str, x: object, batch: int, length: int, *, takes_bools: bool = False) -> None:
    """Integers for each key, `(batch, length)`."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be None or an integer tensor ({batch}, {length}), got {shown(x)}")
    check_integer_tensor(name, x, takes_bools=takes_bools)
    if tuple(x.shape) != (batch, length):
        raise ValueError(f"{name} must have shape ({batch}, {length}), one for each key, got {tuple(x.shape)}")


def check_quantised(name: str, x: KVTensor, kv_quant: KVQuant | None) -> None:
    if kv_quant is not None and x.qvalue.dtype != kv_quant.torch_dtype:
        raise TypeError(f"{name} must be quantised as kv_quant says, {kv_quant.torch_dtype}, got {x.qvalue.dtype}")


def check_cache_lengths(name: str, lengths: object, batch: int, length: int, device: torch.device) -> Tensor:
    """How many keys of a cache there are, `(batch,)`; an int for all."""
    if isinstance(lengths, np.integer):
        lengths = int(lengths)
    if is_int(lengths):
        if not 0 <= lengths <= length:
            raise ValueError(f"{name} must be in [0, {length}], as long as the cache is, got {lengths}")
        return torch.full((batch,), lengths, dtype=torch.int64, device=device)
    if not isinstance(lengths, Tensor):
        raise TypeError(f"{name} must be None, an int or an integer tensor ({batch},), got {shown(lengths)}")
    check_integer_tensor(name, lengths)
    if tuple(lengths.shape) != (batch,):
        raise ValueError(f"{name} must have shape ({batch},), got {tuple(lengths.shape)}")
    return lengths


def check_previous(previous_chunk: object, batch: int) -> int:
    """How many keys come before the first row."""
    if previous_chunk is None:
        return 0
    if isinstance(previous_chunk, Tensor):
        if previous_chunk.ndim < 2 or previous_chunk.shape[0] != batch:
            raise ValueError(
                f"previous_chunk must be an int or have shape ({batch}, p, ...), got {tuple(previous_chunk.shape)}"
            )
        return previous_chunk.shape[1]
    if isinstance(previous_chunk, torch.SymInt):
        return previous_chunk  # type: ignore[return-value]
    return check_number("previous_chunk", previous_chunk, 0)


def check_sinks(sinks: object, query: Tensor) -> Tensor | None:
    """`(1, 1, 1, heads_q)` in the dtype of the scores."""
    if sinks is None:
        return None
    heads = query.shape[2]
    if not isinstance(sinks, Tensor):
        raise TypeError(f"sinks must be None or a torch.Tensor ({heads},), got {shown(sinks)}")
    if sinks.dtype not in DTYPES:
        raise TypeError(f"sinks must be bfloat16, float16, float32 or float64, got {sinks.dtype}")
    if tuple(sinks.shape) != (heads,):
        raise ValueError(f"sinks must have shape ({heads},), one for each query head, got {tuple(sinks.shape)}")
    if sinks.device != query.device:
        raise ValueError(f"sinks must be on the device of query, {query.device}, got {sinks.device}")
    return sinks.to(compute_dtype(query.dtype)).view(1, 1, 1, heads)


def check_indexer_mask(indexer_mask: object, query: Tensor, keys: int) -> None:
    batch, rows = query.shape[:2]
    if not isinstance(indexer_mask, Tensor):
        raise TypeError(f"indexer_mask must be None or a tensor ({batch}, {rows}, {keys}), got {shown(indexer_mask)}")
    if indexer_mask.dtype not in (torch.bool, torch.int8, torch.int16, torch.int32, torch.int64, *DTYPES):
        raise TypeError(f"indexer_mask must hold bools, floating numbers or signed integers, got {indexer_mask.dtype}")
    if tuple(indexer_mask.shape) != (batch, rows, keys):
        raise ValueError(
            f"indexer_mask must have shape ({batch}, {rows}, {keys}), the queries and all keys, "
            f"got {tuple(indexer_mask.shape)}"
        )
    if indexer_mask.device != query.device:
        raise ValueError(f"indexer_mask must be on the device of query, {query.device}, got {indexer_mask.device}")


def check_page_state(page_state: Any, slot: object) -> None:
    if slot is not None:
        raise ValueError(f"slot is not supported: it must be None, got {slot!r}")
    if page_state is None:
        return
    for name in ("page_map", "sequence_lengths"):
        if not isinstance(x := getattr(page_state, name, None), Tensor):
            raise TypeError(
                f"page_state must be None or have page_map and sequence_lengths, two tensors, got {shown(page_state)}"
            )
        check_integer_tensor(f"{name} of page_state", x)
