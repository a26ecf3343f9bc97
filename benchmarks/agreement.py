"""Whether two implementations computed the same, as far as bf16 can tell."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["disagreement"]

# Each side rounds its probabilities, its gradients of scores and its results to 8 bits: about 2^-8 of a typical number
# and in the worst of many millions a few times that of the largest.
ALLOWED = 2.0**-6


def disagreement(names: Sequence[str], ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> str | None:
    """What differs, in one line, or None. The largest difference is compared with the largest number, and, because that
    says little about rows of small numbers, the norm of the differences of every head with that of its numbers."""
    for name, a, b in zip(names, ours, theirs, strict=True):
        if a.shape != b.shape:
            return f"{name} has shape {tuple(a.shape)}, theirs {tuple(b.shape)}"
        for owner, x in (("ours", a), ("theirs", b)):
            if not x.isfinite().all():
                return f"{name} is not finite ({owner})"
        a, b = a.double(), b.double()
        largest = ((a - b).abs().max() / b.abs().max()).item()
        norm = ((a - b).norm(dim=(1, 3)) / b.norm(dim=(1, 3))).max().item()
        for what, value in (("the largest difference, over the largest number", largest), ("norm, of a head", norm)):
            if not value <= ALLOWED:
                return f"{name} differs by {value:.2g} ({what}); bf16 explains {ALLOWED:.2g}"
    return None
