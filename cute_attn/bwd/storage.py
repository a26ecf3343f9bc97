"""Shared memory of the main kernel: barriers, numbers of rows, tiles."""

from dataclasses import dataclass
from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

from cute_attn.sm90.barriers import Ring, mbarriers_of_ring
from cute_attn.sm90.place import place_layout

from .products import GROUPS, WARPGROUP, Products
from .words import layout_of_words

__all__ = ["Shared"]


@dataclass(frozen=True)
class Shared:
    """What the warps of a CTA share; the last mode of tensors with stages is the stage."""

    q: cute.Tensor
    do: cute.Tensor
    k: cute.Tensor
    v: cute.Tensor
    p: cute.Tensor | None  # P^T, where it goes through shared memory
    ds: cute.Tensor  # dS^T
    p_data: cute.Pointer  # where both begin
    ds_data: cute.Pointer
    dq: cute.Tensor | None  # fp32 (vector, thread, 4, warpgroup), where it goes through shared memory
    sums: cute.Tensor | None  # (stages,): elsewhere, which of the sums of dQ is that of each Q tile
    shift: cute.Tensor  # (m, stages): -lse * log2(e) of the rows
    delta: cute.Tensor  # (m, stages)
    words: cute.Tensor | None  # (thread, kind, stages), see `words`
    places: cute.Tensor  # of the Q tiles, see `cute_attn.sm90.place`
    queries: Ring  # Q tiles with -lse
    grads: Ring  # dO tiles with delta (and words)
    keys_values: Ring  # the one load of K and V

    @classmethod
    def allocate(cls, p: Products) -> "Shared":
        tile, m, readers = p.spec.tile, p.spec.tile.m, 4 * GROUPS
        storage = cutlass.memory.SmemAllocator().allocate(_storage(p))

        def tiles(part, layout):
            return part.get_tensor(layout.outer, swizzle=layout.inner)

        dq = None
        if p.stage_dq:
            vectors = p.dq_vectors // tile.dq_chunks
            dq = storage.dq.get_tensor(cute.make_ordered_layout((4, WARPGROUP, vectors, GROUPS), (0, 1, 2, 3)))
        return cls(
            q=tiles(storage.q, p.layout_q()),
            do=tiles(storage.do, p.layout_do()),
            k=tiles(storage.k, p.layout_k())[None, None, 0],
            v=tiles(storage.v, p.layout_v())[None, None, 0],
            p=tiles(storage.p, p.layout_p()) if p.share_p else None,
            ds=tiles(storage.ds, p.layout_ds()),
            p_data=storage.p.data_ptr(),
            ds_data=storage.ds.data_ptr(),
            dq=dq,
            sums=None if p.stage_dq else storage.sums.get_tensor(cute.make_layout(tile.q_stages)),
            shift=storage.shift.get_tensor(cute.make_layout((m, tile.q_stages))),
            delta=storage.delta.get_tensor(cute.make_layout((m, tile.do_stages))),
            words=storage.words.get_tensor(_layout_of_words(p)) if p.word_kinds else None,
            places=storage.places.get_tensor(place_layout(tile.q_stages)),
            queries=Ring(storage.q_barriers.data_ptr(), tile.q_stages, readers),
            grads=Ring(storage.do_barriers.data_ptr(), tile.do_stages, readers),
            keys_values=Ring(storage.kv_barriers.data_ptr(), 1, readers),
        )

    def initialise(self) -> None:
        """By one thread, before any other touches a ring."""
        for ring in (self.queries, self.grads, self.keys_values):
            ring.initialise()
        cute.arch.mbarrier_init_fence()


def _layout_of_words(products: Products) -> cute.Layout:
    return layout_of_words(products.word_kinds, products.spec.tile.do_stages)


def _storage(products: Products) -> Any:
    tile, m = products.spec.tile, products.spec.tile.m
    n_words = cute.cosize(_layout_of_words(products)) if products.word_kinds else 0

    def tiles(size: int) -> Any:
        return cute.struct.Align[cute.struct.MemRange[products.dtype, size], 1024]

    dq_size = GROUPS * products.dq_group_size // tile.dq_chunks if products.stage_dq else 0
    n_sums = 0 if products.stage_dq else tile.q_stages

    @cute.struct
    class Storage:
        q_barriers: cute.struct.MemRange[cutlass.Int64, mbarriers_of_ring(tile.q_stages)]
        do_barriers: cute.struct.MemRange[cutlass.Int64, mbarriers_of_ring(tile.do_stages)]
        kv_barriers: cute.struct.MemRange[cutlass.Int64, mbarriers_of_ring(1)]
        places: cute.struct.Align[cute.struct.MemRange[Int32, cute.cosize(place_layout(tile.q_stages))], 16]
        sums: cute.struct.MemRange[Int32, n_sums]
        shift: cute.struct.Align[cute.struct.MemRange[Float32, m * tile.q_stages], 128]
        delta: cute.struct.Align[cute.struct.MemRange[Float32, m * tile.do_stages], 128]
        words: cute.struct.Align[cute.struct.MemRange[products.word, n_words], 128]
        q: tiles(cute.cosize(products.layout_q()))  # type: ignore[valid-type]
        do: tiles(cute.cosize(products.layout_do()))  # type: ignore[valid-type]
        k: tiles(cute.cosize(products.layout_k()))  # type: ignore[valid-type]
        v: tiles(cute.cosize(products.layout_v()))  # type: ignore[valid-type]
        p: tiles(cute.cosize(products.layout_p()) if products.share_p else 0)  # type: ignore[valid-type]
        ds: tiles(cute.cosize(products.layout_ds()))  # type: ignore[valid-type]
        dq: cute.struct.Align[cute.struct.MemRange[Float32, dq_size], 1024]

    return Storage
