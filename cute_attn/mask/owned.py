"""The intervals that a mask keeps: checked, and copied, so that no later edit of the tensors given reaches it.

A custom op, since the check reads values: one graph takes it where a mask is made inside a compiled function.
"""

from __future__ import annotations

import torch

from ..renamed import NAMESPACE, OPS

__all__ = ["owned_intervals"]


def owned_intervals(lo: torch.Tensor, hi: torch.Tensor, seqlen_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies of int32 `(planes, layers, seqlen_q)` bounds; ValueError unless each row is intervals in [0, seqlen_k)."""
    if torch.compiler.is_compiling():
        return OPS.owned_intervals(lo, hi, seqlen_k)
    return _owned(lo, hi, seqlen_k)


def _owned(lo: torch.Tensor, hi: torch.Tensor, seqlen_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    lo, hi = lo.clone(), hi.clone()
    good = (lo >= 0).all() & (lo <= hi).all() & (hi <= seqlen_k).all()
    if lo.shape[1] > 1:
        follows_gap = (lo[:, :-1] < hi[:, :-1]) & (hi[:, :-1] < lo[:, 1:])
        good &= (follows_gap | (lo[:, 1:] == hi[:, 1:])).all()
    if not good:
        raise ValueError(
            f"lo and hi must satisfy 0 <= lo <= hi <= seqlen_k = {seqlen_k}, with the layers of each row "
            "sorted, disjoint, not touching and empty ones last; IntervalMask.from_intervals takes any intervals"
        )
    return lo, hi


def _fake(lo: torch.Tensor, hi: torch.Tensor, seqlen_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(lo), torch.empty_like(hi)


_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
_LIBRARY.define(
    "owned_intervals(Tensor lo, Tensor hi, SymInt seqlen_k) -> (Tensor, Tensor)", tags=(torch.Tag.pt2_compliant_tag,)
)
_LIBRARY.impl("owned_intervals", _owned, "CompositeExplicitAutograd")
torch.library.register_fake(f"{NAMESPACE}::owned_intervals", _fake, lib=_LIBRARY)
