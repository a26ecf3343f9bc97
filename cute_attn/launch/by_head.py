"""Tables of key tiles where the query heads that share a key head have planes of their own.

A CTA of the backward has one key tile of one key head, and walks the query tiles of all its query heads: one item then
holds the runs of each of them, which lie in the planes' table as they were.
"""

from __future__ import annotations

import torch

from cute_attn.columns import ItemRow, KeyHeadRow
from cute_attn.mask.tiles import RunTable

__all__ = ["by_place", "idle_for_all", "items_of_key_heads"]


def by_place(table: RunTable, tiles: int) -> torch.Tensor:
    """The items of a table of `tiles` a plane, in the order of planes, then tiles."""
    columns = table.columns
    return table.items[(columns.plane.long() * tiles + columns.tile).argsort()]


def items_of_key_heads(table: RunTable, tiles: int, heads_per_key: int, has_turns: bool) -> torch.Tensor:
    """The items of a transposed table for key heads of `heads_per_key` query heads each.

    Returns int32 `(key planes * tiles, 4 + 3 * heads_per_key)`, see `cute_attn.columns.KeyHeadRow`; the key plane of
    batch element b and key head h is `b * heads_k + h`. With turns they are last tile first, else longest first.
    """
    if tiles == 0:
        return table.items.new_empty(0, len(KeyHeadRow._fields) + 3 * heads_per_key)
    items = by_place(table, tiles).unflatten(0, (-1, heads_per_key, tiles))
    items = ItemRow(*items.transpose(1, 2).flatten(0, 1).unbind(2))  # each (key planes * tiles, heads_per_key)
    place = torch.arange(len(items.tile), device=table.items.device, dtype=torch.int32)
    counts = (count.sum(1, dtype=torch.int32) for count in (items.n_partial, items.n_full))
    merged = KeyHeadRow(place // tiles, place % tiles, *counts)
    ends = torch.stack([items.partial_begin, items.full_begin, items.end], 2).flatten(1)
    first = merged.tile if has_turns else merged.n_partial + merged.n_full
    return torch.cat([torch.stack(merged, 1), ends], 1)[first.argsort(descending=True, stable=True)]


def idle_for_all(idle_keys: torch.Tensor, heads_per_key: int) -> torch.Tensor:
    """Keys idle in every one of the query heads that share them: `(planes, tiles, 32)` as `(key planes, tiles, 32)`."""
    head, *others = idle_keys.unflatten(0, (-1, heads_per_key)).unbind(1)
    for other in others:
        head = head & other
    return head
