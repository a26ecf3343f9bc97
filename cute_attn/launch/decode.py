"""From checked tensors and a cache to one launch of the decode kernel."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any

import torch

from cute_attn.caches import KVCache
from cute_attn.decode.config import ctas_per_multiprocessor, default_tile, most_rows
from cute_attn.spec.decode import GATHER, PIECES, DecodeSpec, DecodeTile
from cute_attn.spec.score import ScoreForm

from .dims import kernel_dims
from .run import KernelBackend, Order, run
from .shapes import PLAIN, PlanForm, score_of_call, spec_of_call
from .tensors import DTYPE_NAMES, free_multiprocessors, in_kernel_form

__all__ = [
    "CACHE_NAMES",
    "MOST_TOKENS",
    "choose_splits",
    "decode",
    "decode_spec",
    "in_pool_form",
    "limited",
    "pages_of",
    "results",
    "why_not_served",
]

MOST_TOKENS = 64  # new tokens a sequence that one kernel is made for: more are a prefill, and no tree
MOST_SEQUENCES = 65535  # of a grid's third dimension
CACHE_NAMES = {torch.int8: "int8", torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2"}
LEAST_TILES = 4  # of keys, that a part of a sequence is worth having

Tensor = torch.Tensor


def decode(
    q: Tensor,
    cache: KVCache,
    sink: Tensor | None,
    tree: Tensor | None,
    *,
    softmax_scale: float,
    softcap: float,
    window: tuple[int, int],
    num_splits: int,
    sm_margin: int,
    backend: KernelBackend = "sm90",
    order: Order | None = None,
) -> tuple[Tensor, Tensor]:
    """See `cute_attn.backends.interface.Backend.decode`; `why_not_served` has nothing against these tensors.

    Nothing of the device is read, so that a CUDA graph replays this with other lengths and pages.
    """
    batch, tokens, heads_q, _ = q.shape
    sink_lse = None if sink is None else sink.float().logsumexp(0)
    out, lse, is_empty = results(q, cache, sink_lse)
    if is_empty:
        return out, lse
    heads_k, page_size = cache.keys.shape[2], cache.keys.shape[1]
    eight = cache.keys.dtype in CACHE_NAMES
    scales, of_tokens = _scales(cache, batch) if eight else ((None, None), False)
    keys, values = (in_pool_form(x.view(torch.uint8) if eight else x) for x in (cache.keys, cache.values))
    spec = decode_spec(
        DTYPE_NAMES[q.dtype],
        (q.shape[3], cache.values.shape[3]),
        tokens * (heads_q // heads_k),
        page_size if cache.table is not None else None,
        score=score_of_call(softmax_scale, softcap),
        tree=tree is not None,
        sink=sink is not None,
        cache=CACHE_NAMES.get(cache.keys.dtype, "same"),
        token_scales=of_tokens,
    )
    blocks = -(-tokens * (heads_q // heads_k) // spec.tile.rows)
    slots = free_multiprocessors(q.device, sm_margin) * ctas_per_multiprocessor(spec)
    splits = num_splits or choose_splits(batch * heads_k * blocks, cache.capacity, slots, spec.tile.n)
    parts = logs = None
    if splits > 1:
        spec = _with_split(spec)
        parts = q.new_empty(splits, batch, tokens, heads_q, out.shape[3], dtype=torch.float32)
        logs = q.new_empty(splits, batch, heads_q, tokens, dtype=torch.float32)
    words = None if tree is None else _words(tree)
    tensors = (
        *(in_kernel_form("q", q), keys, values, pages_of(cache), cache.lengths, out, lse),
        *(sink_lse, words, *scales, parts, logs),
    )
    scalars = (*spec.score.factors(softmax_scale, softcap), *limited(window, tokens))
    run(spec, (tensors, scalars), backend, (out, lse, parts, logs), order)
    return out, lse


def decode_spec(
    dtype: str,
    head_dims: tuple[int, int],
    rows: int,
    page_size: int | None,
    score: ScoreForm = PLAIN,
    **variant: Any,
) -> DecodeSpec:
    """The spec of a call, not split. rows: tokens times heads of a group. page_size: None for a contiguous cache."""
    dims = kernel_dims("decode", *head_dims)
    held = next(n for n in (8, 16, 32, 64) if n >= min(rows, most_rows(dims[1])))
    tile = DecodeTile(held, default_tile(*dims).stages)
    piece = tile.n if page_size is None else next((p for p in sorted(PIECES)[:0:-1] if page_size % p == 0), GATHER)
    spec: DecodeSpec = spec_of_call("decode", PlanForm(tile), dtype, head_dims, score, piece=piece, **variant)
    return spec


def choose_splits(ctas: int, capacity: int, slots: int, keys: int) -> int:
    """Parts of a sequence's keys so that the CTAs fill their slots once, each with a few tiles; from shapes alone."""
    return max(1, min(slots // max(1, ctas), capacity // (LEAST_TILES * keys)))


def why_not_served(q: Tensor, cache: KVCache, tree: Tensor | None) -> str | None:
    """What of a call no kernel serves, if anything. Raises ValueError for a cache whose strides do not fit."""
    if q.dtype not in DTYPE_NAMES:
        return f"kernels for bfloat16 and float16, got {q.dtype}"
    eight = cache.keys.dtype in CACHE_NAMES
    if eight and {_ndim(cache.key_scales), _ndim(cache.value_scales)} == {2, 3}:
        return "no kernel for scales of each head together with scales of each token"
    given = [x for x in (cache.key_scales, cache.value_scales) if x is not None]
    if any(x.ndim == 3 and x.dtype != torch.float32 for x in given):
        return "kernels for scales of each token in float32, got float64"
    for name, dim in (("head_dim", q.shape[3]), ("head_dim of v", cache.values.shape[3])):
        if dim % 8 or not 8 <= dim <= 256:
            return f"kernels for a {name} that is a multiple of 8 up to 256, got {dim}"
        if eight and dim % 16:
            return f"kernels for a {name} of 8-bit caches that is a multiple of 16, got {dim}"
    if tree is not None and q.shape[1] > MOST_TOKENS:
        return f"kernels for a mask of up to {MOST_TOKENS} new tokens, got {q.shape[1]}"
    if q.shape[0] > MOST_SEQUENCES:
        return f"decode kernels for up to {MOST_SEQUENCES} sequences, got {q.shape[0]}"
    for name, x in (("k_cache", cache.keys), ("v_cache", cache.values)):
        _check_strides(name, x)
    return None


def results(q: Tensor, cache: KVCache, sink_lse: Tensor | None) -> tuple[Tensor, Tensor, bool]:
    """out and lse to be written, and whether no sequence can have a key: then they are written.

    sink_lse: (heads_q,), logsumexp of the sinks; None without.
    """
    batch, tokens, heads_q, _ = q.shape
    out = q.new_empty(batch, tokens, heads_q, cache.values.shape[3])
    lse = q.new_empty(batch, heads_q, tokens, dtype=torch.float32)
    is_empty = out.numel() == 0 or cache.keys.numel() == 0 or cache.capacity == 0
    if is_empty:
        lse.copy_(sink_lse[:, None].expand_as(lse)) if sink_lse is not None else lse.fill_(-math.inf)
        out.zero_()
    return out, lse, is_empty


def in_pool_form(x: Tensor) -> Tensor:
    """The same memory; strides of dimensions of size 1 never matter, and become what TMA takes."""
    unit = 16 // x.itemsize
    strides = [unit if size == 1 else stride for size, stride in zip(x.shape[:3], x.stride()[:3], strict=True)]
    return x.as_strided(x.shape, (*strides, 1))


def _check_strides(name: str, x: Tensor) -> None:
    """Caches are never copied: one that TMA cannot read is refused."""
    unit = 16 // x.itemsize
    wrong = [stride for size, stride in zip(x.shape[:3], x.stride()[:3], strict=True) if size > 1 and stride % unit]
    if x.numel() and (x.stride(3) != 1 or wrong):
        raise ValueError(
            f"{name} must have the last stride 1 and others that are multiples of {unit} elements (16 bytes): a cache "
            f"is never copied; got strides {x.stride()}"
        )
    if x.data_ptr() % 16:
        raise ValueError(f"{name} must begin at a multiple of 16 bytes: a cache is never copied; got {x.data_ptr():#x}")


def _ndim(scales: Tensor | None) -> int:
    return 0 if scales is None else scales.ndim


def _scales(cache: KVCache, batch: int) -> tuple[tuple[Tensor, Tensor], bool]:
    """The scales of keys and of values as fp32 (batch, heads_k), or both of tokens, and whether they are of tokens."""
    of_tokens = 3 in (_ndim(cache.key_scales), _ndim(cache.value_scales))
    shape = cache.keys.shape[:3] if of_tokens else (batch, cache.keys.shape[2])
    found = []
    for scales in (cache.key_scales, cache.value_scales):
        whole = torch.ones((), device=cache.keys.device) if scales is None else scales.float()
        found.append(whole.expand(shape))
    return (found[0], found[1]), of_tokens


def limited(window: tuple[int, int], tokens: int) -> tuple[int, int]:
    """A window whose ends no sum overflows by: to the left as far as positions go, to the right as far as tokens do."""
    left, right = window
    leftmost = 2**31 - 1 - tokens  # a position less this is no less than int32 holds
    return leftmost if left < 0 else min(left, leftmost), tokens if right < 0 else min(right, tokens)


def pages_of(cache: KVCache) -> Tensor:
    """The table of pages; that of a contiguous cache has one page a sequence."""
    if cache.table is not None:
        return cache.table
    if cache.rows is not None:
        return cache.rows[:, None]
    return torch.arange(len(cache.lengths), dtype=torch.int32, device=cache.lengths.device)[:, None]


def _words(tree: Tensor) -> Tensor:
    """bool (planes, t, t) as int32 (planes, t, 2): bit j of a token's 64 stands for new token j."""
    bits = torch.nn.functional.pad(tree, (0, 64 - tree.shape[2])).unflatten(2, (2, 32)).long()
    return (bits << torch.arange(32, device=tree.device)).sum(3).to(torch.int32)


@functools.cache
def _with_split(spec: DecodeSpec) -> DecodeSpec:
    return replace(spec, split=True)
