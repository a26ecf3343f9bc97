"""The order in memory of what the main kernel reads of each query row: -lse, delta, and the bounds of its intervals.

A thread of S^T holds the columns (query rows) 8j + 2t + e with t = lane % 4 and e = 0, 1. Of 16 rows of a tile, those
of one t lie together, so that a thread reads four with one instruction: row 16i + 8b + 2t + e is at 16i + 4t + 2b + e.
"""

from __future__ import annotations

from typing import Any

import torch

from cute_attn.mask import IntervalMask

__all__ = ["pack_bounds", "place_of_row", "unpack_rows"]


def place_of_row(row: Any) -> Any:
    """Where a row of a tile is; for ints and for the DSL's."""
    return (row & ~15) | ((row & 6) << 1) | ((row & 8) >> 2) | (row & 1)


def pack_bounds(mask: IntervalMask, m: int) -> torch.Tensor:
    """The intervals of a mask for tiles of m rows: int32 `(planes, q_tiles, layers, 2, m)`, lo and then hi.

    Rows past the end have none.
    """
    tiles = -(-mask.seqlen_q // m)
    both = torch.stack([mask.lo, mask.hi], 2)  # (planes, layers, 2, seqlen_q)
    both = torch.nn.functional.pad(both, (0, tiles * m - mask.seqlen_q))
    both = both.view(mask.planes, mask.layers, 2, tiles, m // 16, 2, 4, 2).transpose(5, 6)
    return both.permute(0, 3, 1, 2, 4, 5, 6, 7).reshape(mask.planes, tiles, mask.layers, 2, m)


def unpack_rows(packed: torch.Tensor, seqlen_q: int) -> torch.Tensor:
    """`(..., q_tiles, m)` in the kernel's order as `(..., seqlen_q)`."""
    *outer, tiles, m = packed.shape
    rows = packed.view(*outer, tiles, m // 16, 4, 2, 2).transpose(-3, -2)
    return rows.reshape(*outer, tiles * m)[..., :seqlen_q]
