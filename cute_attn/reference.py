"""Exact attention under interval masks in plain PyTorch: the backend of CPU tensors and the oracle of the kernels.

Forward and backward walk blocks of query rows, the heads that share a key head at a time, and meet only the keys
between the first and the last that a block attends: memory O(rows of a block * seqlen_k), whatever the mask.

    s = softmax_scale * q k^T,  s = c tanh(s / c) if softcap c > 0,  p = exp(s - lse) where the mask allows, else 0
    lse = log(sum exp s + sum exp sink),  out = p v
    delta = rowsum(dout * out) - dlse,  ds = p * (dout v^T - delta),  dsink = -exp(sink - lse) * delta

Functions of a score and its place come between cap and mask, `s = score(s)`, and thin the mask: see `Mods`.

Pairs that the mask leaves out count for nothing, though 0 * NaN and 0 * inf are NaN: numbers that are not finite reach
what attends them, and what that attends in the backward, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from .autocast import without_autocast

__all__ = [
    "Block",
    "Gradients",
    "Mods",
    "attention_backward",
    "attention_forward",
    "compute_dtype",
    "sink_gradient",
]

BLOCK_ROWS = 128


class Gradients(NamedTuple):
    """Gradients of the inputs, in their dtypes and shapes; None where none was asked for."""

    q: torch.Tensor | None
    k: torch.Tensor | None
    v: torch.Tensor | None
    sink: torch.Tensor | None


class Block(NamedTuple):
    """Some query rows of one batch element, and the keys from the first to the last that any of them attends.

    heads: those whose rows these are: key heads, and of each the query heads.
    """

    batch: int
    heads: list[tuple[int, slice]]
    rows: slice
    keys: slice
    hidden: torch.Tensor  # bool (rows, 1, keys): which of them each row does not attend


class Mods(Protocol):
    """What functions say of some query heads of a block, whose scores are `(rows, heads, keys)`. hidden: bool, of a
    shape that broadcasts with them, the pairs that are not attended."""

    def hidden(self, block: Block, heads: slice) -> torch.Tensor:
        """block.hidden, and what else is not attended: `(rows, 1 or heads, keys)`."""

    def scores(self, scores: torch.Tensor, block: Block, heads: slice, hidden: torch.Tensor) -> torch.Tensor:
        """The new scores, in memory of their own."""

    def slopes(
        self, scores: torch.Tensor, block: Block, heads: slice, hidden: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """The new scores; their derivative by the scores, of a shape that broadcasts with them; and for `gather` what
        else they depend on."""

    def gather(self, flow: Any, dscores: torch.Tensor) -> None:
        """Takes the gradient of the new scores, 0 where hidden."""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of scores, softmax, accumulation and LSE for inputs of `dtype`: fp64 for fp64, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@without_autocast
def attention_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lo: torch.Tensor,
    hi: torch.Tensor,
    sink: torch.Tensor | None,
    softmax_scale: float,
    softcap: float,
    *,
    mask_heads: int = 1,
    mods: Mods | None = None,
    by_row: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention of checked inputs of one device.

    Args:
        q: `(b, sq, heads_q, d)`; k: `(b, sk, heads_k, d)`; v: `(b, sk, heads_k, dv)`; one floating dtype, any strides.
        lo, hi: int32 `((b or 1) * mask_heads, layers, sq)`, the keys of each row (see IntervalMask).
        sink: None or `(b or 1, sq or 1, n, heads_q)`: n more logits a row whose value is zero.
        softmax_scale: any finite number. softcap: 0 for off. mask_heads: of the mask, 1 or heads_q.

    Returns out `(b, sq, heads_q, dv)` in q's dtype, lse `(b, heads_q, sq)` with the sinks in it and max_logits
    `(b, heads_q)` without them, or `(b, heads_q, sq)` by row, both in the compute dtype. A row without keys has out 0,
    and lse -inf if it has no sink.
    """
    dtype = compute_dtype(q.dtype)
    batch, rows, heads, _ = q.shape
    out = q.new_zeros(batch, rows, heads, v.shape[3], dtype=dtype)
    lse = q.new_full((batch, heads, rows), -torch.inf, dtype=dtype)
    max_logits = torch.full_like(lse, -torch.inf)
    keys, values = k.to(dtype), v.to(dtype)
    for block in _blocks(lo, hi, mask_heads, batch, heads, k.shape[2]):
        for head, queries in block.heads:
            at = block.rows, queries
            scores, _ = _scores(q[block.batch][at], keys[block.batch, block.keys, head], softmax_scale, softcap)
            hidden = block.hidden
            if mods is not None:
                hidden = mods.hidden(block, queries)
                scores = mods.scores(scores, block, queries, hidden)
            scores.masked_fill_(hidden, -torch.inf)
            largest = scores.amax(2)
            max_logits[block.batch, at[1], at[0]] = largest.T
            largest.masked_fill_(largest == -torch.inf, 0.0)
            weights = scores.sub_(largest[..., None]).exp_()
            total = weights.sum(2)
            mean = _product(weights.flatten(0, 1), values[block.batch, block.keys, head], hidden.flatten(0, 1))
            mean = mean.unflatten(0, total.shape)
            out[block.batch][at] = mean / total.masked_fill(total == 0, 1.0)[..., None]
            lse[block.batch, at[1], at[0]] = (largest + total.log()).T
    if sink is not None:
        out, lse = _join_sink(out, lse, sink)
    if not by_row:
        max_logits = max_logits.amax(2) if rows else lse.new_full((batch, heads), -torch.inf)
    return out.to(q.dtype), lse, max_logits


@without_autocast
def attention_backward(
    dout: torch.Tensor | None,
    dlse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    lo: torch.Tensor,
    hi: torch.Tensor,
    sink: torch.Tensor | None,
    softmax_scale: float,
    softcap: float,
    needs: Sequence[bool] = (True, True, True, True),
    *,
    mask_heads: int = 1,
    mods: Mods | None = None,
) -> Gradients:
    """Gradients of `attention_forward`, whose inputs and results these are.

    Args:
        dout: gradient of out, or None for zero. dlse: gradient of lse, or None for zero.
        needs: which of q, k, v and sink need a gradient; nothing is computed for the others.
        mods: gathers what else needs one.

    Rows without keys give q, k and v nothing, whatever q, out, dout and dlse hold there. Their dlse belongs to their
    sinks; rows whose lse is -inf ignore it.
    """
    dtype = compute_dtype(q.dtype)
    if dout is None:
        dout = torch.zeros_like(out)
    delta = (dout.to(dtype) * out.to(dtype)).sum(3).transpose(1, 2)  # (b, heads_q, sq)
    delta = delta.masked_fill((lo >= hi).all(1).unflatten(0, (-1, mask_heads)), 0.0)
    if dlse is not None:
        delta = delta - dlse.masked_fill(lse == -torch.inf, 0.0)
    dsink = sink_gradient(sink, lse, delta) if needs[3] and sink is not None else None
    needs_q, needs_k, needs_v = needs[:3]
    dq, dk, dv = (
        torch.zeros(x.shape, dtype=dtype, device=x.device) if need else None
        for x, need in zip((q, k, v), needs, strict=False)
    )
    if not (needs_q or needs_k or needs_v) and mods is None:
        return Gradients(None, None, None, dsink)
    keys, values = k.to(dtype), v.to(dtype)
    finite_lse = lse.masked_fill(lse == -torch.inf, 0.0)
    for block in _blocks(lo, hi, mask_heads, q.shape[0], q.shape[2], k.shape[2]):
        for head, queries in block.heads:
            at = block.rows, queries
            key, value = (x[block.batch, block.keys, head] for x in (keys, values))
            query, grad = (x[block.batch][at].to(dtype) for x in (q, dout))
            scores, tanh = _scores(query, key, softmax_scale, softcap)
            hidden = block.hidden
            if mods is not None:
                hidden = mods.hidden(block, queries)
                scores, slope, flow = mods.slopes(scores, block, queries, hidden)
            scores.masked_fill_(hidden, -torch.inf)
            weights = scores.sub_(finite_lse[block.batch, at[1], at[0]].T[..., None]).exp_()
            weights.masked_fill_(hidden, 0.0)  # NaN in rows whose lse is
            unseen = hidden.flatten(0, 1)
            if dv is not None:
                dv[block.batch, block.keys, head] += _product(weights.flatten(0, 1).T, grad.flatten(0, 1), unseen.T)
            if dq is None and dk is None and mods is None:
                continue
            dscores = (grad.flatten(0, 1) @ value.T).view_as(weights)
            dscores.sub_(delta[block.batch, at[1], at[0]].T[..., None]).mul_(weights)
            if mods is not None:
                mods.gather(flow, dscores.masked_fill_(hidden, 0.0))
                dscores.mul_(slope)
            if tanh is not None:
                dscores.mul_(1.0 - tanh.square_())
            dscores = dscores.mul_(softmax_scale).masked_fill_(hidden, 0.0).flatten(0, 1)
            if dq is not None:
                dq[block.batch][at] = _product(dscores, key, unseen).view_as(query)
            if dk is not None:
                dk[block.batch, block.keys, head] += _product(dscores.T, query.flatten(0, 1), unseen.T)
    dq, dk, dv = (g if g is None else g.to(q.dtype) for g in (dq, dk, dv))
    return Gradients(dq, dk, dv, dsink)


def _blocks(
    lo: torch.Tensor, hi: torch.Tensor, mask_heads: int, batch: int, heads_q: int, heads_k: int
) -> Iterator[Block]:
    """The blocks that attend any key. What batch elements and heads share of a mask is expanded once for all."""
    heads_per_key = heads_q // heads_k
    shared = [(head, slice(head * heads_per_key, (head + 1) * heads_per_key)) for head in range(heads_k)]
    filled = lo < hi
    begins = torch.where(filled, lo, torch.iinfo(torch.int32).max).amin(1)
    ends = torch.where(filled, hi, 0).amax(1)
    for plane in range(lo.shape[0]):
        own, head = divmod(plane, mask_heads)
        heads = shared if mask_heads == 1 else [(head // heads_per_key, slice(head, head + 1))]
        for begin in range(0, lo.shape[2], BLOCK_ROWS):
            rows = slice(begin, min(begin + BLOCK_ROWS, lo.shape[2]))
            keys = slice(int(begins[plane, rows].amin()), int(ends[plane, rows].amax()))
            if keys.start >= keys.stop:
                continue
            column = torch.arange(keys.start, keys.stop, dtype=torch.int32, device=lo.device)
            hidden = _hidden_keys(lo[plane, :, rows], hi[plane, :, rows], column)
            for element in range(batch) if lo.shape[0] == mask_heads else (own,):
                yield Block(element, heads, rows, keys, hidden[:, None])


def _hidden_keys(lo: torch.Tensor, hi: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """bool `(rows, keys)`: which of some keys are in none of the intervals `(layers, rows)` of each row."""
    hidden = torch.ones(lo.shape[1], len(keys), dtype=torch.bool, device=lo.device)
    for low, high in zip(lo[..., None], hi[..., None], strict=True):
        hidden &= (keys < low) | (keys >= high)
    return hidden


def _scores(
    query: torch.Tensor, key: torch.Tensor, softmax_scale: float, softcap: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scores `(rows, group, keys)` of `(rows, group, d)` and `(keys, d)`; with softcap also the tanh they came from."""
    scores = (query.to(key.dtype).flatten(0, 1) @ key.T).mul_(softmax_scale).unflatten(0, query.shape[:2])
    if softcap == 0.0:
        return scores, None
    tanh = scores.div_(softcap).tanh_()
    return tanh * softcap, tanh


def _product(weights: torch.Tensor, values: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """`weights @ values`, of which rows of values that are not finite reach only those that attend them.

    weights: (m, n), zero where hidden. values: (n, d). hidden: bool, (m, n) or one entry for all heads of a group.
    """
    bad = ~values.isfinite().all(1)
    if not bad.any():
        return weights @ values
    seen = ~hidden
    for dim in (0, 1):
        seen = seen.repeat_interleave(weights.shape[dim] // hidden.shape[dim], dim)
    sees_bad = (seen & bad).any(1, keepdim=True)
    unseen = bad & ~seen.any(0)
    without, with_bad = (weights @ values.masked_fill(rows[:, None], 0.0) for rows in (bad, unseen))
    return torch.where(sees_bad, with_bad, without)


def _join_sink(out: torch.Tensor, lse: torch.Tensor, sink: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The sinks of a row join its denominator: `lse' = logaddexp(lse, sink_lse)`, `out' = out * exp(lse - lse')`."""
    sink_lse = sink.to(lse.dtype).logsumexp(2).transpose(1, 2)  # (b or 1, heads_q, sq or 1)
    joint = torch.logaddexp(lse, sink_lse)
    share = (lse - joint.masked_fill(joint == -torch.inf, 0.0)).exp()
    return (out * share.transpose(1, 2)[..., None]).contiguous(), joint.contiguous()


def sink_gradient(sink: torch.Tensor, lse: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """`-exp(sink - lse) * delta`, summed over what the sink is shared by and rounded once."""
    finite_lse = lse.masked_fill(lse == -torch.inf, 0.0)  # only -inf sinks stand before such an lse: exp gives 0
    share = (sink.to(lse.dtype) - finite_lse.transpose(1, 2)[:, :, None]).exp()
    grad = -share * delta.transpose(1, 2)[:, :, None]
    return grad.sum_to_size(sink.shape).to(sink.dtype).contiguous()
