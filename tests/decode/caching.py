"""Caches to test with: sequences of many lengths, contiguous or in shuffled pages, rubbish everywhere else."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from oracle import plain_attention

Tensor = torch.Tensor
RUBBISH = {torch.int8: 127.0}  # NaN elsewhere
LENGTHS = (0, 1, 63, 64, 65, 1000)


@dataclass(frozen=True)
class Call:
    """Arguments of flash_attn_with_kvcache, and what they mean.

    keys, values: of each sequence `(length, heads_k, d)`, as the cache holds them, dequantised to fp64.
    """

    q: Tensor
    cache: dict[str, Any]
    keys: list[Tensor]
    values: list[Tensor]

    def with_q(self, q: Tensor) -> "Call":
        return replace(self, q=q)


def make(
    lengths: tuple[int, ...] = LENGTHS,
    tokens: int = 1,
    heads: tuple[int, int] = (4, 2),
    dims: tuple[int, int] = (64, 64),
    page_size: int | None = None,
    dtype: torch.dtype = torch.float64,
    cached: torch.dtype | None = None,
    scales: str = "none",
    spare: int = 0,
    heads_first: bool = False,
    growing: bool = False,
) -> Call:
    """page_size: None for a contiguous cache whose rows are shuffled. cached: of the cache, None for dtype. scales: of
    8 bits, "none", "scalar", "heads" or "tokens". spare: positions beyond the longest length. heads_first: in memory.
    growing: whether scores grow from key to key.
    """
    cached = cached or dtype
    heads_k, batch = heads[1], len(lengths)
    most = max(lengths) + spare
    dense = [[torch.randn(n, heads_k, d, dtype=torch.float64) for n in lengths] for d in dims]
    if growing:
        dense[0] = [x * torch.linspace(0.5, 2, len(x))[:, None, None] for x in dense[0]]
    shape, pages = _places(lengths, most, page_size)
    pools, held, descales = [], [], []
    for of_sequences, d in zip(dense, dims, strict=True):
        order = (shape[0], heads_k, shape[1], d) if heads_first else (*shape, heads_k, d)
        pool = torch.full(order, RUBBISH.get(cached, torch.nan)).to(cached)
        pool = pool.transpose(1, 2) if heads_first else pool
        scale = _scales(scales, cached, batch, heads_k, shape)
        own = []
        for i, x in enumerate(of_sequences):
            at = _positions(pages[i], len(x), page_size)
            factor = _factor(scale, scales, x, cached, i, at)
            stored = _stored(x / factor, cached)
            bits = torch.uint8 if cached.itemsize == 1 else cached
            pool.view(bits)[at] = stored.view(bits)
            own.append(stored.to(torch.float32).double() * factor if cached.itemsize < 4 else stored.double() * factor)
        pools.append(pool)
        held.append(own)
        descales.append(scale)
    cache: dict[str, Any] = {"k_cache": pools[0], "v_cache": pools[1]}
    cache["cache_seqlens"] = torch.tensor(lengths, dtype=torch.int32)
    if page_size is None:
        cache["cache_batch_idx"] = torch.tensor(pages, dtype=torch.int32).view(-1)
    else:
        cache["page_table"] = torch.tensor(pages, dtype=torch.int32).view(batch, -1)
    if scales != "none":
        cache |= {"k_descale": descales[0], "v_descale": descales[1]}
    q = torch.randn(batch, tokens, heads[0], dims[0], dtype=torch.float64).to(dtype)
    return Call(q, cache, *held)


def _places(lengths, most, page_size):
    """(pages, page_size) of the cache, and of each sequence its row or the pages of its table."""
    if page_size is None:
        rows = len(lengths) + 2
        return (rows, most), torch.randperm(rows)[: len(lengths)].tolist()
    columns = -(-most // page_size) + 1
    counts = [-(-n // page_size) for n in lengths]
    pool = sum(counts) + 3 + len(lengths) * (columns if most > max(lengths) else 0)
    order = torch.randperm(pool).tolist()
    spare = most > max(lengths)
    return (pool, page_size), [
        [order.pop() for _ in range(columns if spare else c)] + [-1] * (0 if spare else columns - c) for c in counts
    ]


def _positions(place, length, page_size):
    steps = torch.arange(length)
    if page_size is None:
        return torch.full_like(steps, place), steps
    return torch.tensor(place)[steps // page_size], steps % page_size


def _scales(kind, cached, batch, heads_k, shape):
    unit = 1 / 32 if cached == torch.int8 else 1 / 4
    if kind == "scalar":
        return torch.tensor(unit)
    if kind == "heads":
        return unit * (1 + torch.rand(batch, heads_k))
    if kind == "tokens":
        return torch.full((*shape, heads_k), torch.nan)
    return None


def _factor(scale, kind, x, cached, sequence, at):
    """What x is divided by, broadcastable; scales of tokens are written where they belong."""
    if kind == "scalar":
        return scale.double()
    if kind == "heads":
        return scale[sequence, :, None].double()
    if kind == "tokens":
        largest = {torch.int8: 127, torch.float8_e4m3fn: 448, torch.float8_e5m2: 57344}[cached]
        own = (x.abs().amax(2) / largest).float()
        scale[at] = own
        return own[..., None].double()
    return torch.ones((), dtype=torch.float64)


def _stored(x, cached):
    return x.round().clamp(-128, 127).to(cached) if cached == torch.int8 else x.to(cached)


# ---------------------------------------------------------------- what it must lead to


def seen(tokens, length, causal=False, window=(-1, -1), tree=None):
    """bool (tokens, length): pair by pair, as the words of the documentation have it."""
    left, right = (window[0], 0) if causal else window
    pairs = torch.zeros(tokens, length, dtype=torch.bool)
    for i in range(tokens):
        position = length - tokens + i
        for j in range(length):
            inside = (left < 0 or j >= position - left) and (right < 0 or j <= position + right)
            if tree is not None:
                column = j - (length - tokens)
                inside = inside and position >= 0 and (column < 0 or bool(tree[i, column]))
            pairs[i, j] = inside
    return pairs


def plainly(call: Call, dtype=torch.float64, sink=None, softmax_scale=None, softcap=0.0, tree=None, **mask):
    """out (b, t, heads_q, dv) and lse (b, heads_q, t) of plain PyTorch in a dtype, sequence by sequence."""
    scale = call.q.shape[3] ** -0.5 if softmax_scale is None else softmax_scale
    sinks = None if sink is None else sink.view(1, 1, -1, call.q.shape[2]).to(dtype)
    outs, logs = [], []
    for i, (keys, values) in enumerate(zip(call.keys, call.values, strict=True)):
        own = None if tree is None else tree[i] if tree.ndim == 3 else tree
        pairs = seen(call.q.shape[1], len(keys), tree=own, **mask)
        x = call.q[i : i + 1].to(dtype), keys[None].to(dtype), values[None].to(dtype)
        out, lse, _ = plain_attention(*x, pairs[None], sinks, scale, softcap)
        outs.append(out[0])
        logs.append(lse[0])
    return torch.stack(outs), torch.stack(logs)
