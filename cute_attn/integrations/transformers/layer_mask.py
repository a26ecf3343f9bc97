"""What transformers carries from where it makes a mask to its attention layers, in the place of `(b, 1, s, s)`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn.attention.flex_attention import BlockMask as TorchBlockMask

from ...mask import IntervalMask
from ...mask.checks import shown
from ...mods.block_mask import BlockMask

__all__ = ["LayerMask", "TokenKeys", "as_attention_mask"]


class TokenKeys(NamedTuple):
    """The keys that one token of each sequence attends.

    sees: bool `(batch, keys)`. lengths: int32 `(batch,)`, how many it attends. order: int32 `(batch, keys)`, the
    attended ones first; None where they are the first ones of every sequence.
    """

    sees: torch.Tensor
    lengths: torch.Tensor
    order: torch.Tensor | None

    @classmethod
    def of(cls, sees: torch.Tensor) -> TokenKeys:
        lengths = sees.sum(1, dtype=torch.int32)
        first = torch.arange(sees.shape[1], device=sees.device) < lengths[:, None]
        is_prefix = bool((first == sees).all())
        return cls(sees, lengths, None if is_prefix else sees.int().argsort(dim=1, descending=True, stable=True).int())

    def intervals(self) -> IntervalMask:
        return IntervalMask.from_dense(self.sees[:, None])

    def to(self, device: torch.device) -> TokenKeys:
        order = None if self.order is None else self.order.to(device)
        return TokenKeys(self.sees.to(device), self.lengths.to(device), order)


class LayerMask(TorchBlockMask):
    """Which keys the queries of a layer attend. transformers hands on untouched what is a BlockMask of PyTorch's, and
    asks it for nothing but a shape of four numbers.

    Args:
        attended: an IntervalMask; TokenKeys where there is one query a sequence; or a BlockMask of ours where the mask
            is no intervals.
        batch, rows, keys: of the tensors that it is for.
    """

    def __init__(self, attended: IntervalMask | TokenKeys | BlockMask, batch: int, rows: int, keys: int) -> None:
        self.attended, self.size = attended, (batch, 1, rows, keys)
        self._elsewhere: dict[torch.device, LayerMask] = {}

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """batch, 1 for all heads, queries and keys."""
        return self.size

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> LayerMask:
        """On another device, for the layers of a model that is spread over several; made once a device."""
        place = torch.device(device)
        mine = self.attended.sees.device if isinstance(self.attended, TokenKeys) else self.attended.device
        if place == mine or (place.index is None and place.type == mine.type):
            return self
        if place not in self._elsewhere:
            batch, _, rows, keys = self.size
            self._elsewhere[place] = LayerMask(self.attended.to(place), batch, rows, keys)
        return self._elsewhere[place]

    def __repr__(self) -> str:
        return f"LayerMask({self.attended!r})"

    __str__ = __repr__  # PyTorch's reads blocks, which there are none of

    def __reduce__(self) -> tuple[type[LayerMask], tuple[Any, ...]]:
        batch, _, rows, keys = self.size
        return LayerMask, (self.attended, batch, rows, keys)


def as_attention_mask(mask: IntervalMask | BlockMask) -> Any:
    """A mask of the user's own as the attention_mask of a model under `attn_implementation="cute_attn"`, which all of
    its layers attend under.

    mask: of as many queries and keys as the call has, on its device; an IntervalMask of batch 1 or the call's, or a
        BlockMask. It keeps its plans: made once, it serves any number of calls.

    Raises TypeError for anything else.
    """
    if isinstance(mask, IntervalMask):
        return LayerMask(mask, mask.batch, mask.seqlen_q, mask.seqlen_k)
    if isinstance(mask, BlockMask):
        return LayerMask(mask, mask.reading().intervals.batch, *mask.seq_lengths)
    raise TypeError(f"mask must be an IntervalMask or a BlockMask of cute_attn, got {shown(mask)}")
