"""Tables of key tiles where the query heads that share a key head have planes of their own.

A CTA of the backward has one key tile of one key head, and walks the query tiles of all its query heads: one item then
holds the runs of each of them, which lie in the planes' table as they were.
"""

from __future__ import annotations

import torch

from cute_attn.mask.tiles import RunTable

__all__ = ["by_place", "idle_for_all", "items_of_key_heads"]


def by_place(table: RunTable, tiles: int) -> torch.Tensor:
    """The items of a table of `tiles` a plane, in the order of planes, then tiles."""
    return table.items[(table.items[:, 0].long() * tiles + table.items[:, 1]).argsort()]


def items_of_key_heads(table: RunTable, tiles: int, group: int, has_turns: bool) -> torch.Tensor:
    """The items of a transposed table for key heads of `group` query heads each.

    Returns int32 `(key planes * tiles, 4 + 3 * group)`: key plane (that of batch element b and key head h is
    `b * heads_k + h`), tile, n_partial, n_full of all its heads; then for each head partial_begin, full_begin, end.
    With turns they are in their order, last tile first, else longest first.
    """
    if tiles == 0:
        return table.items.new_empty(0, 4 + 3 * group)
    items = by_place(table, tiles).unflatten(0, (-1, group, tiles))
    items = items.transpose(1, 2).flatten(0, 1)  # (key planes * tiles, group, 7)
    place = torch.arange(len(items), device=items.device, dtype=items.dtype)
    counts = items[:, :, 5:].sum(1, dtype=items.dtype)
    where = torch.stack([place // tiles, place % tiles], 1)
    merged = torch.cat([where, counts, items[:, :, 2:5].flatten(1)], 1)
    first = merged[:, 1] if has_turns else counts.sum(1)
    return merged[first.argsort(descending=True, stable=True)].contiguous()


def idle_for_all(idle_keys: torch.Tensor, group: int) -> torch.Tensor:
    """Keys idle in every one of the query heads that share them: `(planes, tiles, 32)` as `(key planes, tiles, 32)`."""
    head, *others = idle_keys.unflatten(0, (-1, group)).unbind(1)
    for other in others:
        head = head & other
    return head
