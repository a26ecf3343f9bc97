"""What describes a mask until somebody reads it: a kind, tensors and numbers, as they travel into a custom op."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch

from .intervals import IntervalMask
from .window import windowed_documents

__all__ = ["MaskSource"]


class MaskSource(NamedTuple):
    """kind         first, second, third
    "slices"     q_ranges, k_ranges, attn_type_map or None
    "documents"  cu_seqlens_q, cu_seqlens_k, None; with the window (left, right), see `windowed_documents`
    "window"     None, None, None; the same as one document
    "intervals"  lo, hi of an IntervalMask that is made inside a compiled function, None; with its heads
    """

    kind: str
    first: torch.Tensor | None = None
    second: torch.Tensor | None = None
    third: torch.Tensor | None = None
    window_left: int = -1
    window_right: int = -1
    heads: int = 1

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [t for t in (self.first, self.second, self.third) if t is not None]

    def content(self) -> bytes:
        """A digest of all that makes the mask but its lengths; equal for tensors of other dtypes that mean the same."""
        digest = hashlib.blake2b(repr((self.kind, self.window_left, self.window_right)).encode(), digest_size=16)
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
        first, second = self.tensors[:2]
        if self.kind == "documents":
            return windowed_documents(first.to(device), second, seqlen_q, seqlen_k, *window)
        if self.kind == "slices":
            return IntervalMask.from_slices(first, second, self.third, seqlen_q, seqlen_k, device)
        return IntervalMask._made(first.to(device), second.to(device), seqlen_k, self.heads)
