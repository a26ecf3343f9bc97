"""transformers' mask functions as intervals.

A mask comes as a function of (batch, head, query, key), put together by factories of transformers. They are taken apart
where that says what reading the function as a whole cannot say as fast: which tokens are of one document, or of one
image. Everything else is read as any mask_mod is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from operator import and_, or_
from typing import Any, NamedTuple

import torch
from transformers import masking_utils

from ...mask import IntervalMask, documents
from ...mods.compare import NotIntervals
from ...mods.recognise import recognise
from ...mods.trace import trace

__all__ = ["Place", "intervals_of", "moved"]

MaskFunction = Callable[..., Any]


class Place(NamedTuple):
    """Rows i of a mask are the queries at `q_offset + i`, its columns j the keys at `kv_offset + j`."""

    batch: int
    rows: int
    keys: int
    q_offset: int | torch.Tensor  # a tensor where a static cache counts on the device
    kv_offset: int
    device: torch.device

    def of_queries(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.device)[:, torch.arange(self.rows, device=self.device) + self.q_offset]

    def of_keys(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.device)[:, self.kv_offset : self.kv_offset + self.keys]


def moved(function: MaskFunction, place: Place) -> MaskFunction:
    """The function of rows and columns of the mask."""

    def of_indices(b: Any, h: Any, q: Any, kv: Any) -> Any:
        return function(b, h, q + place.q_offset, kv + place.kv_offset)

    return of_indices


def intervals_of(function: MaskFunction, place: Place, in_documents: bool = False) -> IntervalMask:
    """The mask of a function. Raises NotIntervals where some part of it is none.

    in_documents: what is found need only be right for pairs of one document: the positions of packed documents rise by
        one from token to token within each.
    """
    factory, made_with = _made_by(function)
    if factory == "and_masks":
        parts = made_with["mask_functions"]
        inside = in_documents or any(_made_by(part)[0] == "packed_sequence_mask_function" for part in parts)
        return reduce(and_, (intervals_of(part, place, inside) for part in parts))
    if factory == "or_masks":
        return reduce(or_, (intervals_of(part, place, in_documents) for part in made_with["mask_functions"]))
    if factory == "packed_sequence_mask_function":
        ids = made_with["packed_sequence_mask"]
        return _equal(place.of_queries(ids), place.of_keys(ids), place)
    if factory == "blockwise_overlay":
        ids = made_with["block_sequence_ids"]
        queries = place.of_queries(ids)
        return _equal(queries.masked_fill(queries < 0, -2), place.of_keys(ids).clamp(min=-1), place)
    if factory == "remap_positions_for_packed_sequence" and in_documents:
        function = _within_documents(made_with["mask_function"], made_with["position_ids"])
    return _read(moved(function, place), place)


def _made_by(function: MaskFunction) -> tuple[str, dict[str, Any]]:
    """The factory of transformers that made a function, and what it was given; "" where none did."""
    if getattr(function, "__module__", None) != masking_utils.__name__ or not function.__closure__:
        return "", {}
    cells = zip(function.__code__.co_freevars, function.__closure__, strict=True)
    return function.__qualname__.partition(".")[0], {name: cell.cell_contents for name, cell in cells}


def _within_documents(function: MaskFunction, position_ids: torch.Tensor) -> MaskFunction:
    """A function of positions as one of indices, for pairs of one document: there both differ by one number."""
    index = torch.arange(position_ids.shape[1], device=position_ids.device)
    ahead = position_ids - index

    def of_indices(b: Any, h: Any, q: Any, kv: Any) -> Any:
        return function(b, h, q + ahead[b, q], kv + ahead[b, q])

    return of_indices


def _equal(queries: torch.Tensor, keys: torch.Tensor, place: Place) -> IntervalMask:
    return documents(place.rows, place.keys, segment_ids=queries, segment_ids_k=keys)


def _read(function: MaskFunction, place: Place) -> IntervalMask:
    traced = trace(function, "mask_mod", place.device)
    found = recognise(traced, place.rows, place.keys, place.batch, 1, place.device)
    if found.predicate is not None:
        raise NotIntervals(found.reason)
    return found.intervals
