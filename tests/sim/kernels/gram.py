"""Products of what ordinary stores put into shared memory, in two groups on one accumulator."""

import functools
from typing import Any

import cuda.bindings.driver as cuda
import cutlass
import cutlass.utils.hopper_helpers as hopper
from cutlass import BFloat16, Float32, Int32, cute, range_constexpr
from cutlass.cute.nvgpu import OperandMajorMode, warpgroup

from kernels import WARPGROUP, compiled, fake, mark
from kernels.matmul import smem_layout

MEETING = 1  # the named barrier of the warpgroup


class Gram:
    """out = 2 * x @ x.T for every 64 rows of x: bf16[rows, 64], out: fp32[rows, 64]; rows is a multiple of 64.

    One warpgroup a CTA; CTA i takes tiles i, i + grid, ... A thread stores 64 bytes of the tile, so that every product
    reads what all four warps stored.
    """

    M = 64

    @cute.jit
    def __call__(self, x: cute.Tensor, out: cute.Tensor, n_cta: Int32, stream: cuda.CUstream) -> None:
        layout, major = smem_layout(self.M, self.M, 1), OperandMajorMode.K
        mma = hopper.make_trivial_tiled_mma(BFloat16, BFloat16, major, major, Float32, (1, 1, 1), (self.M, self.M))

        @cute.struct
        class Storage:
            x: cute.struct.Align[cute.struct.MemRange[BFloat16, cute.cosize(layout)], 1024]

        self.Storage = Storage
        tiles = cute.size(x, mode=[0]) // self.M
        self.kernel(x, out, tiles, layout, mma).launch(
            grid=(n_cta, 1, 1), block=(WARPGROUP, 1, 1), stream=stream, min_blocks_per_mp=1
        )

    @cute.kernel
    def kernel(
        self, x: cute.Tensor, out: cute.Tensor, tiles: Int32, layout: cute.ComposedLayout, mma: cute.TiledMma
    ) -> None:  # fmt: skip
        storage = cutlass.memory.SmemAllocator().allocate(self.Storage)
        sx = storage.x.get_tensor(layout.outer, swizzle=layout.inner)
        thread = cute.arch.thread_idx()[0]
        part = mma.get_slice(thread)
        fa, fb = part.make_fragment_A(part.partition_A(sx)), part.make_fragment_B(part.partition_B(sx))
        acc = cute.make_rmem_tensor(part.partition_shape_C((self.M, self.M)), Float32)
        for tile in cutlass.range(cute.arch.block_idx()[0], tiles, cute.arch.grid_dim()[0], unroll=1):
            mark("tile read")
            self.meet()
            for step in range_constexpr(4):
                chunk = thread + step * WARPGROUP
                row, column = chunk // 8, chunk % 8
                mark("store")
                cute.autovec_copy(
                    self.chunks(x[tile * self.M + row, None])[None, column], self.chunks(sx[row, None, 0])[None, column]
                )
            mark("fence")
            cute.arch.fence_view_async_shared()
            mark("tile stored")
            self.meet()
            warpgroup.fence()
            mark("first product")
            self.multiply(mma, acc, fa, fb, True)
            mark("second product")
            self.multiply(mma, acc, fa, fb, False)
            mark("wait products")
            warpgroup.wait_group(0)
            cute.autovec_copy(acc, part.partition_C(cute.local_tile(out, (self.M, self.M), (tile, 0))))

    def chunks(self, line):
        return cute.logical_divide(line, cute.make_layout(8))

    def meet(self):
        cute.arch.barrier(barrier_id=MEETING, number_of_threads=WARPGROUP)

    @cute.jit
    def multiply(self, mma, acc, a, b, clear: cutlass.Constexpr):
        atom = cute.make_mma_atom(mma.op)
        atom.set(warpgroup.Field.ACCUMULATE, not clear)
        for step in range_constexpr(cute.size(a.shape[2])):
            cute.gemm(atom, acc, a[None, None, step, 0], b[None, None, step, 0], acc)
            atom.set(warpgroup.Field.ACCUMULATE, True)
        warpgroup.commit_group()


@functools.cache
def gram() -> Any:
    """A compiled `Gram`; call it with (x, out, number of CTAs)."""
    rows = cute.sym_int(divisibility=64)
    return compiled(Gram(), fake(BFloat16, rows, 64), fake(Float32, rows, 64), Int32(1))
