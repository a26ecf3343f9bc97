"""Where remote keys are cut into stages."""

from __future__ import annotations

import torch

from ..mask import IntervalMask
from .config import OverlapConfig
from .cost import CostModel
from .needs import Spans
from .placement import Placement

__all__ = ["stage_cuts"]


def stage_cuts(
    mask: IntervalMask, query: Placement, key: Placement, remote: Spans, overlap: OverlapConfig, cost: CostModel
) -> torch.Tensor:
    """int64 `(stages + 1, world)`: rank r receives its remote keys in `[cuts[s, r], cuts[s + 1, r])` in stage s.

    Every rank takes its remote keys in global order, in units of `min_chunk_size` rows (more if that were over
    `max_num_chunks` units). No rows anywhere: no stage.
    """
    world = key.world
    rows = remote.rows_by_group(world)
    if int(rows.sum()) == 0:
        return torch.zeros(1, world, dtype=torch.int64)
    unit = (-(-rows // overlap.max_num_chunks)).clamp(min=overlap.min_chunk_size)
    units = -(-rows // unit)
    degree = min(overlap.degree or 1, int(units.max()))
    step = torch.arange(degree + 1)[:, None]
    counts = torch.minimum((units * step + degree - 1) // degree * unit, rows)
    return _positions_of(remote, counts, key.padded_length)


def _positions_of(remote: Spans, counts: torch.Tensor, bound: int) -> torch.Tensor:
    """The positions up to which each rank has `counts` of its remote rows, `(stages + 1, world)` both."""
    world = counts.shape[1]
    length = remote.hi - remote.lo
    total = length.cumsum(0)
    before = torch.zeros(world, dtype=torch.int64)
    before[1:] = remote.rows_by_group(world).cumsum(0)[:-1]
    target = before + counts
    span = torch.searchsorted(total, target).clamp(max=max(0, len(total) - 1))
    position = remote.hi[span] - (total[span] - target)
    position[0], position[-1] = 0, bound
    return position
