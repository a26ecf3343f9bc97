"""Shared memory of the forward: tiles, their rings, and where each tile of keys lies."""

from dataclasses import dataclass
from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Int32

from cute_attn.sm90.barriers import Ring, mbarriers_of_ring
from cute_attn.sm90.dtypes import DTYPES
from cute_attn.sm90.place import place_layout
from cute_attn.sm90.tiles import tile_layout
from cute_attn.spec.forward import ForwardSpec

from .config import has_words, out_shares_queries
from .words import WRITERS, WordForm, layout_of_words

__all__ = ["ROWS", "Layouts", "Shared"]

ROWS = 64  # query rows of a consumer warpgroup
ITEM = 8  # numbers of an ItemOfConsumers


@dataclass(frozen=True)
class Layouts:
    """Of the tiles in shared memory: rows, columns, and the warpgroup or stage."""

    q: Any  # (64, head_dim, consumers)
    k: Any  # (n, head_dim, stages)
    v: Any  # (n, head_dim_v, stages)
    out: Any  # (64, head_dim_v, consumers)

    @classmethod
    def of(cls, spec: ForwardSpec) -> "Layouts":
        dtype, tile = DTYPES[spec.dtype], spec.tile
        return cls(
            q=tile_layout(dtype, ROWS, spec.head_dim, tile.consumers),
            k=tile_layout(dtype, tile.n, spec.head_dim, tile.stages),
            v=tile_layout(dtype, tile.n, spec.head_dim_v, tile.stages),
            out=tile_layout(dtype, ROWS, spec.head_dim_v, tile.consumers),
        )


@dataclass(frozen=True)
class Shared:
    """What the warps of a CTA share.

    item: what is in Q, see `cute_attn.fwd.work.ItemOfConsumers`.
    places: of the tiles in the slots of K, see `cute_attn.sm90.place`.
    words: of these tiles, see `cute_attn.fwd.words`; None if rows have no bounds of their own.
    """

    q: Any  # tensors with the layouts above
    k: Any
    v: Any
    out: Any  # None if the output leaves from registers
    item: Any
    places: Any
    words: Any
    queries: Ring
    keys: Ring
    values: Ring

    @classmethod
    def allocate(cls, spec: ForwardSpec) -> "Shared":
        layouts, stages, readers = Layouts.of(spec), spec.tile.stages, 4 * spec.tile.consumers
        storage = cutlass.memory.SmemAllocator().allocate(_storage(spec, layouts))
        q, k, v = (
            part.get_tensor(layout.outer, swizzle=layout.inner)
            for part, layout in ((storage.q, layouts.q), (storage.k, layouts.k), (storage.v, layouts.v))
        )
        out: Any = None
        if out_shares_queries(spec):  # each warpgroup in its own rows of Q: the others may still be reading theirs
            out = cute.local_tile(q, (ROWS, spec.head_dim_v), (0, 0, None))
        elif not spec.fp32_out:
            out = storage.out.get_tensor(layouts.out.outer, swizzle=layouts.out.inner)
        return cls(
            q=q,
            k=k,
            v=v,
            out=out,
            item=storage.item.get_tensor(cute.make_layout(ITEM)),
            places=storage.places.get_tensor(place_layout(stages)),
            words=storage.words.get_tensor(layout_of_words(spec)) if has_words(spec) else None,
            queries=Ring(storage.q_barriers.data_ptr(), 1, readers),
            keys=Ring(storage.k_barriers.data_ptr(), stages, readers, 1 + WRITERS * has_words(spec)),
            values=Ring(storage.v_barriers.data_ptr(), stages, readers),
        )

    def initialise(self) -> None:
        """By one thread, before any other touches a ring."""
        for ring in (self.queries, self.keys, self.values):
            ring.initialise()
        cute.arch.mbarrier_init_fence()


def _storage(spec: ForwardSpec, layouts: Layouts) -> Any:
    dtype, stages = DTYPES[spec.dtype], spec.tile.stages
    n_words = cute.cosize(layout_of_words(spec)) if has_words(spec) else 0

    def tiles(size: int) -> Any:
        return cute.struct.Align[cute.struct.MemRange[dtype, size], 1024]

    @cute.struct
    class Storage:
        q_barriers: cute.struct.MemRange[cutlass.Int64, mbarriers_of_ring(1)]
        k_barriers: cute.struct.MemRange[cutlass.Int64, mbarriers_of_ring(stages)]
        v_barriers: cute.struct.MemRange[cutlass.Int64, mbarriers_of_ring(stages)]
        item: cute.struct.Align[cute.struct.MemRange[Int32, ITEM], 16]
        places: cute.struct.Align[cute.struct.MemRange[Int32, cute.cosize(place_layout(stages))], 16]
        words: cute.struct.Align[cute.struct.MemRange[WordForm.of(spec).dtype, n_words], 16]
        q: tiles(cute.cosize(layouts.q))  # type: ignore[valid-type]
        out: tiles(0 if spec.fp32_out or out_shares_queries(spec) else cute.cosize(layouts.out))  # type: ignore[valid-type]
        k: tiles(cute.cosize(layouts.k))  # type: ignore[valid-type]
        v: tiles(cute.cosize(layouts.v))  # type: ignore[valid-type]

    return Storage
