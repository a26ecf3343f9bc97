"""Union of integer intervals, many groups at once: the one sweep that every mask operation goes through."""

from __future__ import annotations

import torch

__all__ = ["stack_layers", "unite"]


def unite(
    group: torch.Tensor, lo: torch.Tensor, hi: torch.Tensor, bound: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unites the non-empty intervals [lo, hi) of each group where they overlap or touch.

    Args:
        group, lo, hi: int64 `(n,)` in any order, `0 <= lo < hi <= bound`.

    Returns `(group, lo, hi)` of the united intervals, sorted by group and lo. Sort by (group, lo); the running maximum
    of (group, hi) says how far the intervals so far reach; a new one begins where lo lies beyond that.
    """
    base = group * (bound + 1)  # one number orders pairs: every (group, x) is below (group + 1, 0)
    begin, reach = base + lo, base + hi
    if not bool((begin[1:] >= begin[:-1]).all()):
        begin, order = begin.sort()
        reach, group = reach[order], group[order]
    if begin.numel() == 0:
        return group, lo, hi
    reach = reach.cummax(0).values
    is_first = torch.ones_like(begin, dtype=torch.bool)
    torch.gt(begin[1:], reach[:-1], out=is_first[1:])
    first = is_first.nonzero().squeeze(1)
    last = torch.cat([first[1:], first.new_tensor([begin.numel()])]) - 1
    group = group[first]
    base = group * (bound + 1)
    return group, begin[first] - base, reach[last] - base


def stack_layers(row: torch.Tensor, lo: torch.Tensor, hi: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Intervals sorted by (row, lo) as int32 `lo, hi` of shape `(layers, rows)`, missing ones 0; at least one layer."""
    count = torch.bincount(row, minlength=rows)
    layers = max(1, int(count.max())) if rows else 1
    layer = torch.arange(row.numel(), device=row.device) - (count.cumsum(0) - count)[row]
    out = torch.zeros(2, layers, rows, dtype=torch.int32, device=row.device)
    out[0, layer, row] = lo.int()
    out[1, layer, row] = hi.int()
    return out[0], out[1]
