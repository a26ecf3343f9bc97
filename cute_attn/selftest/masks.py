"""Masks of the self-test by name, at any length."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cute_attn import mask
from cute_attn.mask import IntervalMask
from cute_attn.mask.thinned import thin
from cute_attn.mods.trace import Traced

from .mods import held

__all__ = ["MASKS", "thinned"]


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


def thinned(
    mask: IntervalMask, mask_mod: Traced, certain: IntervalMask | None, heads: int, marks: bool = False
) -> tuple[IntervalMask, torch.Tensor]:
    """What a mask_mod leaves of a mask, as kernels take it; and the pairs, bool `(1 or heads, rows, keys)`: one plane
    for all query heads unless it, or the mask, tells them apart.

    certain: pairs of the mask that it leaves whatever it says. marks: whether kernels are told these from others even
    where it is true in all of them.
    """
    heads = heads if mask_mod.graph.reads("h") else mask.heads
    mask, certain = mask._expanded(1, heads), None if certain is None else certain._expanded(1, heads)
    said = held(mask_mod, heads, mask.seqlen_q, mask.seqlen_k).to(mask.device)
    sure = torch.zeros_like(said) if certain is None else certain.to_dense().flatten(0, -3)
    attended = mask.to_dense().flatten(0, -3) & (said | sure)
    holds = not marks and bool((said | ~sure).all())
    return thin(mask, certain, attended.any(2), attended.any(1), holds), attended
