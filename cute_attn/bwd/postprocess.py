"""After the main kernel: the fp32 sums of dQ, scaled, and rounded unless fp32 is asked for.

The sums lie in the order of the fragments of the main kernel's dQ product. The same product, built by the same
function, says here which row and column each belongs to.
"""

from typing import Any

import cuda.bindings.driver as cuda
import cutlass
import cutlass.cute as cute
from cutlass import Float32, const_expr, range_constexpr

from cute_attn.sm90.dtypes import DTYPES
from cute_attn.sm90.fragments import pack_fragment, write_fragment
from cute_attn.sm90.idle import is_idle
from cute_attn.sm90.store import store_fragment
from cute_attn.sm90.tiles import partition, store_atom
from cute_attn.spec.backward import BackwardSpec

from .arguments import Scalars, Schedule, Tensors
from .products import GROUPS, WARPGROUP, Products
from .work import plane_of_rows

__all__ = ["Postprocess"]


class Postprocess:
    """One CTA a tile of query rows of a head; its warpgroups do what those of the main kernel did."""

    def __init__(self, spec: BackwardSpec) -> None:
        self.products, self.bf16 = Products(spec, DTYPES[spec.dtype]), spec.dtype == "bf16"
        self.shape = (spec.tile.m, spec.head_dim)

    @cute.jit
    def launch(self, tensors: Tensors, schedule: Schedule, scalars: Scalars, stream: cuda.CUstream):
        dq: Any = tensors.dq
        dq = cute.make_tensor(dq.iterator, cute.select(dq.layout, mode=[1, 3, 2, 0]))
        atom: Any = None
        if const_expr(not self.products.spec.fp32_gradients):
            atom, dq = store_atom(dq, self.products.layout_dq(), self.shape)
        tiles = tensors.statistics.shape
        self.kernel(atom, dq, tensors.dq_sum, schedule.idle_rows, scalars).launch(
            grid=(tiles[2], tiles[1], tiles[0]), block=(GROUPS * WARPGROUP, 1, 1), stream=stream
        )

    @cute.kernel
    def kernel(
        self,
        atom: cute.CopyAtom | None,
        dq: cute.Tensor,
        dq_sum: cute.Tensor,
        idle_rows: cute.Tensor,
        scalars: Scalars,
    ):
        p = self.products
        thread = cute.arch.thread_idx()[0]
        warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
        tile, head, batch = cute.arch.block_idx()
        group, thread = warp // 4, thread % WARPGROUP

        order = cute.make_ordered_layout((4, WARPGROUP, p.dq_vectors, GROUPS), (0, 1, 2, 3))
        sums = cute.make_tensor(dq_sum[batch, head, tile, None].iterator, order)
        mma = p.queries_gradient()
        mine = cute.make_rmem_tensor(mma.get_slice(0).partition_shape_C((p.spec.tile.m, p.columns_q)), Float32)
        vectors = cute.make_tensor(mine.iterator, cute.make_layout((4, p.dq_vectors)))
        for j in range_constexpr(p.dq_vectors):
            cute.autovec_copy(sums[None, thread, j, group], vectors[None, j])
        mine.store(mine.load() * scalars.scale)
        plane = plane_of_rows(p.spec, idle_rows, batch, head, dq_sum.shape[1])
        place = thread // 32 * 16 + thread % 32 // 4  # of the first of this thread's two rows in the tile
        for h in range_constexpr(2):
            if is_idle(idle_rows, plane, tile, place + 8 * h):  # zero, whatever keys that others attend hold
                for k in range_constexpr(cute.size(mine) // 4):
                    for c in range_constexpr(2):
                        mine[4 * k + 2 * h + c] = 0.0
        if const_expr(p.spec.fp32_gradients):
            row = tile * p.spec.tile.m + place
            store_fragment(mine, dq[None, None, head, batch], row, group * p.columns_q + thread % 4 * 2)
        else:
            self.store_rounded(atom, dq[None, None, head, batch], mine, tile, warp, thread)

    @cute.jit
    def store_rounded(self, atom, dq, mine, tile, warp, thread):
        """Writes dQ through shared memory by TMA, which drops what lies outside the tensor."""
        p, layout = self.products, self.products.layout_dq()

        @cute.struct
        class Storage:
            dq: cute.struct.Align[cute.struct.MemRange[p.dtype, cute.cosize(layout)], 1024]

        storage = cutlass.memory.SmemAllocator().allocate(Storage)
        rounded = storage.dq.get_tensor(layout.outer, swizzle=layout.inner)[None, None, 0]
        packed = cute.make_rmem_tensor_like(mine, p.dtype)
        pack_fragment(mine, packed, self.bf16)
        half = cute.local_tile(rounded, (p.spec.tile.m, p.columns_q), (0, warp // 4))
        write_fragment(p.queries_gradient(), packed, half, thread)
        cute.arch.fence_view_async_shared()
        cute.arch.sync_threads()
        if warp == 0:
            target = cute.local_tile(dq, self.shape, (tile, 0))
            source, target = partition(atom, rounded, target)
            cute.copy(atom, source, target)
            cute.arch.cp_async_bulk_commit_group()
            cute.arch.cp_async_bulk_wait_group(0, read=True)
