"""Which query tiles a CTA computes, and what each of them visits."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Int32

from cute_attn.columns import ItemRow, RunRow
from cute_attn.sm90.reach import Reach
from cute_attn.sm90.runs import read_run

from .arguments import Cache, Scalars, Schedule, Tensors, TmaTensors
from .packing import Query

__all__ = ["Arguments", "Item", "ItemOfConsumers"]


class Item(NamedTuple):
    """A query tile of a head, or of heads that share it, and the runs of key tiles that it visits."""

    batch: Int32
    plane: Int32  # of the mask
    head: Int32  # the first of those of the queries
    group: Int32  # which of the groups of heads that share tiles; of heads that share none, the head
    head_k: Int32
    tile: Int32
    first_run: Int32
    full_run: Int32  # the first of those without masking
    end_run: Int32
    n_partial: Int32
    n_full: Int32
    runs: Any = None  # ThreeRuns over a cache, None for those of the schedule

    def hand_over(self) -> "ItemOfConsumers":
        return ItemOfConsumers(*(getattr(self, name) for name in ItemOfConsumers._fields))


class ItemOfConsumers(NamedTuple):
    """What of an item travels to the consumers, in shared memory with its Q: two vectors, which are read whole."""

    batch: Int32
    plane: Int32
    head: Int32
    group: Int32
    head_k: Int32
    tile: Int32
    n_partial: Int32
    n_full: Int32

    @classmethod
    def read(cls, shared: cute.Tensor) -> "ItemOfConsumers":
        return cls(*(shared[i] for i in range(len(cls._fields))))

    def publish(self, shared: cute.Tensor) -> None:
        """By one thread, before the barrier of Q is told what to expect: that makes it visible."""
        for i, value in enumerate(self):
            shared[i] = value


@dataclass(frozen=True)
class ThreeRuns:
    """The tiles [begin, end) of an item: partial ones before full_begin and from full_end on, full ones between."""

    begin: Int32
    full_begin: Int32
    full_end: Int32
    end: Int32

    @cute.jit
    def read(self, number: Int32):
        begin, end = self.begin, self.full_begin
        if number == 1:
            begin, end = self.full_end, self.end
        if number == 2:
            begin, end = self.full_begin, self.full_end
        return RunRow(begin, end, Int32(0), Int32(0))


@dataclass(frozen=True)
class Arguments:
    """What the device code is called with.

    spec: None until device code, which it is no argument of, has put it here.
    """

    tma: TmaTensors
    tensors: Tensors
    schedule: Schedule
    scalars: Scalars
    spec: Any = None

    def work(self) -> Int32:
        """Number of items: schedule entries, or tiles of rows, each for the batches and heads that share it."""
        entries = self.row_tiles() if self.tensors.cache is not None else self.schedule.items.shape[0]
        return entries * self.scalars.batches * self.scalars.heads

    def count(self) -> Int32:
        """Items of this CTA."""
        whole = self.work() // cute.arch.grid_dim()[0]
        return whole + Int32(self.index(whole) < self.work())

    def index(self, number: Int32) -> Int32:
        """The item that this CTA takes as its number `number`.

        CTAs take them there and back again: who has the longest of one round has the shortest of the next.
        """
        cta, ctas = cute.arch.block_idx()[0], cute.arch.grid_dim()[0]
        return number * ctas + cta + (number & 1) * (ctas - 1 - 2 * cta)

    def item(self, index: Int32) -> Item:
        """Item number `index`: heads fastest, so that neighbours read the same keys; then batches."""
        scalars, items = self.scalars, self.schedule.items
        per_entry = scalars.heads * scalars.batches
        entry, rest = index // per_entry, index % per_entry
        if self.tensors.cache is not None:
            return self.item_over_cache(entry, rest // scalars.heads, rest % scalars.heads)
        row = ItemRow(*(items[entry, i] for i in range(len(ItemRow._fields))))
        group = row.plane % scalars.mask_heads + rest % scalars.heads  # one of them is zero: planes are shared or not
        head = group * self.heads_in_tile() if self.spec.packed_heads > 1 else group
        return Item(
            batch=row.plane // scalars.mask_heads + rest // scalars.heads,
            plane=row.plane,
            head=head,
            group=group,
            head_k=head // self.heads_per_key(),
            tile=row.tile,
            first_run=row.partial_begin,
            full_run=row.full_begin,
            end_run=row.end,
            n_partial=row.n_partial,
            n_full=row.n_full,
        )

    def run(self, item: Item, number: Int32) -> RunRow:
        """Run number `number` of an item."""
        return read_run(self.schedule.runs, number) if item.runs is None else item.runs.read(number)

    def heads_per_key(self) -> Int32:
        return self.tensors.q.shape[2] // self.tensors.k.shape[2]

    def heads_in_tile(self) -> Int32:
        """Query heads that share a tile where some do: their groups share the items of the schedule."""
        return self.tensors.q.shape[2] // self.scalars.heads

    def query(self, item: ItemOfConsumers, row: Int32, offset: int = 0) -> Query:
        """What row `row + offset` of an item is."""
        packed = self.spec.packed_heads
        heads = self.heads_in_tile() if packed > 1 else Int32(1)
        return Query(packed, item.head, heads, row, offset, self.tensors.lse.shape[2])

    # ------------------------------------------------------------------ over a cache

    @property
    def cache(self) -> Cache:
        return Cache(*self.tensors.cache)

    def row_tiles(self) -> Int32:
        """Of a sequence."""
        return cute.ceil_div(self.tensors.q.shape[1], self.spec.tile.m)

    def reach(self, batch: Int32) -> Reach:
        cache, k = self.cache, self.tensors.k
        capacity = cache.table.shape[1] * k.shape[1]
        return Reach.of(cache.lengths[batch], capacity, self.tensors.q.shape[1], cache.left, cache.right)

    def item_over_cache(self, entry: Int32, batch: Int32, head: Int32) -> Item:
        """The last tiles of rows come first: under causality they are the longest."""
        sizes, rows = self.spec.tile, self.tensors.q.shape[1]
        tile, m, n = self.row_tiles() - 1 - entry, sizes.m, sizes.n
        reach = self.reach(batch)
        first_lo, first_hi = reach.around(reach.position + tile * m)
        last_lo, last_hi = reach.around(reach.position + cutlass.min(tile * m + m, rows) - 1)
        begin, end = first_lo // n, cute.ceil_div(cutlass.max(last_hi, 0), n)
        full_begin = cutlass.max(cutlass.min(cute.ceil_div(last_lo, n), end), begin)
        full_end = cutlass.max(cutlass.min(cutlass.max(first_hi, 0) // n, end), full_begin)
        n_full = full_end - full_begin
        return Item(
            batch=batch,
            plane=batch,
            head=head,
            group=head,
            head_k=head // self.heads_per_key(),
            tile=tile,
            first_run=Int32(0),
            full_run=Int32(2),
            end_run=Int32(3),
            n_partial=end - begin - n_full,
            n_full=n_full,
            runs=ThreeRuns(begin, full_begin, full_end, end),
        )
