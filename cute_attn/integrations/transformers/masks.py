"""The masks of transformers' layers, never as `(b, 1, s, s)`."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from transformers.masking_utils import and_masks, causal_mask_function, padding_mask_function, prepare_padding_mask

from ...mask import IntervalMask
from ...mods.block_mask import BlockMask
from ...mods.compare import NotIntervals
from ...mods.masks import create_block_mask, create_mask
from ...mods.trace import trace
from .functions import MaskFunction, Place, intervals_of, moved
from .layer_mask import LayerMask, TokenKeys

__all__ = ["layer_mask"]

CAPACITY = 32  # masks kept, with their plans
_kept: dict[Hashable, IntervalMask] = {}  # by what their functions say; the least recently used first


@torch.compiler.disable  # it looks at values
def layer_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    mask_function: MaskFunction = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    device: torch.device | str = "cpu",
    **unused: Any,
) -> LayerMask:
    """The entry of transformers' AttentionMaskInterface, which calls it once a forward for each kind of layer.

    Args:
        q_length, kv_length, q_offset, kv_offset: query i stands at `q_offset + i`, key j at `kv_offset + j`.
        mask_function: `mask_function(b, h, q, kv) -> bool` of these positions.
        attention_mask: None, or bool `(batch, length)` of all positions, False for padding; keys past it are padding.

    Raises ValueError for a mask_function that cannot be traced. One that is traced and is no intervals makes a
    BlockMask, which flex_attention serves.
    """
    place = Place(batch_size, q_length, kv_length, q_offset, kv_offset, torch.device(device))
    padding = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if padding is not None and bool(place.of_keys(padding).all()):
        padding = None
    attended: IntervalMask | TokenKeys | BlockMask
    if q_length == 1:
        sees = create_mask(_with_padding(mask_function, padding, place), batch_size, None, 1, kv_length, device)
        attended = TokenKeys.of(sees[:, 0, 0])
    else:
        try:
            attended = _intervals(mask_function, padding, place)
        except NotIntervals:
            function = _with_padding(mask_function, padding, place)
            attended = create_block_mask(function, batch_size, None, q_length, kv_length, device)
    return LayerMask(attended, batch_size, q_length, kv_length)


def _with_padding(function: MaskFunction, padding: torch.Tensor | None, place: Place) -> MaskFunction:
    """As one function of rows and columns."""
    return moved(function if padding is None else and_masks(function, padding_mask_function(padding)), place)


def _intervals(function: MaskFunction, padding: torch.Tensor | None, place: Place) -> IntervalMask:
    """Those of a function that captures no tensor are found again, with the plans that calls made of them."""
    traced = trace(moved(function, place), "mask_mod", place.device)
    key = traced.text, *traced.scalars, place.batch, place.rows, place.keys, place.device
    if traced.tensors:
        mask = intervals_of(function, place)
    else:
        found = _kept.pop(key, None)
        mask = _kept[key] = _outlasting(function, place) if found is None else found
        while len(_kept) > CAPACITY:
            _kept.pop(next(iter(_kept)), None)
    return mask if padding is None else mask & _not_padding(place.of_keys(padding), place.rows)


@torch.inference_mode(False)
def _outlasting(function: MaskFunction, place: Place) -> IntervalMask:
    """One that training may have from inference."""
    return intervals_of(function, place)


def _not_padding(keys: torch.Tensor, rows: int) -> IntervalMask:
    """keys: bool `(batch, keys)`, which all rows attend."""
    one = IntervalMask.from_dense(keys[:, None])
    lo, hi = (x.expand(-1, -1, rows) for x in (one.lo, one.hi))
    return IntervalMask.from_intervals(lo, hi, keys.shape[1])
