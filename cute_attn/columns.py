"""The columns of the tables that kernels walk, by name: see `cute_attn.mask.tiles.RunTable`.

A row, or all rows of a table, are taken apart by `ItemRow(*...)`, on the host and on the device alike.
"""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["ItemRow", "KeyHeadRow", "RunRow", "TurnRow"]


class ItemRow(NamedTuple):
    """A tile of a plane, where its runs of tiles of the other side are, and how many tiles are in them.

    Its partial runs are number partial_begin to full_begin, its full ones full_begin to end.
    """

    plane: Any
    tile: Any
    partial_begin: Any
    full_begin: Any
    end: Any
    n_partial: Any
    n_full: Any


class KeyHeadRow(NamedTuple):
    """The same for a key head whose query heads have planes of their own; behind it, in the row, partial_begin,
    full_begin and end of each of them. The counts are those of all."""

    key_plane: Any
    tile: Any
    n_partial: Any
    n_full: Any


class RunRow(NamedTuple):
    """Tiles [begin, end), and the layers [layer_begin, layer_end) that meet them if they are partial."""

    begin: Any
    end: Any
    layer_begin: Any
    layer_end: Any


class TurnRow(NamedTuple):
    """Where the runs of key tiles of a query tile are, how many it attends beside the last one, and how many of these
    add to its sum of dQ before the last one does."""

    begin: Any
    end: Any
    others: Any
    before_last: Any
