"""What describes a mask until somebody reads it: a kind, tensors and numbers, as they travel into a custom op."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import torch

from .intervals import IntervalMask
from .layer import Reach, cache_mask, token_mask
from .thinned import thin
from .window import windowed_documents

__all__ = ["MaskSource"]


class MaskSource(NamedTuple):
    """kind          first, second, third
    "slices"        q_ranges, k_ranges, attn_type_map or None
    "documents"     cu_seqlens_q, cu_seqlens_k, None; with the window (left, right), see `windowed_documents`
    "window"        None, None, None; the same as one document
    "intervals"     lo, hi of an IntervalMask that is made inside a compiled function, None; with its heads
    "chosen"        the same, of a mask that the values of a call chose: it will not come again, and is not kept
    "thinned", "marked"  lo and hi of an IntervalMask, stacked; the same of those of its pairs that a predicate cannot
                    take away; bool `(planes, rows + keys)`, which rows attend and which keys are attended at all;
                    "marked" where the predicate may be false in the second; with their heads
    "tokens"        segment ids or None, bidirectional mask or None, None; see `layer.token_mask`, and `layer.Reach` for
                    window and chunk; the first row stands at offset
    "active"        the same, where the id 1 attends
    "prefill", "decode"  segment ids of both caches or None, lengths or None; this one of two caches, the other one
                    offset long; see `layer.cache_mask`
    """

    kind: str
    first: torch.Tensor | None = None
    second: torch.Tensor | None = None
    third: torch.Tensor | None = None
    window_left: int = -1
    window_right: int = -1
    heads: int = 1
    chunk: int = 0
    offset: int = 0

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [t for t in self[1:4] if t is not None]

    @property
    def form(self) -> tuple[object, ...]:
        """All but the tensors, and which of them are there."""
        return self.kind, self.first is None, self.second is None, self.third is None, *self[4:]

    @property
    def planes(self) -> int:
        """Of the mask: those of intervals, one for each batch element where that is told, else 1."""
        if self.kind in _THINNED:
            return self.tensors[0].shape[1]
        batched = self.kind in ("intervals", "chosen", "tokens", "active", "prefill", "decode")
        return self.tensors[0].shape[0] if batched and self.tensors else 1

    def holding(self, tensors: Iterable[torch.Tensor]) -> MaskSource:
        """The same with others in the places of its tensors."""
        others = iter(tensors)
        first, second, third = (t if t is None else next(others) for t in self[1:4])
        return self._replace(first=first, second=second, third=third)

    def content(self) -> bytes:
        """A digest of all that makes the mask but its lengths; equal for tensors of other dtypes that mean the same."""
        digest = hashlib.blake2b(repr(self.form).encode(), digest_size=16)
        for tensor in self.tensors:
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(tensor.long().cpu().contiguous().numpy().tobytes())
        return digest.digest()

    def build(self, seqlen_q: int, seqlen_k: int, device: torch.device) -> IntervalMask:
        """The mask, on `device`. It keeps none of the tensors, unless they are intervals.

        Raises ValueError where the contents are wrong: ranges out of bounds, lengths that fall.
        """
        window = self.window_left, self.window_right
        if self.kind == "window":
            queries, keys = (torch.tensor([0, n], device=device) for n in (seqlen_q, seqlen_k))
            return windowed_documents(queries, keys, seqlen_q, seqlen_k, *window)
        if self.kind in ("tokens", "active", "prefill", "decode"):
            first, second, third = (t if t is None else t.to(device, torch.int64) for t in self[1:4])
            reach = Reach(*window, self.chunk)
            if self.kind in ("tokens", "active"):
                is_active = self.kind == "active"
                return token_mask(first, second, seqlen_q, seqlen_k, self.offset, reach, device, is_active=is_active)
            is_decode = self.kind == "decode"
            return cache_mask(first, second, third, seqlen_q, seqlen_k, self.offset, reach, device, is_decode=is_decode)
        first, second = self.tensors[:2]
        if self.kind == "documents":
            return windowed_documents(first.to(device), second, seqlen_q, seqlen_k, *window)
        if self.kind == "slices":
            q, k = (x.to(device, torch.int64) for x in (first, second))
            types = torch.zeros_like(q[:, 0]) if self.third is None else self.third.to(device, torch.int64)
            return IntervalMask._of_slices(q, k, types, seqlen_q, seqlen_k)
        if self.kind not in _THINNED:
            return IntervalMask._made(first.to(device), second.to(device), seqlen_k, self.heads)
        mask, certain = (
            IntervalMask._made(x[0], x[1], seqlen_k, self.heads) for x in (first.to(device), second.to(device))
        )
        rows, keys = self.tensors[2].to(device).split((seqlen_q, seqlen_k), 1)
        return thin(mask, certain, rows, keys, holds=self.kind == "thinned")

    def build_from_host(self, seqlen_q: int, seqlen_k: int, device: torch.device) -> IntervalMask:
        """`build` of tensors on the CPU, which does not wait for a GPU."""
        if self.kind in ("intervals", "chosen", *_THINNED):
            return self.build(seqlen_q, seqlen_k, device)
        return self.build(seqlen_q, seqlen_k, torch.device("cpu")).to(device)

    @classmethod
    def of_mask(cls, mask: IntervalMask) -> MaskSource:
        """Of a mask that is there, thinned or not."""
        thinning = mask._thinning
        if thinning is None:
            return cls("intervals", mask.lo, mask.hi, heads=mask.heads)
        ends = torch.stack([mask.lo, mask.hi])
        certain = thinning.certain
        certain_ends = ends[:, :, :0] if certain is None else torch.stack([certain.lo, certain.hi])
        attended = torch.cat([(mask.lo < mask.hi).any(1), ~thinning.idle_keys], 1)
        return cls("marked" if thinning.is_marked else "thinned", ends, certain_ends, attended, heads=mask.heads)


_THINNED = ("thinned", "marked")
