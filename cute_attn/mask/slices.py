"""From slices to intervals: each slice gives a row one interval, and the intervals of a row unite."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch

from .union import stack_layers, unite

__all__ = ["Slices", "expand_slices", "union_of_slices"]

# Rows times overlapping slices held at once while uniting; more is done in chunks of rows.
EXPANSION_LIMIT = 1 << 22


class Slices(NamedTuple):
    """Slices as linear bounds: row i in [first, last) attends [lo + lo_slope * i, hi + hi_slope * i).

    All tensors are int64 `(n,)`; the slopes are 0 or 1.
    """

    first: torch.Tensor
    last: torch.Tensor
    lo: torch.Tensor
    lo_slope: torch.Tensor
    hi: torch.Tensor
    hi_slope: torch.Tensor

    def select(self, index: torch.Tensor) -> Slices:
        return Slices(*[x[index] for x in self])


def expand_slices(q: torch.Tensor, k: torch.Tensor, types: torch.Tensor, seqlen_q: int, seqlen_k: int) -> Slices:
    """The slices that are not empty, their four types as slopes.

    q, k, types: as `slice_tensors` gives them, on one device; what they hold is checked here.
    """
    _check(q, k, types, seqlen_q, seqlen_k)
    inverse, causal = types >> 1, types & 1
    lo = k[:, 0] - inverse * q[:, 0]
    hi = k[:, 1] - causal * (q[:, 1] - 1)
    slices = Slices(q[:, 0], q[:, 1], lo, inverse, hi, causal)
    filled = (q[:, 0] < q[:, 1]) & (k[:, 0] < k[:, 1])
    return slices.select(filled.nonzero().squeeze(1))


def _check(q: torch.Tensor, k: torch.Tensor, types: torch.Tensor, seqlen_q: int, seqlen_k: int) -> None:
    bad = [(r[:, 0] < 0) | (r[:, 0] > r[:, 1]) | (r[:, 1] > n) for r, n in ((q, seqlen_q), (k, seqlen_k))]
    bad.append((types < 0) | (types > 3))
    if not bool(torch.stack([b.any() for b in bad]).any()):  # one synchronisation when all is well
        return
    for name, ranges, wrong, seqlen in (("q_ranges", q, bad[0], seqlen_q), ("k_ranges", k, bad[1], seqlen_k)):
        if bool(wrong.any()):
            index = int(wrong.nonzero()[0])
            raise ValueError(
                f"{name}[{index}] = {ranges[index].tolist()} is not a range: 0 <= start <= end <= {seqlen} must hold"
            )
    index = int(bad[2].nonzero()[0])
    raise ValueError(
        f"attn_type_map[{index}] = {int(types[index])} is not a mask type; "
        "allowed: 0 full, 1 causal, 2 inverse causal, 3 bi-causal"
    )


def union_of_slices(slices: Slices, seqlen_q: int, seqlen_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """int32 `lo, hi` of shape `(layers, seqlen_q)`: the keys each row attends under any slice.

    Memory O(rows * layers + slices): where many slices share rows, chunks of rows are united one after another.
    """
    slices = _merge_full(slices, seqlen_q, seqlen_k)
    slices = slices.select(slices.first.argsort())
    cuts = _chunks(slices, seqlen_q)
    if len(cuts) == 2:
        return stack_layers(*_unite_rows(slices, 0, seqlen_q, seqlen_k), rows=seqlen_q)
    parts = []
    for first, last in pairwise(cuts):
        inside = ((slices.first < last) & (slices.last > first)).nonzero().squeeze(1)
        row, lo, hi = _unite_rows(slices.select(inside), first, last, seqlen_k)
        parts.append(stack_layers(row - first, lo, hi, rows=last - first))
    out = torch.zeros(2, max(lo.shape[0] for lo, _ in parts), seqlen_q, dtype=torch.int32, device=slices.first.device)
    for first, last, part in zip(cuts, cuts[1:], parts, strict=False):
        for side in (0, 1):
            out[side, : part[side].shape[0], first:last] = part[side]
    return out[0], out[1]


def _merge_full(slices: Slices, seqlen_q: int, seqlen_k: int) -> Slices:
    """Full slices with the same rows become one slice a run of touching keys: block-sparse masks shrink early."""
    full = (slices.lo_slope + slices.hi_slope) == 0
    some = full.nonzero().squeeze(1)
    if some.numel() < 2:
        return slices
    span = slices.first[some] * (seqlen_q + 1) + slices.last[some]
    spans, group = span.unique(return_inverse=True)
    if spans.numel() == some.numel():
        return slices
    group, lo, hi = unite(group, slices.lo[some], slices.hi[some], seqlen_k)
    span, zero = spans[group], torch.zeros_like(lo)
    merged = (span // (seqlen_q + 1), span % (seqlen_q + 1), lo, zero, hi, zero)
    others = slices.select((~full).nonzero().squeeze(1))
    return Slices(*[torch.cat(pair) for pair in zip(merged, others, strict=True)])


def _chunks(slices: Slices, rows: int) -> list[int]:
    """Row bounds such that no chunk of several rows expands to more than EXPANSION_LIMIT intervals."""
    limit = max(EXPANSION_LIMIT, 2 * rows)
    total = int((slices.last - slices.first).sum())
    if total <= limit:
        return [0, rows]
    starts, ends = (torch.bincount(x, minlength=rows + 1)[:rows] for x in (slices.first, slices.last))
    reached = (starts - ends).cumsum(0).cumsum(0)  # intervals in rows 0..i
    marks = torch.arange(limit, total + limit, limit, device=reached.device)
    cuts = torch.searchsorted(reached, marks, right=True).clamp(max=rows).tolist()
    return sorted({0, *cuts, rows})


def _unite_rows(
    slices: Slices, first: int, last: int, seqlen_k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """United intervals `(row, lo, hi)` of rows [first, last), sorted."""
    begin, end = slices.first.clamp(min=first), slices.last.clamp(max=last)
    length = end - begin
    which = torch.repeat_interleave(torch.arange(len(length), device=length.device), length)
    offset = begin - (length.cumsum(0) - length)
    row = torch.arange(which.numel(), device=which.device) + offset[which]
    lo = slices.lo[which] + slices.lo_slope[which] * row
    hi = slices.hi[which] + slices.hi_slope[which] * row
    keep = lo < hi
    if not bool(keep.all()):
        row, lo, hi = row[keep], lo[keep], hi[keep]
    return unite(row, lo, hi, seqlen_k)
