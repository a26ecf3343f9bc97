"""A mask thinned by a predicate, as kernels need to know it: intervals that they test, and asks a function within."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .intervals import IntervalMask
from .readback import on_host
from .tiles import TileSchedule

__all__ = ["MARK", "Thinning", "tested_bounds", "thin"]

MARK = torch.iinfo(torch.int32).min  # added to the lo of an interval whose pairs are attended whatever a predicate says


@dataclass(frozen=True, eq=False)
class Thinning:
    """What is known of a predicate beside its function.

    certain: the pairs that are attended whatever it says; None if there are none.
    idle_keys: bool `(planes, seqlen_k)`, keys that no row attends.
    tested: the intervals that kernels test; they may touch where some of them are marked.
    lo: theirs as kernels read it, MARK added where is_marked and an interval is of certain pairs.
    is_marked: whether a predicate may be false in certain pairs, so that kernels must tell these from others.
    """

    certain: IntervalMask | None
    idle_keys: torch.Tensor
    tested: IntervalMask
    lo: torch.Tensor
    is_marked: bool

    def schedule(self, tile: tuple[int, int]) -> TileSchedule:
        """On the CPU. Tiles are full where all of their pairs are certain."""
        parts = [self.tested] if self.certain is None else [self.tested, self.certain]
        *ends, idle_keys = on_host([*(x for part in parts for x in (part.lo, part.hi)), self.idle_keys])
        tested, *certain = (
            IntervalMask._made(lo, hi, part.seqlen_k, part.heads)
            for part, lo, hi in zip(parts, ends[::2], ends[1::2], strict=True)
        )
        return TileSchedule._of(tested, tile, certain[0] if certain else None, idle_keys)


def tested_bounds(mask: IntervalMask) -> tuple[torch.Tensor, torch.Tensor]:
    """lo and hi as kernels test them, thinned or not."""
    thinning = mask._thinning
    return (mask.lo, mask.hi) if thinning is None else (thinning.lo, thinning.tested.hi)


def thin(
    mask: IntervalMask, certain: IntervalMask | None, rows: torch.Tensor, keys: torch.Tensor, holds: bool
) -> IntervalMask:
    """A mask whose schedules and plans are those of what a predicate leaves of it.

    Args:
        certain: some of its pairs, which are attended whatever the predicate says; planes as the mask's.
        rows, keys: bool `(planes, seqlen_q)`, `(planes, seqlen_k)`, which of them attend and are attended at all.
        holds: whether the predicate is true in all certain pairs.
    """
    lo, hi = (x * rows[:, None] for x in (mask.lo, mask.hi))
    kept = IntervalMask._made(lo, hi, mask.seqlen_k, mask.heads)
    tested, marked = kept, lo
    is_marked = certain is not None and not holds
    if certain is not None and is_marked:
        others = kept & ~certain
        lo, hi = (torch.cat(pair, 1) for pair in ((others.lo, certain.lo), (others.hi, certain.hi)))
        is_certain = torch.arange(lo.shape[1], device=lo.device)[:, None] >= others.layers
        order = lo.masked_fill(lo >= hi, mask.seqlen_k + 1).argsort(dim=1, stable=True)  # empty ones last
        lo, hi, is_certain = (x.gather(1, order) for x in (lo, hi, is_certain.expand(lo.shape)))
        tested = IntervalMask._made(lo, hi, mask.seqlen_k, mask.heads)
        marked = lo + MARK * (is_certain & (lo < hi)).int()
    object.__setattr__(kept, "_thinning", Thinning(certain, ~keys, tested, marked, is_marked))
    return kept
