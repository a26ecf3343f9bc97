"""Packed documents as training sees them: many short ones, few long ones."""

from __future__ import annotations

import math
import random

from ..mask import IntervalMask, causal_documents

__all__ = ["lognormal_documents"]


def lognormal_documents(total: int, mean: float = 4096, sigma: float = 1.0, seed: int = 0) -> IntervalMask:
    """Packed causal documents that fill `total` tokens, lengths lognormal and none over a quarter of the total."""
    draw, ends = random.Random(seed), [0]
    mu = math.log(mean) - sigma**2 / 2
    while ends[-1] < total:
        length = round(draw.lognormvariate(mu, sigma))
        ends.append(min(total, ends[-1] + max(1, min(length, total // 4))))
    return causal_documents(total, cu_seqlens=ends)
