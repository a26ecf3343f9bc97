"""What a score_mod captured, as kernels take it."""

from __future__ import annotations

import torch

from ..mods.trace import Traced

__all__ = ["captured_by"]


def captured_by(function: Traced) -> tuple[tuple[torch.Tensor, ...] | None, tuple[int | float, ...] | None]:
    """Its tensors, 0-d ones as (1,), and its numbers; None for none."""
    return tuple(map(_stored, function.tensors)) or None, tuple(function.scalars) or None


def _stored(x: torch.Tensor) -> torch.Tensor:
    x = x.detach()
    x = x.view(torch.uint8) if x.dtype == torch.bool else x
    return x if x.ndim else x.view(1)
