"""In which order key tiles are started, and their query tiles processed, where sums of dQ have turns.

Key tiles start longest first, add to each sum in the order in which they start (see `cute_attn.bwd.turns`), and walk
their query tiles downwards (`cute_attn.bwd.walk`): under a causal mask and under a band two neighbours are a step
apart, and nobody waits for one who is not at work. Full tiles before partial ones would not do where a window ends:
there a key tile has a partial tile above its full ones, for which all its successors in turn would have to wait until
it has come to its end. Where that is so, full tiles are processed among the partial ones, bounds tested.

Kernels count turns. So of the key tiles that a query tile attends all but the last must start in ascending order; the
last may start at any time. It does so among packed causal documents, where a query tile with the end of one and the
beginning of the next attends all key tiles of the one, and of the next the first, which is the longest. That one comes
to such query tiles at its end and the others at their beginning: where they are behind it in turn, it visits them
first. Where more is out of order, all start in ascending order.

Where query heads have planes of their own each has its own walk, upwards, and key tiles are last tile first: see
`cute_attn.launch.by_head`.
"""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch

from cute_attn.columns import ItemRow, RunRow, TurnRow
from cute_attn.mask import TileSchedule
from cute_attn.mask.tiles import RunTable

__all__ = ["InTurns", "in_turns", "upwards"]


class InTurns(NamedTuple):
    """table: the transposed table of a schedule, its items in the order in which they start.

    turns: for each query tile what `cute_attn.columns.TurnRow` names, int32 `(planes, q_tiles, 4)`.
    """

    table: RunTable
    turns: torch.Tensor


_made: WeakKeyDictionary[TileSchedule, InTurns] = WeakKeyDictionary()


def in_turns(schedule: TileSchedule) -> InTurns:
    """The order of a schedule; made once."""
    if schedule not in _made:
        _made[schedule] = _ordered(schedule)
    return _made[schedule]


def _ordered(schedule: TileSchedule) -> InTurns:
    attended, columns = _Attended.of(schedule), ItemRow(*schedule.backward.items.long().unbind(1))
    place = columns.plane * schedule.k_tiles + columns.tile
    rank = torch.where(attended.ascends(rank := _longest_first(schedule, place)), rank, _first_tile_first(schedule))
    others, before_last = attended.turns_of_last(rank)
    queries = ItemRow(*schedule.forward.items.long().unbind(1))
    rows = torch.empty(len(queries.tile), len(TurnRow._fields), dtype=torch.int32, device=rank.device)
    group = queries.plane * schedule.q_tiles + queries.tile
    rows[group] = torch.stack(TurnRow(queries.partial_begin, queries.end, others[group], before_last[group]), 1).int()
    # Of each key tile, the query tile before which its runs come first.
    early, tile = before_last < others, torch.arange(len(others), device=rank.device) % max(1, schedule.q_tiles)
    ahead = rank.new_zeros(len(rank) + 1)
    ahead = ahead.scatter_reduce(0, torch.where(early, attended.last, len(rank)), tile + 1, "amax")
    table = upwards(schedule.backward, schedule.layers, ahead[place])
    items = table.items[rank[place].argsort()]
    return InTurns(RunTable(items, table.runs), rows.view(schedule.planes, schedule.q_tiles, len(TurnRow._fields)))


def _longest_first(schedule: TileSchedule, place: torch.Tensor) -> torch.Tensor:
    """The rank of each key tile of each plane. Of equal ones those that begin a document come first, last ones before:
    their query tiles are the first that all walk who share them."""
    columns = schedule.backward.columns
    size = torch.empty_like(place).scatter(0, place, (columns.n_partial + columns.n_full).long())
    by_plane = size.view(schedule.planes, schedule.k_tiles)
    begins = torch.diff(by_plane, dim=1, prepend=by_plane[:, :1]) > 0
    tile = torch.arange(schedule.k_tiles, device=place.device)
    tie = torch.where(begins, -tile, tile).view(-1)
    return _ranks((tie - size * 2 * schedule.k_tiles).argsort(stable=True))


def _first_tile_first(schedule: TileSchedule) -> torch.Tensor:
    tile = torch.arange(schedule.k_tiles, device=schedule.backward.items.device)
    return _ranks(tile.repeat(schedule.planes).argsort(stable=True))


def _ranks(order: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=order.device))


class _Attended(NamedTuple):
    """Runs of key tiles that query tiles attend, ascending, without the last one of each query tile.

    Key tiles are numbered over all planes. group: the query tile of a run, likewise. begin, end: of a run; one that has
    the last key tile alone is empty. last: of each query tile, -1 if it attends none.
    """

    group: torch.Tensor
    begin: torch.Tensor
    end: torch.Tensor
    last: torch.Tensor

    @classmethod
    def of(cls, schedule: TileSchedule) -> _Attended:
        items, runs = ItemRow(*schedule.forward.items.long().unbind(1)), schedule.forward.run_columns
        owner = _owners(items, len(runs.begin))
        order = (owner * (schedule.k_tiles + 1) + runs.begin).argsort()
        owner = owner[order]
        group, offset = items.plane * schedule.q_tiles + items.tile, items.plane * schedule.k_tiles
        group, offset = group[owner], offset[owner]
        begin, end = offset + runs.begin[order], offset + runs.end[order]
        last = begin.new_full((schedule.planes * schedule.q_tiles,), -1).scatter_reduce(0, group, end - 1, "amax")
        return cls(group, begin, end - (end - 1 == last[group]).long(), last)

    def ascends(self, rank: torch.Tensor) -> torch.Tensor:
        """Whether the runs of every query tile start in ascending order: a bool, 0-d."""
        falls = _falls(rank)
        there, final = self.end > self.begin, (self.end - 1).clamp(min=0)
        inside = there & (falls[final] > falls[self.begin])
        same = there[1:] & (self.group[1:] == self.group[:-1])
        between = same & (rank[self.begin[1:]] < rank[final[:-1]])
        return ~(inside.any() | between.any())

    def turns_of_last(self, rank: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """For each query tile: how many key tiles it attends beside the last one, and how many start before that."""
        falls, length = _falls(rank), self.end - self.begin
        sought = falls[self.begin] * len(rank) + rank[self.last[self.group]]
        earlier = torch.searchsorted(falls * len(rank) + rank, sought) - self.begin  # a run has no fall
        none = torch.zeros_like(self.last)
        earlier = torch.minimum(earlier.clamp(min=0), length)
        return none.index_add(0, self.group, length), none.index_add(0, self.group, earlier)


def _falls(rank: torch.Tensor) -> torch.Tensor:
    """How often the rank falls up to each key tile."""
    return torch.diff(rank, prepend=rank[:1]).lt(0).cumsum(0)


def _owners(items: ItemRow, count: int) -> torch.Tensor:
    """The item of each of so many runs: those of an item lie together, in no order of items."""
    by_place = items.partial_begin.argsort(stable=True)
    return by_place.repeat_interleave((items.end - items.partial_begin)[by_place], output_size=count)


def upwards(table: RunTable, layers: int, ahead: torch.Tensor | None = None) -> RunTable:
    """The table with the query tiles of every key tile in ascending order, but that those before number `ahead` of its
    item come last: who walks downwards then has them first. Each item has a run more, empty or cut off another there;
    a table without runs, for which no kernel is launched, stays so.

    Key tiles with a partial tile behind a full one get all of them as partial; a mask of many layers tests all of its
    layers in what was full.
    """
    if len(table.runs) == 0:
        return table
    items, runs = ItemRow(*table.items.long().unbind(1)), RunRow(*table.runs.long().unbind(1))
    owner = _owners(items, len(runs.begin))
    place = _ranks((items.partial_begin + items.end).argsort(stable=True))  # those without runs before who begins there
    ahead = torch.zeros_like(place) if ahead is None else ahead
    full = torch.arange(len(owner), device=owner.device) >= items.full_begin[owner]
    never = torch.iinfo(torch.int64).max
    last_partial, first_full = torch.full_like(place, -1), torch.full_like(place, never)
    last_partial = last_partial.scatter_reduce(0, owner, runs.end.masked_fill(full, -1), "amax")
    first_full = first_full.scatter_reduce(0, owner, runs.begin.masked_fill(~full, never), "amin")
    mixed = (last_partial > first_full) | (ahead > 0)
    full, tested = full & ~mixed[owner], full & mixed[owner]
    layer_end = runs.layer_end.masked_fill(tested, layers)
    runs = runs._replace(layer_begin=runs.layer_begin.masked_fill(tested, 0), layer_end=layer_end)
    bound = ahead[owner]
    cut = (runs.begin < bound) & (bound < runs.end)
    pieces = torch.stack(runs._replace(end=bound), 1).masked_fill(~cut[:, None], 0)
    pieces = pieces.new_zeros(len(place), pieces.shape[1]).index_add(0, owner, pieces)
    rows = torch.cat([torch.stack(runs._replace(begin=torch.where(cut, bound, runs.begin)), 1), pieces])
    owner = torch.cat([owner, torch.arange(len(place), device=owner.device)])
    full = torch.nn.functional.pad(full, (0, len(place)))
    most = 1 << 31  # tiles
    key = (2 * place[owner] + full) * 2 + (rows[:, 0] < ahead[owner])
    order = (key * most + rows[:, 0]).argsort()
    walked = items._replace(
        partial_begin=items.partial_begin + place,
        full_begin=torch.where(mixed, items.end, items.full_begin) + place + 1,
        end=items.end + place + 1,
        n_partial=torch.where(mixed, items.n_partial + items.n_full, items.n_partial),
        n_full=items.n_full.masked_fill(mixed, 0),
    )
    return RunTable(torch.stack(walked, 1).int(), rows[order].int())
