"""Which heads go where when the ranks of a group exchange heads for rows."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from ..checks import check_int

__all__ = ["UlyssesHeads", "ulysses_heads"]

MOST_HEADS = 1 << 16  # more are a mistake, and tables of them do not fit


class UlyssesHeads(NamedTuple):
    """Which heads go where when heads are exchanged for rows.

    query: query heads a rank gets; rank u gets heads `[u * query, (u + 1) * query)`.
    key: key heads a rank gets, replicated where `heads_k` is small; `query % key == 0`, and on every rank query head h
        of its own uses key head `h // (query / key)` of its own, as everywhere.
    key_heads: `(ulysses_size, key)` ints: the global key heads each rank gets; may repeat. Forward sends
        `k[:, key_heads.flatten()]`; dK of a head sums over all its copies, in this order.
    """

    query: int
    key: int
    key_heads: torch.Tensor


def ulysses_heads(heads_q: int, heads_k: int, ulysses_size: int) -> UlyssesHeads:
    """ValueError naming both numbers and what works where heads_q is not divisible by ulysses_size."""
    heads_q, heads_k = check_int("heads_q", heads_q, 1, MOST_HEADS), check_int("heads_k", heads_k, 1)
    ulysses_size = check_int("ulysses_size", ulysses_size, 1)
    if heads_q % heads_k:
        raise ValueError(f"heads_q must be divisible by heads_k, got {heads_q} and {heads_k}")
    if heads_q % ulysses_size:
        fits = [n for n in range(1, heads_q + 1) if heads_q % n == 0]
        raise ValueError(
            f"ulysses needs heads_q divisible by its group size, got heads_q = {heads_q} and a group of "
            f"{ulysses_size}; group sizes that work: {', '.join(map(str, fits))}"
        )
    mine = heads_q // ulysses_size
    group = heads_q // heads_k
    together = math.gcd(mine, group)  # so many consecutive query heads always share one key head
    first = torch.arange(0, heads_q, together, device="cpu")
    return UlyssesHeads(mine, mine // together, (first // group).reshape(ulysses_size, -1))
