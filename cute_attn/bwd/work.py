"""What a CTA of the main kernel works on."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Int32

from cute_attn.columns import ItemRow, KeyHeadRow
from cute_attn.spec.backward import BackwardSpec

from .arguments import Scalars, Schedule, Tensors, TmaTensors

__all__ = ["Arguments", "Item", "plane_of_rows"]


class Item(NamedTuple):
    """A key tile of a key head, and where the runs of query tiles are that it visits."""

    batch: Int32
    plane: Int32  # of the mask; with planes by head that of the batch element's first head
    key_plane: Int32  # of the idle keys
    head_k: Int32
    heads_per_key: Int32  # query heads that share it
    tile: Int32
    ends: Any  # partial_begin, full_begin, end; with planes by head those of each query head, in memory
    n_partial: Int32  # tiles of all query heads
    n_full: Int32

    @property
    def query_heads(self) -> tuple[Int32, Int32]:
        """Begin and end of the query heads of the key head."""
        return self.head_k * self.heads_per_key, (self.head_k + 1) * self.heads_per_key

    def count(self, partial: bool) -> Int32:
        """Number of partial or of full tiles."""
        return self.n_partial if partial else self.n_full


@dataclass(frozen=True)
class Arguments:
    """What the device code of the main kernel is called with."""

    spec: cutlass.Constexpr
    tma: TmaTensors
    tensors: Tensors
    schedule: Schedule
    scalars: Scalars

    def work(self) -> Int32:
        """Number of items: schedule entries, each for the batches, and key heads, that share it."""
        items = self.schedule.items.shape[0] * self.scalars.batches
        return items if self.spec.planes_by_head else items * self.tensors.k.shape[2]

    def count(self) -> Int32:
        """Items of this CTA: one, unless some multiprocessors are to stay free."""
        cta, ctas = cute.arch.block_idx()[0], cute.arch.grid_dim()[0]
        return (self.work() - cta + ctas - 1) // ctas

    def index(self, number: Int32) -> Int32:
        """The item that this CTA takes as its number `number`."""
        return number * cute.arch.grid_dim()[0] + cute.arch.block_idx()[0]

    def item(self, index: Int32) -> Item:
        """Item number `index`: heads fastest, so that neighbours share the runs; then batches."""
        tensors, scalars, items = self.tensors, self.scalars, self.schedule.items
        heads = tensors.k.shape[2]
        if self.spec.planes_by_head:
            entry, rest = index // scalars.batches, index % scalars.batches
            of_keys = KeyHeadRow(*(items[entry, i] for i in range(len(KeyHeadRow._fields))))
            return Item(
                batch=of_keys.key_plane // heads + rest,  # one of the two is zero: a mask is shared or per batch
                plane=of_keys.key_plane // heads * tensors.q.shape[2],
                key_plane=of_keys.key_plane,
                head_k=of_keys.key_plane % heads,
                heads_per_key=scalars.heads_per_key,
                tile=of_keys.tile,
                ends=cute.domain_offset((len(KeyHeadRow._fields),), items[entry, None]),
                n_partial=of_keys.n_partial,
                n_full=of_keys.n_full,
            )
        entry, rest = index // (heads * scalars.batches), index % (heads * scalars.batches)
        row = ItemRow(*(items[entry, i] for i in range(len(ItemRow._fields))))
        return Item(
            batch=row.plane + rest // heads,  # likewise
            plane=row.plane,
            key_plane=row.plane,
            head_k=rest % heads,
            heads_per_key=scalars.heads_per_key,
            tile=row.tile,
            ends=(row.partial_begin, row.full_begin, row.end),
            n_partial=scalars.heads_per_key * row.n_partial,
            n_full=scalars.heads_per_key * row.n_full,
        )

    def plane_of(self, item: Item, head: Int32) -> Int32:
        """The plane of the mask that is a query head's."""
        return item.plane + head if self.spec.planes_by_head else item.plane

    def runs_of(self, item: Item, head: Int32, masked: bool) -> tuple[Int32, Int32]:
        """Begin and end of the partial or the full runs of a query head."""
        first = 0 if masked else 1
        if self.spec.planes_by_head:
            first = 3 * (head - item.head_k * item.heads_per_key) + first
        return item.ends[first], item.ends[first + 1]


def plane_of_rows(spec: BackwardSpec, idle_rows: cute.Tensor, batch: Int32, head: Int32, heads: Int32) -> Int32:
    """The plane of idle rows of a query head, as `is_idle` takes it."""
    return (batch * heads + head) % idle_rows.shape[0] if spec.planes_by_head else batch
