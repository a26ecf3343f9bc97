"""Shared memory of the main kernel: barriers, numbers of rows, tiles."""

from dataclasses import dataclass
from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

from cute_attn.sm90.barriers import Ring, mbarriers_of_ring

from .products import GROUPS, WARPGROUP, Products

__all__ = ["Rings", "Shared", "rings_of", "shared_tiles", "storage_type"]


@dataclass(frozen=True)
class Rings:
    """Q tiles with -lse (and bounds), dO tiles with delta, and the one load of K and V."""

    queries: Ring
    grads: Ring
    keys_values: Ring


@dataclass(frozen=True)
class Shared:
    """Tiles in shared memory; the last mode of those with stages is the stage."""

    q: cute.Tensor
    do: cute.Tensor
    k: cute.Tensor
    v: cute.Tensor
    p: cute.Tensor | None  # P^T, where it goes through shared memory
    ds: cute.Tensor  # dS^T
    p_data: cute.Pointer  # where both begin
    ds_data: cute.Pointer
    dq: cute.Tensor  # fp32 (vector, thread, 4, warpgroup)
    shift: cute.Tensor  # (m, stages): -lse * log2(e) of the rows
    delta: cute.Tensor  # (m, stages)
    bounds: cute.Tensor | None  # (m, 2, layers, stages)
    place: cute.Tensor  # (stages, 4): with many layers, which tile and the layers that meet it


def storage_type(products: Products) -> Any:
    """The struct of everything in shared memory."""
    tile, m = products.spec.tile, products.spec.tile.m
    layers = products.staged_layers

    def tiles(size: int) -> Any:
        return cute.struct.Align[cute.struct.MemRange[products.dtype, size], 1024]

    @cute.struct
    class Storage:
        q_barriers: cute.struct.MemRange[cutlass.Int64, mbarriers_of_ring(tile.q_stages)]
        do_barriers: cute.struct.MemRange[cutlass.Int64, mbarriers_of_ring(tile.do_stages)]
        kv_barriers: cute.struct.MemRange[cutlass.Int64, mbarriers_of_ring(1)]
        place: cute.struct.Align[cute.struct.MemRange[Int32, 4 * tile.q_stages], 16]  # read as one vector
        shift: cute.struct.Align[cute.struct.MemRange[Float32, m * tile.q_stages], 128]
        delta: cute.struct.Align[cute.struct.MemRange[Float32, m * tile.do_stages], 128]
        bounds: cute.struct.Align[cute.struct.MemRange[Int32, 2 * layers * m * tile.q_stages], 128]
        q: tiles(cute.cosize(products.layout_q()))  # type: ignore[valid-type]
        do: tiles(cute.cosize(products.layout_do()))  # type: ignore[valid-type]
        k: tiles(cute.cosize(products.layout_k()))  # type: ignore[valid-type]
        v: tiles(cute.cosize(products.layout_v()))  # type: ignore[valid-type]
        p: tiles(cute.cosize(products.layout_p()) if products.share_p else 0)  # type: ignore[valid-type]
        ds: tiles(cute.cosize(products.layout_ds()))  # type: ignore[valid-type]
        dq: cute.struct.Align[cute.struct.MemRange[Float32, GROUPS * products.dq_group_size // tile.dq_chunks], 1024]

    return Storage


def rings_of(products: Products, storage: Any) -> Rings:
    """The rings on the barriers of that struct."""
    tile, readers = products.spec.tile, 4 * GROUPS
    return Rings(
        queries=Ring(storage.q_barriers.data_ptr(), tile.q_stages, readers),
        grads=Ring(storage.do_barriers.data_ptr(), tile.do_stages, readers),
        keys_values=Ring(storage.kv_barriers.data_ptr(), 1, readers),
    )


def shared_tiles(p: Products, storage: Any) -> Shared:
    """The tensors of that struct."""
    tile, m, layers = p.spec.tile, p.spec.tile.m, p.staged_layers

    def tiles(part, layout):
        return part.get_tensor(layout.outer, swizzle=layout.inner)

    vectors = p.dq_vectors // tile.dq_chunks
    bounds = None
    if layers:
        layout = cute.make_ordered_layout((m, 2, layers, tile.q_stages), (0, 1, 2, 3))
        bounds = storage.bounds.get_tensor(layout)
    return Shared(
        q=tiles(storage.q, p.layout_q()),
        do=tiles(storage.do, p.layout_do()),
        k=tiles(storage.k, p.layout_k())[None, None, 0],
        v=tiles(storage.v, p.layout_v())[None, None, 0],
        p=tiles(storage.p, p.layout_p()) if p.share_p else None,
        ds=tiles(storage.ds, p.layout_ds()),
        p_data=storage.p.data_ptr(),
        ds_data=storage.ds.data_ptr(),
        dq=storage.dq.get_tensor(cute.make_ordered_layout((4, WARPGROUP, vectors, GROUPS), (0, 1, 2, 3))),
        shift=storage.shift.get_tensor(cute.make_layout((m, tile.q_stages))),
        delta=storage.delta.get_tensor(cute.make_layout((m, tile.do_stages))),
        bounds=bounds,
        place=storage.place.get_tensor(cute.make_layout((tile.q_stages, 4), stride=(4, 1))),
    )
