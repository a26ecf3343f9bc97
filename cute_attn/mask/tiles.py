"""Tile schedules: which key tiles each query tile visits, and which of them need masking.

Everything is read off the ends of the intervals: work and memory grow with the rows, layers and runs, never with
`seqlen_q * seqlen_k`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch

from ..columns import ItemRow, RunRow
from .checks import check_tile, shown

__all__ = ["RunTable", "TileSchedule", "by_lane", "needs_bounds"]


@runtime_checkable
class Intervals(Protocol):
    """What is read of an IntervalMask, which makes schedules of itself."""

    @property
    def lo(self) -> torch.Tensor: ...

    @property
    def hi(self) -> torch.Tensor: ...

    @property
    def planes(self) -> int: ...

    @property
    def layers(self) -> int: ...

    @property
    def seqlen_q(self) -> int: ...

    @property
    def seqlen_k(self) -> int: ...

    @property
    def device(self) -> torch.device: ...


@dataclass(frozen=True, eq=False)
class RunTable:
    """For each tile of one side, runs of tiles of the other side, in the order in which a kernel processes them.

    items: int32 `(planes * tiles, 7)`: plane, tile, partial_begin, full_begin, end, n_partial, n_full; longest first.
        The tile's partial runs are `runs[partial_begin:full_begin]`, its full ones `runs[full_begin:end]`, both
        ascending; n_partial and n_full count the tiles in them.
    runs: int32 `(n, 4)`: begin, end (of tiles of the other side), layer_begin, layer_end. The layers are those that
        meet a partial run; a full run names none.
    """

    items: torch.Tensor
    runs: torch.Tensor

    @property
    def columns(self) -> ItemRow:
        """Of the items, by name."""
        return ItemRow(*self.items.unbind(1))

    @property
    def run_columns(self) -> RunRow:
        """Of the runs."""
        return RunRow(*self.runs.unbind(1))


@dataclass(frozen=True, eq=False)
class TileSchedule:
    """What the kernels know of a mask besides its intervals.

    A tile is full if every valid row covers all of its columns, and no mask is applied; partial if any row touches it
    and it is not full. Rows past seqlen_q count as covering; a key tile that reaches past seqlen_k is never full.

    tile: (rows, keys).
    planes: of the mask, scheduled each by itself.
    layers: of the mask; 0 if every row attends every key, so that only the end of the keys needs a test.
    forward: for each query tile, runs of key tiles. backward: the transposed, for each key tile, runs of query tiles.
    idle_rows, idle_keys: rows without keys, keys without rows, as `by_lane` has them. Kernels take what stands there
        for zero, since 0 * NaN is NaN; none lies in a full tile.
    """

    tile: tuple[int, int]
    planes: int
    seqlen_q: int
    seqlen_k: int
    layers: int
    forward: RunTable
    backward: RunTable
    idle_rows: torch.Tensor
    idle_keys: torch.Tensor

    @classmethod
    def from_mask(cls, mask: Intervals, tile: tuple[int, int] = (128, 128)) -> TileSchedule:
        """Lowers an interval mask to tiles of `(rows, keys)`; ValueError for a tile that is not two ints >= 1."""
        if not isinstance(mask, Intervals):
            raise TypeError(f"mask must be an IntervalMask, got {shown(mask)}")
        return cls._of(mask, check_tile(tile), mask, _idle_keys(mask))

    @classmethod
    def _of(
        cls, mask: Intervals, tile: tuple[int, int], covering: Intervals | None, idle_keys: torch.Tensor
    ) -> TileSchedule:
        """covering: the intervals that make tiles full, some of the mask's pairs; None for none. idle_keys: bool
        `(planes, seqlen_k)`."""
        grid = _Grid(mask.planes, -(-mask.seqlen_q // tile[0]), -(-mask.seqlen_k // tile[1]), mask.layers)
        segments = _classify(mask, tile, grid, covering)
        return cls(
            tile=tile,
            planes=mask.planes,
            seqlen_q=mask.seqlen_q,
            seqlen_k=mask.seqlen_k,
            layers=mask.layers if any(needs_bounds(mask)) else 0,
            forward=_table(segments, grid.planes, grid.q_tiles, grid.layers),
            backward=_table(_transpose(segments, grid), grid.planes, grid.k_tiles, grid.layers),
            idle_rows=by_lane((mask.lo >= mask.hi).all(1), tile[0]),
            idle_keys=by_lane(idle_keys, tile[1]),
        )

    def to(self, device: torch.device) -> TileSchedule:
        """The schedule with its tables on another device; itself if they are there."""
        if self.idle_rows.device == device:
            return self
        forward, backward = (RunTable(t.items.to(device), t.runs.to(device)) for t in (self.forward, self.backward))
        idle_rows, idle_keys = self.idle_rows.to(device), self.idle_keys.to(device)
        return replace(self, forward=forward, backward=backward, idle_rows=idle_rows, idle_keys=idle_keys)

    @property
    def q_tiles(self) -> int:
        return -(-self.seqlen_q // self.tile[0])

    @property
    def k_tiles(self) -> int:
        return -(-self.seqlen_k // self.tile[1])

    def to_grid(self) -> torch.Tensor:
        """int8 `(planes, q_tiles, k_tiles)`: 0 none, 1 partial, 2 full. For people and tests: it has every tile."""
        return _grid_of(self.forward, self.planes, self.q_tiles, self.k_tiles)

    def to_grid_transposed(self) -> torch.Tensor:
        """int8 `(planes, k_tiles, q_tiles)` of the backward's runs; always the transpose of `to_grid()`."""
        return _grid_of(self.backward, self.planes, self.k_tiles, self.q_tiles)


def needs_bounds(mask: Intervals) -> tuple[bool, bool]:
    """Whether some intervals of a mask begin behind the first key, and whether some end before the last one."""
    return bool((mask.lo > 0).any()), bool((mask.hi < mask.seqlen_k).any())


def by_lane(flags: torch.Tensor, size: int) -> torch.Tensor:
    """Flags `(planes, length)` of rows or keys as the 32 lanes of a warp take them up in tiles of `size`.

    Returns int32 `(planes, tiles, 32)`: bit w of lane l is the flag number `32w + l` of the tile. Tiles behind the last
    one with a flag are left out, so that nothing is read where no flag is set.
    """
    planes, length = flags.shape
    tiles = -(-length // size)
    flags = torch.nn.functional.pad(flags, (0, tiles * size - length)).view(planes, tiles, size)
    marked = flags.any(2).any(0).nonzero()
    flags = flags[:, : int(marked.max()) + 1 if len(marked) else 0]
    words = torch.nn.functional.pad(flags, (0, -size % 32)).unflatten(2, (-1, 32)).int()
    place = torch.arange(words.shape[2], dtype=torch.int32, device=flags.device)
    return (words << place[:, None]).sum(2, dtype=torch.int32)


def _idle_keys(mask: Intervals) -> torch.Tensor:
    """bool `(planes, seqlen_k)`: keys that no row attends."""
    width = mask.seqlen_k + 1
    change = torch.zeros(mask.planes * width, dtype=torch.int64, device=mask.device)
    plane = torch.arange(mask.planes, device=mask.device)[:, None, None] * width
    for ends, sign in ((mask.lo, 1), (mask.hi, -1)):
        at = (plane + ends).view(-1)
        change.index_add_(0, at, change.new_full((), sign).expand(len(at)))
    return change.view(mask.planes, width)[:, :-1].cumsum(1) == 0


class _Grid(NamedTuple):
    planes: int
    q_tiles: int
    k_tiles: int
    layers: int


class _Segments(NamedTuple):
    """Runs of equal state, sorted by (group, first): group = plane * tiles + tile, state = _state(...), all int64."""

    group: torch.Tensor
    first: torch.Tensor
    last: torch.Tensor
    state: torch.Tensor


def _classify(mask: Intervals, tile: tuple[int, int], grid: _Grid, covering: Intervals | None) -> _Segments:
    """Sweeps the ends of all intervals of each query tile over the key tiles.

    A tile of keys is touched where at least one interval reaches into it, and full where intervals of `covering`
    contain it in as many rows as the query tile has (those of one row are disjoint and do not touch, so at most one
    does).
    """
    group, layer, weight, touch, cover = _distinct_intervals(mask, tile, grid)
    rows = _valid_rows(mask, tile, grid)
    width = grid.k_tiles + 1
    cover_group, cover_weight = group, weight
    if covering is None:
        cover_group, cover_weight, cover = group[:0], weight[:0], [x[:0] for x in cover]
    elif covering is not mask:
        of_covering = grid._replace(layers=covering.layers)
        cover_group, _, cover_weight, _, cover = _distinct_intervals(covering, tile, of_covering)
    covers = cover[0] < cover[1]
    keys = torch.cat([group * width + touch[0], group * width + touch[1]])
    cover_keys = torch.cat([(cover_group * width + x)[covers] for x in cover])
    cover_weight = cover_weight[covers]
    one = torch.ones_like(weight)
    key, place = torch.cat([keys, cover_keys]).unique(return_inverse=True)
    delta = torch.zeros(2, key.numel(), dtype=torch.int64, device=key.device)
    delta[0].index_add_(0, place[: keys.numel()], torch.cat([one, -one]))
    delta[1].index_add_(0, place[keys.numel() :], torch.cat([cover_weight, -cover_weight]))
    touched, covered = delta.cumsum(1)  # every group sums to zero, so nothing carries over
    kind = (touched > 0).long() + (covered == rows[key // width]).long() * (touched > 0)
    begin, end = place[: group.numel()], place[group.numel() : keys.numel()]
    layers = _layer_range(begin, end, layer, key.numel(), grid.layers)
    state = _state(kind, *layers, grid.layers)
    return _merge(key // width, key % width, state)


def _distinct_intervals(
    mask: Intervals, tile: tuple[int, int], grid: _Grid
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Intervals in units of key tiles, equal ones of consecutive rows of a query tile taken together.

    Returns int64 `(n,)`: group, layer, weight (number of rows), touch = [first, last) of tiles that the interval
    reaches into, cover = [first, last) of tiles that it contains.
    """
    m, n = tile
    up = n - 1
    bounds = [_div(mask.lo, n), _div(mask.lo + up, n), _div(mask.hi, n), _div(mask.hi + up, n)]
    starts = torch.zeros(mask.lo.shape, dtype=torch.bool, device=mask.device)
    for x in bounds:
        starts[:, :, 1:] |= x[:, :, 1:] != x[:, :, :-1]
    # An empty interval between non-empty ones must not join them although its bounds may look alike.
    filled = mask.lo < mask.hi
    starts[:, :, 1:] |= filled[:, :, 1:] != filled[:, :, :-1]
    starts[:, :, ::m] = True
    index = starts.view(-1).nonzero().squeeze(1)
    weight = torch.diff(index, append=index.new_tensor([starts.numel()]))
    keep = filled.reshape(-1)[index]
    index, weight = index[keep], weight[keep]
    lo_down, lo_up, hi_down, hi_up = (x.reshape(-1)[index].long() for x in bounds)
    row = index % max(1, mask.seqlen_q)
    plane = index // max(1, mask.seqlen_q)
    group = plane // grid.layers * grid.q_tiles + row // m
    return group, plane % grid.layers, weight, [lo_down, hi_up], [lo_up, hi_down]


def _div(x: torch.Tensor, n: int) -> torch.Tensor:
    return x >> (n.bit_length() - 1) if n & (n - 1) == 0 else x // n


def _valid_rows(mask: Intervals, tile: tuple[int, int], grid: _Grid) -> torch.Tensor:
    """Rows inside seqlen_q of each query tile, int64 `(planes * q_tiles,)`."""
    first = torch.arange(grid.q_tiles, device=mask.device) * tile[0]
    return (mask.seqlen_q - first).clamp(max=tile[0]).repeat(grid.planes)


def _layer_range(
    begin: torch.Tensor, end: torch.Tensor, layer: torch.Tensor, places: int, layers: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each place, the range of layers among the intervals [begin, end) of places that contain it.

    Each interval is the union of two, perhaps overlapping, blocks of 2^level places; blocks then hand their minimum
    and maximum down a level at a time: log(places) passes instead of an entry for every place an interval spans.
    """
    lowest = torch.zeros(places, dtype=torch.int64, device=begin.device)
    highest = torch.ones_like(lowest)
    if layers == 1 or begin.numel() == 0:
        return lowest, highest
    length = end - begin
    level = (length.double().log2() + 1e-9).long()
    top = int(level.max())
    small = torch.full((top + 1, places), layers, dtype=torch.int64, device=begin.device)
    large = torch.zeros_like(small)
    for at in (begin, end - (1 << level)):
        slot = level * places + at
        small.view(-1).scatter_reduce_(0, slot, layer, "amin")
        large.view(-1).scatter_reduce_(0, slot, layer + 1, "amax")
    for k in range(top, 0, -1):
        half = 1 << (k - 1)
        for table, join in ((small, torch.minimum), (large, torch.maximum)):
            table[k - 1] = join(table[k - 1], table[k])
            table[k - 1, half:] = join(table[k - 1, half:], table[k, :-half])
    return small[0], large[0]


def _state(kind: torch.Tensor, low: torch.Tensor, high: torch.Tensor, layers: int) -> torch.Tensor:
    """One number for what a kernel must know of a tile: 0 none, else its kind and, if partial, its layers."""
    partial = (kind == 1).long()
    return (kind * (layers + 1) + low * partial) * (layers + 1) + high * partial


def _merge(group: torch.Tensor, position: torch.Tensor, state: torch.Tensor) -> _Segments:
    """Segments from the state that begins at each (group, position), sorted; a group's last state is 0."""
    if state.numel() == 0:
        return _Segments(group, position, position, state)
    changes = torch.ones_like(state, dtype=torch.bool)
    changes[1:] = (state[1:] != state[:-1]) | (group[1:] != group[:-1])
    at = changes.nonzero().squeeze(1)
    group, position, state = group[at], position[at], state[at]
    last = torch.cat([position[1:], position[-1:]])
    keep = state > 0
    return _Segments(group[keep], position[keep], last[keep], state[keep])


def _transpose(segments: _Segments, grid: _Grid) -> _Segments:
    """The same grid as runs of query tiles for each key tile.

    Consecutive query tiles are compared run against run; only the key tiles whose state changes are written out, and
    each of them begins or ends a run of the result.
    """
    plane, tile = segments.group // max(1, grid.q_tiles), segments.group % max(1, grid.q_tiles)
    here = plane * (grid.q_tiles + 1) + tile  # a last, empty query tile ends every run
    width = grid.k_tiles + 1
    first, last = here * width + segments.first, here * width + segments.last
    key, place = torch.cat([first, last, first + width, last + width]).unique(return_inverse=True)
    n = len(here)
    delta = torch.zeros(2, key.numel(), dtype=torch.int64, device=key.device)
    for side in (0, 1):  # 0: the state in this query tile, 1: in the one before
        at = place[2 * n * side : 2 * n * (side + 1)]
        delta[side].index_add_(0, at, torch.cat([segments.state, -segments.state]))
    now, before = delta.cumsum(1)
    changed = (now != before).nonzero().squeeze(1)
    begin, length = key[changed], (torch.diff(key, append=key[-1:]))[changed]
    which = torch.repeat_interleave(torch.arange(len(changed), device=key.device), length)
    offset = torch.arange(which.numel(), device=key.device) - (length.cumsum(0) - length)[which]
    row, column = begin[which] // width, begin[which] % width + offset
    plane, tile = row // (grid.q_tiles + 1), row % (grid.q_tiles + 1)
    order = ((plane * grid.k_tiles + column) * (grid.q_tiles + 1) + tile).argsort()
    return _merge((plane * grid.k_tiles + column)[order], tile[order], now[changed][which][order])


def _table(segments: _Segments, planes: int, tiles: int, layers: int) -> RunTable:
    """Partial runs before full runs within each tile, tiles by falling number of tiles to visit."""
    kind = segments.state // (layers + 1) ** 2
    groups = planes * tiles
    slot = segments.group * 2 + (kind - 1)
    order = slot.argsort(stable=True)
    columns = RunRow(
        begin=segments.first,
        end=segments.last,
        layer_begin=segments.state // (layers + 1) % (layers + 1),
        layer_end=segments.state % (layers + 1),
    )
    runs = torch.stack([x[order] for x in columns], 1).int()
    count = torch.bincount(slot, minlength=2 * groups)
    tiles_in = torch.zeros(2 * groups, dtype=torch.int64, device=slot.device)
    tiles_in.index_add_(0, slot, segments.last - segments.first)
    end = count.cumsum(0).view(groups, 2)
    begin = end - count.view(groups, 2)
    n_partial, n_full = tiles_in.view(groups, 2).unbind(1)
    index = torch.arange(groups, device=slot.device)
    where = (index // max(1, tiles), index % max(1, tiles))
    items = torch.stack(ItemRow(*where, begin[:, 0], begin[:, 1], end[:, 1], n_partial, n_full), 1)
    longest_first = (n_partial + n_full).argsort(descending=True, stable=True)
    return RunTable(items[longest_first].int(), runs)


def _grid_of(table: RunTable, planes: int, tiles: int, others: int) -> torch.Tensor:
    edges = torch.zeros(planes * tiles, others + 1, dtype=torch.int8, device=table.runs.device)
    items, runs = ItemRow(*table.items.long().unbind(1)), table.run_columns
    group = items.plane * tiles + items.tile
    for value, begin, end in ((1, items.partial_begin, items.full_begin), (2, items.full_begin, items.end)):
        owner = torch.repeat_interleave(group, end - begin)
        length = end - begin
        index = torch.arange(owner.numel(), device=owner.device)
        index = index + torch.repeat_interleave(begin - (length.cumsum(0) - length), length)
        for at, sign in ((runs.begin[index].long(), value), (runs.end[index].long(), -value)):
            edges.index_put_((owner, at), edges.new_full((), sign).expand(len(at)), accumulate=True)
    return edges.cumsum(1)[:, :others].to(torch.int8).view(planes, tiles, others)
