"""Which keys whom: needed rows as spans of positions, never as sets of rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ...mask import IntervalMask
from ...mask.union import unite
from .placement import Placement

__all__ = [
    "Spans",
    "chunk_needs",
    "expand",
    "intersect",
    "meet",
    "positions_of",
    "rank_needs",
    "remote_needs",
    "rows_sent",
    "rows_within",
]


class Spans(NamedTuple):
    """Spans [lo, hi) of positions, each of a group (a chunk or a rank): int64 `(n,)` on the CPU, sorted by
    (group, lo), disjoint within a group."""

    group: torch.Tensor
    lo: torch.Tensor
    hi: torch.Tensor

    @property
    def rows(self) -> int:
        return int((self.hi - self.lo).sum())

    def rows_by_group(self, groups: int) -> torch.Tensor:
        """int64 `(groups,)`: number of positions of each group."""
        return torch.zeros(groups, dtype=torch.int64, device="cpu").index_add_(0, self.group, self.hi - self.lo)

    def of(self, group: int) -> Spans:
        begin, end = torch.searchsorted(self.group, torch.tensor([group, group + 1], device="cpu")).tolist()
        return Spans(*[x[begin:end] for x in self])

    def merged(self, size: int, bound: int) -> Spans:
        """Of every `size` consecutive groups as one, such as the ranks of a node. bound: above all positions."""
        return Spans(*unite(self.group // size, self.lo, self.hi, bound))

    def clip(self, low: torch.Tensor, high: torch.Tensor) -> Spans:
        """The parts inside `[low[group], high[group])`."""
        lo, hi = torch.maximum(self.lo, low[self.group]), torch.minimum(self.hi, high[self.group])
        keep = lo < hi
        return Spans(self.group[keep], lo[keep], hi[keep])


def chunk_needs(mask: IntervalMask, chunk_size: int) -> Spans:
    """For each chunk of query rows, the keys that any of its rows attends; kept on the mask."""
    name = ("needs", chunk_size)
    if name not in mask._derived:
        lo, hi = mask.lo[0].cpu(), mask.hi[0].cpu()
        parts = [_runs(*rows, chunk_size) for rows in zip(lo, hi, strict=True)]
        chunk, low, high = (torch.cat(x) for x in zip(*parts, strict=True))
        mask._derived[name] = Spans(*unite(chunk, low, high, mask.seqlen_k))
    return mask._derived[name]


def _runs(lo: torch.Tensor, hi: torch.Tensor, chunk_size: int) -> Spans:
    """Of one interval a row, those of each chunk, rows whose intervals meet as one: far fewer, and no need to sort
    them by row."""
    row = (lo < hi).nonzero().squeeze(1)
    if len(row) < len(lo):
        lo, hi = lo[row], hi[row]
    if not len(row):
        return Spans(row, row, row)
    begins = torch.ones_like(row, dtype=torch.bool)
    begins[1:] = (lo[1:] > hi[:-1]) | (lo[:-1] > hi[1:])
    edges = torch.searchsorted(row, torch.arange(0, int(row[-1]) + 1, chunk_size, device="cpu"))
    begins[edges] = True  # of an empty chunk, where the next one begins
    first = begins.nonzero().squeeze(1)
    low, high = (
        reduce(x.numpy(), first.numpy()) for reduce, x in ((np.minimum.reduceat, lo), (np.maximum.reduceat, hi))
    )
    return Spans(row[first] // chunk_size, torch.from_numpy(low).long(), torch.from_numpy(high).long())


def rank_needs(needs: Spans, query: Placement, seqlen_k: int) -> Spans:
    """For each rank, the keys that any row of its chunks attends; `needs` is grouped by chunk."""
    return Spans(*unite(query.owner()[needs.group], needs.lo, needs.hi, seqlen_k))


def remote_needs(needs: Spans, key: Placement) -> Spans:
    """For each rank, the keys it needs and does not hold; `needs` is grouped by rank."""
    world, size = key.world, key.chunk_size
    starts = torch.cat([torch.zeros(world, 1, dtype=torch.int64, device="cpu"), (key.chunks + 1) * size], 1)
    ends = torch.cat([key.chunks * size, torch.full((world, 1), key.padded_length, device="cpu")], 1)
    group = torch.arange(world, device="cpu")[:, None].expand_as(starts)
    keep = starts < ends
    return intersect(needs, Spans(group[keep], starts[keep], ends[keep]), key.padded_length)


def rows_within(spans: tuple[torch.Tensor, torch.Tensor], lo: torch.Tensor, hi: torch.Tensor) -> torch.Tensor:
    """int64 like `lo`: how many rows the spans `(lo, hi)` have in each `[lo, hi)`; both may overlap at will.

    The rows of spans left of x are the sum of `relu(x - begin) - relu(x - end)`, a difference of two prefix sums.
    """
    edges = torch.cat([lo, hi])
    left = torch.zeros_like(edges)
    for ends, sign in zip(spans, (1, -1), strict=True):
        ends = ends.sort().values
        total = torch.cat([ends.new_zeros(1), ends.cumsum(0)])
        count = torch.searchsorted(ends, edges)
        left += sign * (count * edges - total[count])
    return left[len(lo) :] - left[: len(lo)]


def rows_sent(remote: Spans, key: Placement) -> torch.Tensor:
    """int64 `(world,)`: rows that each rank sends if every rank receives its `remote` rows from their owners."""
    edges = torch.arange(key.chunks.numel(), device="cpu") * key.chunk_size
    rows = rows_within((remote.lo, remote.hi), edges, edges + key.chunk_size)
    return torch.zeros(key.world, dtype=torch.int64, device="cpu").index_add_(0, key.owner(), rows)


def positions_of(spans: Spans, counts: torch.Tensor) -> torch.Tensor:
    """int64 like `counts`, `(n, groups)`: the positions up to which each group has so many of its rows.

    A count of 0 gives a position at or before the first row.
    """
    groups = counts.shape[1]
    if len(spans.lo) == 0:
        return torch.zeros_like(counts)
    total = (spans.hi - spans.lo).cumsum(0)
    before = torch.zeros(groups, dtype=torch.int64, device="cpu")
    before[1:] = spans.rows_by_group(groups).cumsum(0)[:-1]
    target = before + counts
    span = torch.searchsorted(total, target).clamp(max=len(total) - 1)
    return (spans.hi[span] - (total[span] - target)).masked_fill(counts == 0, 0)


def intersect(a: Spans, b: Spans, bound: int) -> Spans:
    """What both hold, group by group; all positions are in [0, bound]."""
    shift_a, shift_b = a.group * (bound + 1), b.group * (bound + 1)
    lo, hi, which, _ = _overlaps(a.lo + shift_a, a.hi + shift_a, b.lo + shift_b, b.hi + shift_b)
    return Spans(a.group[which], lo - shift_a[which], hi - shift_a[which])


def meet(a: Spans, lo: torch.Tensor, hi: torch.Tensor) -> tuple[Spans, torch.Tensor]:
    """The parts of every group's spans inside ascending disjoint `[lo, hi)`, and inside which of these each part is."""
    low, high, which, index = _overlaps(a.lo, a.hi, lo, hi)
    return Spans(a.group[which], low, high), index


def expand(lo: torch.Tensor, hi: torch.Tensor) -> torch.Tensor:
    """int64: all positions of the spans, span after span."""
    length = hi - lo
    offset = torch.repeat_interleave(lo - (length.cumsum(0) - length), length)
    return torch.arange(offset.numel(), device="cpu") + offset


def _overlaps(
    a_lo: torch.Tensor, a_hi: torch.Tensor, b_lo: torch.Tensor, b_hi: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """For spans a and ascending disjoint spans b: `(lo, hi, index in a, index in b)` of all non-empty overlaps."""
    begin = torch.searchsorted(b_hi, a_lo, right=True)
    end = torch.searchsorted(b_lo, a_hi)
    count = (end - begin).clamp(min=0)
    which = torch.repeat_interleave(torch.arange(len(a_lo), device="cpu"), count)
    other = expand(begin, begin + count)
    return torch.maximum(a_lo[which], b_lo[other]), torch.minimum(a_hi[which], b_hi[other]), which, other
