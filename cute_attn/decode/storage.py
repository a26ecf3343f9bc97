"""Shared memory of the decode kernel."""

from dataclasses import dataclass
from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

from cute_attn.sm90.barriers import Ring, mbarriers_of_ring
from cute_attn.sm90.dtypes import DTYPES
from cute_attn.sm90.tiles import tile_layout
from cute_attn.spec.decode import DecodeSpec

from .arguments import CACHED

__all__ = ["WARPS", "Layouts", "Shared"]

WARPS = 4  # of the consumers


@dataclass(frozen=True)
class Layouts:
    """Of the tiles in shared memory."""

    q: Any  # (rows, head_dim)
    p: Any  # (rows, keys)
    k: Any  # (keys, head_dim, stages)
    v: Any  # (keys, head_dim_v, stages)

    @classmethod
    def of(cls, spec: DecodeSpec) -> "Layouts":
        tile = spec.tile
        operand = cutlass.Float16 if spec.eight else DTYPES[spec.dtype]
        cached = CACHED if spec.eight else DTYPES[spec.dtype]
        return cls(
            q=tile_layout(operand, tile.rows, spec.head_dim, 1),
            p=tile_layout(operand, tile.rows, tile.n, 1),
            k=tile_layout(cached, tile.n, spec.head_dim, tile.stages),
            v=tile_layout(cached, tile.n, spec.head_dim_v, tile.stages),
        )


@dataclass(frozen=True)
class Shared:
    """What the warps of a CTA share.

    tops: a number of each row from each consumer warp. bounds: the keys [lo, hi) of each row. words: its bits of the
    tree. factors: what its scores are multiplied with (8-bit caches). largest: a power of two from each warp, as bits.
    """

    q: Any
    p: Any
    k: Any
    v: Any
    tops: Any  # (4, rows), fp32
    bounds: Any  # (rows, 2), int32
    words: Any  # (rows, 2), int32
    factors: Any  # (rows,), fp32
    largest: Any  # (4,), int32
    keys: Ring
    values: Ring

    @classmethod
    def allocate(cls, spec: DecodeSpec) -> "Shared":
        layouts, stages, rows = Layouts.of(spec), spec.tile.stages, spec.tile.rows
        storage = cutlass.memory.SmemAllocator().allocate(_storage(spec, layouts))
        q, p, k, v = (
            part.get_tensor(layout.outer, swizzle=layout.inner)
            for part, layout in (
                (storage.q, layouts.q),
                (storage.p, layouts.p),
                (storage.k, layouts.k),
                (storage.v, layouts.v),
            )
        )
        pairs = cute.make_layout((rows, 2), stride=(2, 1))
        return cls(
            q=q,
            p=p,
            k=k,
            v=v,
            tops=storage.tops.get_tensor(cute.make_layout((WARPS, rows), stride=(rows, 1))),
            bounds=storage.bounds.get_tensor(pairs),
            words=storage.words.get_tensor(pairs),
            factors=storage.factors.get_tensor(cute.make_layout(rows)),
            largest=storage.largest.get_tensor(cute.make_layout(WARPS)),
            keys=Ring(storage.k_barriers.data_ptr(), stages, WARPS),
            values=Ring(storage.v_barriers.data_ptr(), stages, WARPS),
        )

    def initialise(self) -> None:
        """By one thread, before any other touches a ring."""
        for ring in (self.keys, self.values):
            ring.initialise()
        cute.arch.mbarrier_init_fence()


def _storage(spec: DecodeSpec, layouts: Layouts) -> Any:
    stages, rows = spec.tile.stages, spec.tile.rows
    operand = cutlass.Float16 if spec.eight else DTYPES[spec.dtype]
    cached = CACHED if spec.eight else DTYPES[spec.dtype]

    def tiles(dtype: Any, layout: Any) -> Any:
        return cute.struct.Align[cute.struct.MemRange[dtype, cute.cosize(layout)], 1024]

    @cute.struct
    class Storage:
        k_barriers: cute.struct.MemRange[cutlass.Int64, mbarriers_of_ring(stages)]
        v_barriers: cute.struct.MemRange[cutlass.Int64, mbarriers_of_ring(stages)]
        tops: cute.struct.Align[cute.struct.MemRange[Float32, WARPS * rows], 16]
        bounds: cute.struct.Align[cute.struct.MemRange[Int32, 2 * rows], 16]
        words: cute.struct.Align[cute.struct.MemRange[Int32, 2 * rows if spec.tree else 4], 16]
        factors: cute.struct.Align[cute.struct.MemRange[Float32, rows if spec.eight else 4], 16]
        largest: cute.struct.Align[cute.struct.MemRange[Int32, WARPS], 16]
        q: tiles(operand, layouts.q)  # type: ignore[valid-type]
        p: tiles(operand, layouts.p)  # type: ignore[valid-type]
        k: tiles(cached, layouts.k)  # type: ignore[valid-type]
        v: tiles(cached, layouts.v)  # type: ignore[valid-type]

    return Storage
