"""The reference as a backend: it serves any device and dtype, and reads nothing of a mask but its intervals."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .. import reference
from ..caches import KVCache
from ..decode_reference import decode_reference
from ..mask import IntervalMask
from .plan import Plan

__all__ = ["Reference"]

Tensor = torch.Tensor


class Reference:
    """See `cute_attn.backends.interface.Backend`."""

    name = "reference"

    def check_served(self, dtype: torch.dtype, head_dims: tuple[int, int], device: torch.device) -> None:
        pass

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: IntervalMask | Plan,
        sink: Tensor | None,
        *,
        softmax_scale: float,
        softcap: float,
        sm_margin: int,
        return_max_logits: bool,
        unrounded: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        if unrounded:
            q, k, v = (x.to(reference.compute_dtype(x.dtype)) for x in (q, k, v))
        out, lse, max_logits = reference.attention_forward(
            q, k, v, mask.lo, mask.hi, sink, softmax_scale, softcap, mask_heads=mask.heads
        )
        return out, lse, max_logits if return_max_logits else None

    def backward(
        self,
        dout: Tensor | None,
        dlse: Tensor | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        mask: IntervalMask | Plan,
        sink: Tensor | None,
        *,
        softmax_scale: float,
        softcap: float,
        deterministic: bool,
        sm_margin: int,
        needs: Sequence[bool],
        unrounded: bool = False,
    ) -> reference.Gradients:
        if unrounded:
            q, k, v, out = (x.to(reference.compute_dtype(x.dtype)) for x in (q, k, v, out))
        return reference.attention_backward(
            dout, dlse, q, k, v, out, lse, mask.lo, mask.hi, sink, softmax_scale, softcap, needs, mask_heads=mask.heads
        )

    def check_decode_served(self, q: Tensor, cache: KVCache) -> None:
        pass

    def decode(
        self,
        q: Tensor,
        cache: KVCache,
        sink: Tensor | None,
        tree: Tensor | None,
        *,
        softmax_scale: float,
        softcap: float,
        window: tuple[int, int],
        num_splits: int,
        sm_margin: int,
    ) -> tuple[Tensor, Tensor]:
        return decode_reference(q, cache, sink, tree, softmax_scale, softcap, window)
