"""Caches of keys and values, contiguous or in pages: where a position lies, and how new keys and values are written.

A contiguous cache `(rows, s, heads_k, d)` is one of rows as pages: position p of a sequence lies at p of its row. A
pool `(num_pages, page_size, heads_k, d)` has a table of pages. What lies beyond a length is never read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .autocast import without_autocast

__all__ = ["EIGHT_BITS", "KVCache", "append", "quantise"]

Tensor = torch.Tensor

# Of the 8-bit caches: the smallest and the largest number, and what the largest of a row becomes.
EIGHT_BITS = {
    torch.int8: (-128.0, 127.0, 127.0),
    torch.float8_e4m3fn: (-448.0, 448.0, 448.0),
    torch.float8_e5m2: (-57344.0, 57344.0, 57344.0),
}


@dataclass(frozen=True)
class KVCache:
    """A cache and the sequences in it, checked.

    keys, values: `(pages, page_size, heads_k, d or dv)`, any strides; a contiguous cache has rows as pages.
    lengths: int32 `(b,)`, how many keys each sequence has.
    rows: int32 `(b,)`, the row of each sequence of a contiguous cache; None for row i of sequence i.
    table: int32 `(b, max_pages)`, the pages of each sequence; None for a contiguous cache.
    key_scales, value_scales: what numbers of 8 bits are multiplied with: 0-d, `(b, heads_k)` or for each token
        `(pages, page_size, heads_k)`; None for 1.
    """

    keys: Tensor
    values: Tensor
    lengths: Tensor
    rows: Tensor | None = None
    table: Tensor | None = None
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None

    @property
    def capacity(self) -> int:
        """Positions that a sequence may have."""
        return self.keys.shape[1] * (1 if self.table is None else self.table.shape[1])

    def places(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Page, token within it and whether it is there at all, of positions int64 `(b, n)`; no value is read back."""
        page_size = self.keys.shape[1]
        there = (positions >= 0) & (positions < self.capacity)
        if self.table is None:
            rows = torch.arange(len(positions), device=positions.device) if self.rows is None else self.rows.long()
            page, within = rows[:, None].expand_as(positions), positions
        else:
            column = (positions // page_size).clamp(0, self.table.shape[1] - 1)
            page, within = self.table.long().gather(1, column), positions % page_size
        return page, within, there & (page >= 0) & (page < self.keys.shape[0])


def quantise(x: Tensor, dtype: torch.dtype, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """x `(..., d)` in 8 bits, saturated, and the scale of each row: the given one, else largest of it over largest of
    the dtype, 1 for a row of zeros."""
    low, high, largest = EIGHT_BITS[dtype]
    if scale is None:
        scale = x.abs().amax(-1) / largest
        scale = torch.where(scale == 0, 1.0, scale)
    scaled = (x / scale[..., None]).clamp(low, high)
    return (scaled.round() if dtype == torch.int8 else scaled).to(dtype), scale


@without_autocast
def append(k: Tensor, v: Tensor, cache: KVCache) -> None:
    """Writes k `(b, n, heads_k, d)` and v behind each sequence, in 8 bits where the cache is; scales of tokens too.

    A position past the capacity and one whose page is none of the pool is written nowhere. Nothing is read back to the
    host.
    """
    if k.numel() == 0 or cache.keys.numel() == 0 or cache.capacity == 0:
        return
    steps = torch.arange(k.shape[1], device=k.device)
    places = _written(*cache.places(cache.lengths.long()[:, None] + steps))
    for new, target, scales in ((k, cache.keys, cache.key_scales), (v, cache.values, cache.value_scales)):
        if target.dtype in EIGHT_BITS:
            wide = new.to(torch.promote_types(new.dtype, torch.float32))
            given = _scale_of_rows(scales, wide)
            new, found = quantise(wide, target.dtype, given)
            if given is None and scales is not None:
                _write(scales, found.to(scales.dtype), *places)
            new, target = new.view(torch.uint8), target.view(torch.uint8)
        _write(target, new, *places)


def _scale_of_rows(scales: Tensor | None, new: Tensor) -> Tensor | None:
    """The given scale of each row of new `(b, n, heads_k, d)`; None where it is to be found."""
    if scales is None:
        return new.new_ones(()).expand(new.shape[:3])
    if scales.ndim == 3:
        return None
    scales = scales.to(new.dtype)
    return (scales[:, None] if scales.ndim == 2 else scales).expand(new.shape[:3])


def _written(page: Tensor, within: Tensor, there: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Page and token of each write, the number of what is written there, and whether anything is, `(1,)`; the device is
    not asked how much that is.

    What is not there repeats one that is, so that no two writes of one place differ; where none is there, all go to the
    place (0, 0).
    """
    page, within, there = page.flatten(), within.flatten(), there.flatten()
    one = there.int().argmax(0, keepdim=True)  # an index of no dimensions would be read by the host
    number = torch.where(there, torch.arange(len(there), device=there.device), one)
    is_any = there[one]
    page, within = (torch.where(is_any, x[number], 0) for x in (page, within))
    return page, within, number, is_any


def _write(target: Tensor, values: Tensor, page: Tensor, within: Tensor, number: Tensor, is_any: Tensor) -> None:
    """`target[page, within] = values`, of places as `_written` gives them: (0, 0) gets what it has if none is there."""
    values = values.flatten(0, 1)[number]
    is_any = is_any.view(1, *[1] * (values.ndim - 1))
    target.index_put_((page, within), torch.where(is_any, values, target[0, 0]))
