"""In which order key tiles, and the query tiles of each, are processed where sums of dQ have turns.

Key tiles are started last tile first: the order in which they are added (see `cute_attn.bwd.turns`). Each walks its
query tiles upwards, so that under a band two neighbours are a step apart. Partial tiles before full ones would not do:
where a window ends, a key tile has a partial tile behind its full ones, for which all its predecessors in turn would
have to have come to their ends. Where that is so, full tiles are processed among the partial ones, bounds tested.
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
    """The transposed table of a schedule in the order of turns; made once."""
    if schedule not in _tables:
        table = upwards(schedule.backward, schedule.layers)
        items = table.items[table.columns.tile.argsort(descending=True, stable=True)]
        _tables[schedule] = RunTable(items, table.runs)
    return _tables[schedule]


def upwards(table: RunTable, layers: int) -> RunTable:
    """The table with the query tiles of every key tile in ascending order.

    Key tiles with a partial tile behind a full one get all of them as partial; a mask of many layers tests all of its
    layers in what was full.
    """
    items, runs = ItemRow(*table.items.long().unbind(1)), table.run_columns
    begin, end, count = items.partial_begin, items.end, len(runs.begin)
    by_place = begin.argsort(stable=True)  # the runs of an item lie together, in no order of items
    owner = by_place.repeat_interleave((end - begin)[by_place], output_size=count)
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
