"""Masks of the self-test by name: one for each kind that machine code knows, at any length."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cute_attn import mask
from cute_attn.mask import IntervalMask
from cute_attn.spec.mask import MaskForm

__all__ = ["MASKS", "kind_of_mask"]


def _packed(n: int) -> IntervalMask:
    return mask.causal_documents(n, cu_seqlens=[0, n // 10, n // 3, n // 3 + 1, n])


def _prefix(n: int) -> IntervalMask:
    return mask.shared_prefix(n, prefix_length=n // 4, lengths=[n // 4, n - 2 * (n // 4)])


def _slices(n: int) -> IntervalMask:
    """Forty slices of all four types, anywhere: many intervals a row, some rows without keys."""
    numbers = torch.Generator().manual_seed(7)
    starts = torch.randint(0, n, (2, 40), generator=numbers, device="cpu")
    lengths = torch.randint(1, n // 8, (2, 40), generator=numbers, device="cpu")
    q_ranges, k_ranges = torch.stack([starts, (starts + lengths).clamp_max(n)], 2)
    return IntervalMask.from_slices(q_ranges, k_ranges, torch.arange(40, device="cpu") % 4, n, n)


# Each of a number of query tokens; "full" has a third more keys, "empty_rows" half as many.
MASKS: dict[str, Callable[[int], IntervalMask]] = {
    "full": lambda n: mask.full(n, n + n // 3),
    "causal": mask.causal,
    "packed": _packed,
    "window": lambda n: mask.sliding_window(n, left=n // 5, right=n // 20),
    "prefix": _prefix,
    "slices": _slices,
    "empty_rows": lambda n: mask.causal(n, n // 2),
    "anticausal": lambda n: mask.sliding_window(n, left=0, right=n),
}


def kind_of_mask(form: MaskForm) -> str:
    """The name of a mask that leads to specs with this form."""
    if form.layers == 1:
        return "window" if form.has_lower and form.has_upper else "causal" if form.has_upper else "anticausal"
    return {0: "full", 2: "prefix", "many": "slices"}[form.layers]
