"""FlashAttention's mask: documents, and in each of them a window aligned to its last query and last key."""

from __future__ import annotations

import torch

from .checks import check_cumulative
from .intervals import IntervalMask

__all__ = ["windowed_documents"]


def windowed_documents(
    cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor, seqlen_q: int, seqlen_k: int, left: int, right: int
) -> IntervalMask:
    """Document d has queries [cu_seqlens_q[d], cu_seqlens_q[d + 1]) and keys alike; nothing is attended across.

    Query i of a document with `n_q` queries and `n_k` keys sees its keys j with
    `i + n_k - n_q - left <= j <= i + n_k - n_q + right`; a negative `left` or `right` is unlimited.

    Args:
        cu_seqlens_q, cu_seqlens_k: int `(documents + 1,)`, from 0 to `seqlen_q` and `seqlen_k`, never falling.

    Raises ValueError naming the argument for anything else. The mask lives where `cu_seqlens_q` does.
    """
    device = cu_seqlens_q.device
    ends_q, ends_k = (x.to(device, torch.int64) for x in (cu_seqlens_q, cu_seqlens_k))
    for name, ends, total in (("cu_seqlens_q", ends_q, seqlen_q), ("cu_seqlens_k", ends_k, seqlen_k)):
        check_cumulative(name, ends, total)
    lengths = ends_q.diff()
    first_key, end_key, end_row = (x.repeat_interleave(lengths) for x in (ends_k[:-1], ends_k[1:], ends_q[1:]))
    own_key = end_key - end_row + torch.arange(seqlen_q, device=device)
    lo, hi = first_key, end_key
    if left >= 0:
        lo = torch.maximum(lo, own_key - left)
    if right >= 0:
        hi = torch.minimum(hi, own_key + right + 1)
    return IntervalMask.from_intervals(lo, hi, seqlen_k)
