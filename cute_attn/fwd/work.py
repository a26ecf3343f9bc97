"""Which query tiles a CTA computes, and what each of them visits."""

from dataclasses import dataclass
from typing import NamedTuple

import cutlass.cute as cute
from cutlass import Int32

from cute_attn.columns import ItemRow

from .arguments import Scalars, Schedule, Tensors, TmaTensors

__all__ = ["Arguments", "Item"]


class Item(NamedTuple):
    """A query tile of a head, and the runs of key tiles that it visits."""

    batch: Int32
    plane: Int32  # of the mask
    head: Int32
    head_k: Int32
    tile: Int32
    first_run: Int32
    full_run: Int32  # the first of those without masking
    end_run: Int32
    n_partial: Int32
    n_full: Int32


@dataclass(frozen=True)
class Arguments:
    """What the device code is called with."""

    tma: TmaTensors
    tensors: Tensors
    schedule: Schedule
    scalars: Scalars

    def work(self) -> Int32:
        """Number of items: schedule entries, each for the batches and heads that share it."""
        return self.schedule.items.shape[0] * self.scalars.batches * self.scalars.heads

    def share(self) -> tuple[Int32, Int32, Int32]:
        """Begin, end and step of the items of this CTA."""
        return cute.arch.block_idx()[0], self.work(), cute.arch.grid_dim()[0]

    def attended(self, item: Item) -> tuple[Int32, Int32]:
        """The keys [begin, end) that rows of an item's plane attend; the bounds of rows never fall."""
        lo, hi = self.tensors.lo, self.tensors.hi
        return lo[item.plane, 0, 0], hi[item.plane, 0, hi.shape[2] - 1]

    def item(self, index: Int32) -> Item:
        """Item number `index`: heads fastest, so that neighbours read the same keys; then batches."""
        scalars, items = self.scalars, self.schedule.items
        per_entry = scalars.heads * scalars.batches
        entry, rest = index // per_entry, index % per_entry
        row = ItemRow(*(items[entry, i] for i in range(len(ItemRow._fields))))
        head = row.plane % scalars.mask_heads + rest % scalars.heads  # one of the two is zero: planes are shared or not
        return Item(
            batch=row.plane // scalars.mask_heads + rest // scalars.heads,
            plane=row.plane,
            head=head,
            head_k=head // (self.tensors.q.shape[2] // self.tensors.k.shape[2]),
            tile=row.tile,
            first_run=row.partial_begin,
            full_run=row.full_begin,
            end_run=row.end,
            n_partial=row.n_partial,
            n_full=row.n_full,
        )
