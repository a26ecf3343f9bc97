"""What a CTA of the main kernel works on."""

from typing import Any, NamedTuple

import cutlass.cute as cute
from cutlass import Int32

from cute_attn.spec.backward import BackwardSpec

from .arguments import Scalars, Schedule, Tensors

__all__ = ["Item", "item_of", "items_in_all", "items_of_cta", "plane_of", "plane_of_rows", "query_heads", "runs_of"]


class Item(NamedTuple):
    """A key tile of a key head, and where the runs of query tiles are that it visits."""

    batch: Int32
    plane: Int32  # of the mask; with planes by head that of the batch element's first head
    key_plane: Int32  # of the idle keys
    head_k: Int32
    group: Int32  # query heads that share it
    tile: Int32
    ends: Any  # partial_begin, full_begin, end; with planes by head those of each query head, in memory
    n_partial: Int32  # tiles of all query heads
    n_full: Int32


def items_in_all(spec: BackwardSpec, tensors: Tensors, schedule: Schedule, scalars: Scalars) -> Int32:
    items = schedule.items.shape[0] * scalars.batches
    return items if spec.planes_by_head else items * tensors.k.shape[2]


def items_of_cta(
    spec: BackwardSpec, tensors: Tensors, schedule: Schedule, scalars: Scalars
) -> tuple[Int32, Int32, Int32]:
    """The items of this CTA: the first, the end, the step. It has one, unless some multiprocessors are to stay free."""
    return cute.arch.block_idx()[0], items_in_all(spec, tensors, schedule, scalars), cute.arch.grid_dim()[0]


def item_of(spec: BackwardSpec, index: Int32, tensors: Tensors, schedule: Schedule, scalars: Scalars) -> Item:
    """Number `index` of the work: heads fastest, so that neighbours share the runs; then batches."""
    heads, items = tensors.k.shape[2], schedule.items
    if spec.planes_by_head:
        entry, rest = index // scalars.batches, index % scalars.batches
        key_plane, tile, n_partial, n_full = (items[entry, i] for i in range(4))
        return Item(
            batch=key_plane // heads + rest,  # one of the two is zero: a mask is shared or per batch
            plane=key_plane // heads * tensors.q.shape[2],
            key_plane=key_plane,
            head_k=key_plane % heads,
            group=scalars.group,
            tile=tile,
            ends=cute.domain_offset((4,), items[entry, None]),
            n_partial=n_partial,
            n_full=n_full,
        )
    entry, rest = index // (heads * scalars.batches), index % (heads * scalars.batches)
    plane, tile, *ends, n_partial, n_full = (items[entry, i] for i in range(7))
    return Item(
        batch=plane + rest // heads,  # likewise
        plane=plane,
        key_plane=plane,
        head_k=rest % heads,
        group=scalars.group,
        tile=tile,
        ends=tuple(ends),
        n_partial=scalars.group * n_partial,
        n_full=scalars.group * n_full,
    )


def query_heads(item: Item) -> tuple[Int32, Int32]:
    """The query heads of the item's key head: the first, and the one past the last."""
    return item.head_k * item.group, (item.head_k + 1) * item.group


def plane_of(spec: BackwardSpec, item: Item, head: Int32) -> Int32:
    """The plane of the mask that is a query head's."""
    return item.plane + head if spec.planes_by_head else item.plane


def plane_of_rows(spec: BackwardSpec, idle_rows: cute.Tensor, batch: Int32, head: Int32, heads: Int32) -> Int32:
    """The plane of idle rows of a query head, as `is_idle` takes it."""
    return (batch * heads + head) % idle_rows.shape[0] if spec.planes_by_head else batch


def runs_of(spec: BackwardSpec, item: Item, head: Int32, masked: bool) -> tuple[Int32, Int32]:
    """The partial or the full runs of a query head: the first, and the one past the last."""
    first = 0 if masked else 1
    if spec.planes_by_head:
        first = 3 * (head - item.head_k * item.group) + first
    return item.ends[first], item.ends[first + 1]
