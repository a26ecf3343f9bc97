"""What kernels read of query rows: bounds and terms in the order in memory of the backward, see `cute_attn.bwd.rows`,
and sinks."""

from __future__ import annotations

import torch

__all__ = ["pack_bounds", "sinks_of_rows", "unpack_rows"]


def pack_bounds(lo: torch.Tensor, hi: torch.Tensor, m: int) -> torch.Tensor:
    """Intervals `(planes, layers, seqlen_q)` for tiles of m rows: int32 `(planes, q_tiles, layers, 2, m)`, lo, then hi.

    Rows past the end have none.
    """
    planes, layers, seqlen_q = lo.shape
    tiles = -(-seqlen_q // m)
    both = torch.stack([lo, hi], 2)  # (planes, layers, 2, seqlen_q)
    both = torch.nn.functional.pad(both, (0, tiles * m - seqlen_q))
    both = both.view(planes, layers, 2, tiles, m // 16, 2, 4, 2).transpose(5, 6)
    return both.permute(0, 3, 1, 2, 4, 5, 6, 7).reshape(planes, tiles, layers, 2, m)


def unpack_rows(packed: torch.Tensor, seqlen_q: int) -> torch.Tensor:
    """`(..., q_tiles, m)` in the kernel's order as `(..., seqlen_q)`."""
    *outer, tiles, m = packed.shape
    rows = packed.view(*outer, tiles, m // 16, 4, 2, 2).transpose(-3, -2)
    return rows.reshape(*outer, tiles * m)[..., :seqlen_q]


def sinks_of_rows(sink: torch.Tensor) -> torch.Tensor:
    """The logsumexp of the sinks `(b or 1, sq or 1, n, heads_q)` of each row: `(b or 1, heads_q, sq or 1)`. That of one
    is the sink."""
    return (sink.select(2, 0) if sink.shape[2] == 1 else sink.logsumexp(2)).transpose(1, 2)
