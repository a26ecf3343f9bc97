"""What is on a GPU, read on the host: to wait for a GPU once is dear, and planning would wait some thirty times."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["on_host"]


def on_host(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors, of integers or bools, on the CPU; those of one GPU come in one copy."""
    if all(t.is_cpu for t in tensors):
        return list(tensors)
    if len({t.device for t in tensors}) > 1:
        return [t.cpu() for t in tensors]
    narrow = all(t.dtype in (torch.int32, torch.bool) for t in tensors)
    flat = torch.cat([t.reshape(-1).to(torch.int32 if narrow else torch.int64) for t in tensors]).cpu()
    parts = flat.split([t.numel() for t in tensors])
    shaped = [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)]
    return [x.bool() if t.dtype == torch.bool else x for x, t in zip(shaped, tensors, strict=True)]
