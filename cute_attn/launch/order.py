"""In which order key tiles, and the query tiles of each, are processed where sums of dQ have turns.

Key tiles are started last tile first: the order in which they are added (see `cute_attn.bwd.turns`). Each walks its
query tiles upwards, so that under a band two neighbours are a step apart. Partial tiles before full ones would not do:
where a window ends, a key tile has a partial tile behind its full ones, for which all its predecessors in turn would
have to have come to their ends. Where that is so, full tiles are processed among the partial ones, bounds tested.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch

from cute_attn.mask import TileSchedule
from cute_attn.mask.tiles import RunTable

__all__ = ["in_turns", "upwards"]

_tables: WeakKeyDictionary[TileSchedule, RunTable] = WeakKeyDictionary()


def in_turns(schedule: TileSchedule) -> RunTable:
    """The transposed table of a schedule in the order of turns; made once."""
    if schedule not in _tables:
        table = upwards(schedule.backward, schedule.layers)
        items = table.items[table.items[:, 1].argsort(descending=True, stable=True)]
        _tables[schedule] = RunTable(items, table.runs)
    return _tables[schedule]


def upwards(table: RunTable, layers: int) -> RunTable:
    """The table with the query tiles of every key tile in ascending order.

    Key tiles with a partial tile behind a full one get all of them as partial; a mask of many layers tests all of its
    layers in what was full.
    """
    items, runs = table.items.long(), table.runs.clone()
    begin, full_begin, end = items[:, 2:5].unbind(1)
    by_place = begin.argsort(stable=True)  # the runs of an item lie together, in no order of items
    owner = by_place.repeat_interleave((end - begin)[by_place])
    full = torch.arange(len(runs), device=runs.device) >= full_begin[owner]
    last_partial, first_full = items.new_full((2, len(items)), -1)
    last_partial = last_partial.scatter_reduce(0, owner[~full], runs[~full, 1].long(), "amax")
    first_full = first_full.fill_(torch.iinfo(torch.int64).max)
    first_full = first_full.scatter_reduce(0, owner[full], runs[full, 0].long(), "amin")
    mixed = last_partial > first_full
    full, tested = full & ~mixed[owner], full & mixed[owner]
    runs[tested, 2:] = torch.tensor([0, layers], dtype=runs.dtype, device=runs.device)
    order = runs[:, 0].argsort(stable=True)
    for key in (full, begin[owner]):  # least significant first
        order = order[key[order].argsort(stable=True)]
    n_partial, n_full = items[:, 5], items[:, 6]
    items[:, 3] = torch.where(mixed, end, full_begin)
    items[:, 5:] = torch.stack([torch.where(mixed, n_partial + n_full, n_partial), n_full.masked_fill(mixed, 0)], 1)
    return RunTable(items.int(), runs[order].contiguous())
