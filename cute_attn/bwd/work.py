"""What a CTA of the main kernel works on."""

from typing import NamedTuple

import cutlass.cute as cute
from cutlass import Int32

from .arguments import Scalars, Schedule, Tensors

__all__ = ["Item", "item_of", "items_in_all", "items_of_cta", "query_heads"]


class Item(NamedTuple):
    """A key tile of a key head, and the runs of query tiles that it visits."""

    batch: Int32
    mask_batch: Int32
    head_k: Int32
    group: Int32  # query heads that share it
    tile: Int32
    partial_begin: Int32
    full_begin: Int32
    end: Int32
    n_partial: Int32
    n_full: Int32


def items_in_all(tensors: Tensors, schedule: Schedule, scalars: Scalars) -> Int32:
    return schedule.items.shape[0] * scalars.batches * tensors.k.shape[2]


def items_of_cta(tensors: Tensors, schedule: Schedule, scalars: Scalars) -> tuple[Int32, Int32, Int32]:
    """The items of this CTA: the first, the end, the step. It has one, unless some multiprocessors are to stay free."""
    return cute.arch.block_idx()[0], items_in_all(tensors, schedule, scalars), cute.arch.grid_dim()[0]


def item_of(index: Int32, tensors: Tensors, schedule: Schedule, scalars: Scalars) -> Item:
    """Number `index` of the work: heads fastest, so that neighbours share the runs; then batches."""
    heads = tensors.k.shape[2]
    entry, rest = index // (heads * scalars.batches), index % (heads * scalars.batches)
    mask_batch, tile, partial_begin, full_begin, end, n_partial, n_full = (schedule.items[entry, i] for i in range(7))
    return Item(
        batch=mask_batch + rest // heads,  # one of the two is zero: a mask is shared or per batch
        mask_batch=mask_batch,
        head_k=rest % heads,
        group=scalars.group,
        tile=tile,
        partial_begin=partial_begin,
        full_begin=full_begin,
        end=end,
        n_partial=n_partial,
        n_full=n_full,
    )


def query_heads(item: Item) -> tuple[Int32, Int32]:
    """The query heads of the item's key head: the first, and the one past the last."""
    return item.head_k * item.group, (item.head_k + 1) * item.group
