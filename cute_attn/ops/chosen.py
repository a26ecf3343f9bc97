"""Masks that the values of a call choose: the best blocks of keys of each row and head (MoBA), and the keys that an
indexer kept. They are intervals too, as many layers as the choice has runs, and what else the row may see is theirs as
well (`&`). They are new at every call, so nothing keeps them; in a graph an op makes them.
"""

from __future__ import annotations

from typing import Any

import torch

from ..autocast import without_autocast
from ..custom_ops import register
from ..mask import IntervalMask
from ..mask.dense import runs, runs_of_rows
from ..mask.source import MaskSource
from ..mask.union import stack_layers
from ..reference import compute_dtype
from ..renamed import OPS
from .library import SOURCE_SCHEMA
from .mask_cache import find_mask
from .plans import is_traced, size_that_a_mask_decides

__all__ = ["chosen_mask"]

Tensor = torch.Tensor
AT_ONCE = 1 << 22  # pairs of rows and blocks of keys that are looked at together


def chosen_mask(
    source: MaskSource,
    query: Tensor,
    key: Tensor,
    moba: tuple[int, int] | None,
    indexer_mask: Tensor | None,
) -> IntervalMask | MaskSource:
    """What of the mask that a source describes the values of a call choose.

    Args:
        source: of kind "tokens" or "active" where there is moba, whose offset is where the first row stands.
        query: `(b, t, heads_q, d)`; key: `(b, s, heads_k, d)`.
        moba: keys of a block and how many blocks a row attends, or None.
        indexer_mask: `(b, t, s)`, bool, or numbers that keep a pair where they are at least -1; or None.
    """
    device = torch.device("cpu") if query.is_meta else query.device
    choosing, chosen_among = (query.detach(), key.detach()) if moba else (None, None)
    block, top_k = moba or (0, 0)
    rows, keys = query.shape[1], key.shape[1]
    if not is_traced():
        return _chosen(source, rows, keys, device, choosing, chosen_among, block, top_k, indexer_mask)
    rest = rows, keys, device, choosing, chosen_among, block, top_k, indexer_mask
    lo, hi = OPS.chosen_mask(*source, *rest)
    return MaskSource("chosen", lo, hi, heads=query.shape[2] if moba else 1)


def _chosen(
    source: MaskSource,
    rows: int,
    keys: int,
    device: torch.device,
    query: Tensor | None,
    key: Tensor | None,
    block: int,
    top_k: int,
    indexer_mask: Tensor | None,
    *,
    is_op: bool = False,
) -> IntervalMask:
    mask, _ = find_mask(source, rows, keys, device, is_op=is_op)
    if query is not None and key is not None:
        mask = mask & _moba(query, key, block, top_k, source.offset)
    if indexer_mask is not None:
        mask = mask & _kept(indexer_mask)
    return mask


# ---------------------------------------------------------------- MoBA


@without_autocast
def _moba(query: Tensor, key: Tensor, block: int, top_k: int, first: int) -> IntervalMask:
    """Row i, at position `p = first + i`, attends keys up to p of its own block of keys and of the `top_k - 1` earlier
    ones whose mean has the largest product with its query; of equal ones, the earlier blocks."""
    batch, rows, heads, _ = query.shape
    keys = key.shape[1]
    position = torch.arange(first, first + rows, device=query.device)
    row, begin, end = _best_blocks(query, _means(key, block), position // block, top_k)
    hi = torch.minimum((end * block).clamp(max=keys), position[row % max(1, rows)] + 1)
    planes = batch * heads
    bounds = stack_layers(row, begin * block, hi, rows=planes * rows)
    lo, hi = (x.view(len(x), planes, rows).transpose(0, 1).contiguous() for x in bounds)
    return IntervalMask._made(lo, hi, keys, heads)


def _means(key: Tensor, block: int) -> Tensor:
    """The mean key of each block, the last one perhaps shorter: `(b, blocks, heads_k, d)` in the dtype of scores."""
    dtype = compute_dtype(key.dtype)
    whole = key.shape[1] // block
    means = key[:, : whole * block].unflatten(1, (whole, block)).sum(2, dtype=dtype) / block
    rest = key[:, whole * block :]
    return torch.cat([means, rest.to(dtype).mean(1, keepdim=True)], 1) if rest.shape[1] else means


def _best_blocks(query: Tensor, means: Tensor, own: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row, first block and end of the runs of best blocks, in order; rows are those of `(b, heads_q, t)`, flat.

    own: `(t,)`, the block at which each row stands. Of what is looked at together nothing but the runs is kept.
    """
    batch, rows, heads, _ = query.shape
    count = means.shape[1]
    number = torch.arange(count, device=query.device)
    found = [(torch.zeros(0, dtype=torch.int64, device=query.device),) * 3]
    at_once = max(1, AT_ONCE // max(1, batch * heads * count))
    grouped = query.unflatten(2, (means.shape[2], -1))
    for first in range(0, rows, at_once):
        here = slice(first, min(first + at_once, rows))
        gates = torch.einsum("btkgd,bnkd->bkgtn", grouped[:, here].to(means.dtype), means).flatten(1, 2)
        behind, standing = (own[here, None] > number), (own[here, None] == number)
        gates = gates.masked_fill(~behind, -torch.inf).masked_fill(standing, torch.inf)
        order = gates.sort(stable=True, dim=-1, descending=True).indices  # topk has no rule for equal ones
        best = torch.zeros_like(gates, dtype=torch.bool).scatter_(-1, order[..., : min(top_k, count)], True)
        row, begin, end = runs(((best & behind) | standing).flatten(0, 2))
        size = here.stop - first
        found.append((row // size * rows + first + row % size, begin, end))
    row, begin, end = (torch.cat(parts) for parts in zip(*found, strict=True))
    row, order = row.sort(stable=True)
    return row, begin[order], end[order]


# ---------------------------------------------------------------- the indexer


def _kept(indexer_mask: Tensor) -> IntervalMask:
    """Pairs that are True, or at least -1; NaN is not."""
    batch, rows, keys = indexer_mask.shape
    bounds = runs_of_rows(indexer_mask.flatten(0, 1), None if indexer_mask.dtype == torch.bool else -1)
    lo, hi = (x.view(len(x), batch, rows).transpose(0, 1).contiguous() for x in bounds)
    return IntervalMask._made(lo, hi, keys)


# ---------------------------------------------------------------- in a graph


_SCHEMA = (
    f"({SOURCE_SCHEMA}, SymInt seqlen_q, SymInt seqlen_k, Device device, Tensor? query, Tensor? key, SymInt block, "
    "SymInt top_k, Tensor? indexer_mask) -> (Tensor, Tensor)"
)
_FIELDS = len(MaskSource._fields)


def _op(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The intervals of `chosen_mask`, which nobody else holds."""
    mask = _chosen(MaskSource(*arguments[:_FIELDS]), *arguments[_FIELDS:], is_op=True)
    return mask.lo.clone(), mask.hi.clone()


def _fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    seqlen_q, _, device, query, _, _, _, indexer_mask = arguments[_FIELDS:]
    planes = MaskSource(*arguments[:_FIELDS]).planes
    if indexer_mask is not None:
        planes = indexer_mask.shape[0]
    if query is not None:
        planes = query.shape[0] * query.shape[2]
    layers = size_that_a_mask_decides()
    lo, hi = (torch.empty((planes, layers, seqlen_q), dtype=torch.int32, device=device) for _ in range(2))
    return lo, hi


register("chosen_mask", _SCHEMA, _op, _fake)
