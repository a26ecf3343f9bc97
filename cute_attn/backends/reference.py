"""The reference as a backend: it serves any device and dtype, and reads nothing of a mask but its intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .. import reference
from ..caches import KVCache
from ..decode_reference import decode_reference
from ..mask import IntervalMask
from ..mods.blockwise import BlockMods, Thinned
from ..mods.trace import Traced
from .interface import ModGradients, Prepared
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

    def prepared(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        plan: Plan,
        *,
        softmax_scale: float,
        softcap: float,
        sm_margin: int,
        has_sink: bool,
        deterministic: bool,
        backward: bool,
        is_public: bool,
    ) -> Prepared:
        return _PreparedReference(self, plan, softmax_scale, softcap)

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

    def check_decode_served(self, q: Tensor, cache: KVCache, tree: Tensor | None) -> None:
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

    def check_mods(self, score: Traced | None, wanted: Sequence[bool], deterministic: bool) -> None:
        pass

    def mods_forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: IntervalMask | Plan,
        thinned: Thinned | None,
        score: Traced | None,
        *,
        softmax_scale: float,
        return_max_scores: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        mods = BlockMods(score, thinned, reference.compute_dtype(q.dtype))
        out, lse, max_scores = reference.attention_forward(
            q, k, v, mask.lo, mask.hi, None, softmax_scale, 0.0, mask_heads=mask.heads, mods=mods, by_row=True
        )
        return out, lse, max_scores if return_max_scores else None

    def mods_backward(
        self,
        dout: Tensor | None,
        dlse: Tensor | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        mask: IntervalMask | Plan,
        thinned: Thinned | None,
        score: Traced | None,
        *,
        softmax_scale: float,
        deterministic: bool,
        needs: Sequence[bool],
        wanted: Sequence[bool],
    ) -> ModGradients:
        mods = BlockMods(score, thinned, reference.compute_dtype(q.dtype), wanted)
        bounds, needs = (mask.lo, mask.hi), (*needs, False)
        grads = reference.attention_backward(
            dout, dlse, q, k, v, out, lse, *bounds, None, softmax_scale, 0.0, needs, mask_heads=mask.heads, mods=mods
        )
        tensors = [] if score is None else score.tensors
        captured = [None if g is None else g.to(x.dtype) for g, x in zip(mods.gradients, tensors, strict=True)]
        return ModGradients(grads.q, grads.k, grads.v, captured)


@dataclass(frozen=True)
class _PreparedReference:
    """See `cute_attn.backends.interface.Prepared`. It allocates as it goes, and takes any strides."""

    backend: Reference
    plan: Plan
    softmax_scale: float
    softcap: float
    workspace_bytes: int = 0

    def fitted(self, name: str, x: Tensor) -> Tensor:
        return x

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, sink: Tensor | None) -> None:
        found, found_lse, _ = self.backend.forward(
            q,
            k,
            v,
            self.plan,
            sink,
            softmax_scale=self.softmax_scale,
            softcap=self.softcap,
            sm_margin=0,
            return_max_logits=False,
        )
        out.copy_(found)
        lse.copy_(found_lse)
