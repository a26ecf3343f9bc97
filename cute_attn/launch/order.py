"""In which order key tiles are started, and their query tiles processed, where sums of dQ have turns.

Key tiles add to a sum first key tile first (see `cute_attn.bwd.turns`), and each walks its query tiles downwards
(`cute_attn.bwd.walk`): under a causal mask and under a band two neighbours are a step apart, and nobody waits for one
who is not at work. Full tiles before partial ones would not do where a window ends: there a key tile has a partial tile
above its full ones, for which all its successors in turn would have to wait until it has come to its end. Where that is
so, full tiles are processed among the partial ones, bounds tested.

Where query heads have planes of their own each has its own walk, upwards, and key tiles are last tile first: see
`cute_attn.launch.by_head`.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch

from cute_attn.columns import ItemRow
from cute_attn.mask import TileSchedule
from cute_attn.mask.tiles import RunTable

__all__ = ["in_turns", "upwards"]

_tables: WeakKeyDictionary[TileSchedule, RunTable] = WeakKeyDictionary()


def in_turns(schedule: TileSchedule) -> RunTable:
    """The transposed table of a schedule, its items in the order in which they start; made once."""
    if schedule not in _tables:
        table = upwards(schedule.backward, schedule.layers)
        items = table.items[table.columns.tile.argsort(stable=True)]
        columns = ItemRow(*items.unbind(1))
        tiles = (columns.n_partial + columns.n_full).masked_fill(_some_grow(schedule), 0)
        _tables[schedule] = RunTable(items[tiles.argsort(descending=True, stable=True)], table.runs)
    return _tables[schedule]


def _some_grow(schedule: TileSchedule) -> torch.Tensor:
    """Whether a key tile has more tiles than one before it that some query tile attends too: a bool, 0-d.

    If none has, they may start longest first, and still wait for none that starts after them.
    """
    of_keys, of_queries = schedule.backward.columns, ItemRow(*schedule.forward.items.long().unbind(1))
    size = of_keys.tile.new_zeros(schedule.planes * schedule.k_tiles)
    size[of_keys.plane.long() * schedule.k_tiles + of_keys.tile] = of_keys.n_partial + of_keys.n_full
    runs = schedule.forward.run_columns
    owner = _owners(of_queries, len(runs.begin))
    order = runs.begin.argsort(stable=True)
    order = order[owner[order].argsort(stable=True)]
    owner, offset = owner[order], of_queries.plane[owner[order]] * schedule.k_tiles
    first, last = offset + runs.begin[order], offset + runs.end[order] - 1
    growths = torch.cat([size.new_zeros(1), size[1:] > size[:-1]]).cumsum(0)
    inside = growths[last] > growths[first]
    between = (size[last[:-1]] < size[first[1:]]) & (owner[1:] == owner[:-1])
    return inside.any() | between.any()


def _owners(items: ItemRow, count: int) -> torch.Tensor:
    """The item of each of so many runs: those of an item lie together, in no order of items."""
    by_place = items.partial_begin.argsort(stable=True)
    return by_place.repeat_interleave((items.end - items.partial_begin)[by_place], output_size=count)


def upwards(table: RunTable, layers: int) -> RunTable:
    """The table with the query tiles of every key tile in ascending order.

    Key tiles with a partial tile behind a full one get all of them as partial; a mask of many layers tests all of its
    layers in what was full.
    """
    items, runs = ItemRow(*table.items.long().unbind(1)), table.run_columns
    begin, end, count = items.partial_begin, items.end, len(runs.begin)
    owner = _owners(items, count)
    full = torch.arange(count, device=begin.device) >= items.full_begin[owner]
    never = torch.iinfo(torch.int64).max
    last_partial, first_full = torch.full_like(begin, -1), torch.full_like(begin, never)
    last_partial = last_partial.scatter_reduce(0, owner, runs.end.long().masked_fill(full, -1), "amax")
    first_full = first_full.scatter_reduce(0, owner, runs.begin.long().masked_fill(~full, never), "amin")
    mixed = last_partial > first_full
    full, tested = full & ~mixed[owner], full & mixed[owner]
    tests = runs._replace(
        layer_begin=runs.layer_begin.masked_fill(tested, 0), layer_end=runs.layer_end.masked_fill(tested, layers)
    )
    order = runs.begin.argsort(stable=True)
    for key in (full, begin[owner]):  # least significant first
        order = order[key[order].argsort(stable=True)]
    walked = items._replace(
        full_begin=torch.where(mixed, end, items.full_begin),
        n_partial=torch.where(mixed, items.n_partial + items.n_full, items.n_partial),
        n_full=items.n_full.masked_fill(mixed, 0),
    )
    return RunTable(torch.stack(walked, 1).int(), torch.stack(tests, 1)[order])
