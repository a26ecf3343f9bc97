"""Products by warps: cp.async into two stages, ldmatrix, mma.sync."""

import functools
from typing import Any

import cuda.bindings.driver as cuda
import cutlass
from cutlass import BFloat16, Float32, Int32, cute, range_constexpr
from cutlass.cute.nvgpu import cpasync, warp

from kernels import WARPGROUP, compiled, fake, mark

STAGES = 2


class WarpGram:
    """out = x @ x.T for every 64 rows of x: bf16[rows, 64], out: fp32[rows, 64]; rows is a multiple of 64.

    Four warps of one CTA; a warp makes 16 rows of each product. While a tile is multiplied the next one is copied.
    """

    M = 64

    @cute.jit
    def __call__(self, x: cute.Tensor, out: cute.Tensor, n_cta: Int32, stream: cuda.CUstream) -> None:
        swizzled = cute.make_composed_layout(cute.make_swizzle(3, 3, 3), 0, cute.make_layout((8, 64), stride=(64, 1)))
        layout = cute.tile_to_shape(swizzled, (self.M, self.M, STAGES), (0, 1, 2))

        @cute.struct
        class Storage:
            x: cute.struct.Align[cute.struct.MemRange[BFloat16, cute.cosize(layout)], 1024]

        self.Storage = Storage
        op = warp.MmaF16BF16Op(BFloat16, Float32, (16, 8, 16))
        mma = cute.make_tiled_mma(op, cute.make_layout((4, 1, 1)), permutation_mnk=(self.M, 16, 16))
        atom = cute.make_copy_atom(cpasync.CopyG2SOp(), BFloat16, num_bits_per_copy=128)
        loads = cute.make_tiled_copy_tv(atom, cute.make_layout((16, 8), stride=(8, 1)), cute.make_layout((1, 8)))
        tiles = cute.size(x, mode=[0]) // self.M
        self.kernel(x, out, tiles, layout, mma, loads).launch(
            grid=(n_cta, 1, 1), block=(WARPGROUP, 1, 1), stream=stream, min_blocks_per_mp=1
        )

    @cute.kernel
    def kernel(
        self, x: cute.Tensor, out: cute.Tensor, tiles: Int32, layout: cute.ComposedLayout, mma: cute.TiledMma,
        loads: cute.TiledCopy,
    ) -> None:  # fmt: skip
        storage = cutlass.memory.SmemAllocator().allocate(self.Storage)
        sx = storage.x.get_tensor(layout)
        thread = cute.arch.thread_idx()[0]
        part, load = mma.get_slice(thread), loads.get_slice(thread)
        target = load.partition_D(sx)
        fetch = cute.make_copy_atom(warp.LdMatrix8x8x16bOp(num_matrices=4), BFloat16)
        fetch_a, fetch_b = cute.make_tiled_copy_A(fetch, mma), cute.make_tiled_copy_B(fetch, mma)
        fa = part.make_fragment_A(part.partition_A(sx[None, None, 0]))
        fb = part.make_fragment_B(part.partition_B(sx[None, None, 0]))
        source_a = fetch_a.get_slice(thread).partition_S(sx)
        source_b = fetch_b.get_slice(thread).partition_S(sx)
        acc = cute.make_rmem_tensor(part.partition_shape_C((self.M, self.M)), Float32)
        first, step = cute.arch.block_idx()[0], cute.arch.grid_dim()[0]
        cute.copy(
            loads, load.partition_S(cute.local_tile(x, (self.M, self.M), (first, 0))), target[None, None, None, 0]
        )
        cute.arch.cp_async_commit_group()
        stage = Int32(0)
        for tile in cutlass.range(first, tiles, step, unroll=1):
            if tile + step < tiles:
                ahead = cute.local_tile(x, (self.M, self.M), (tile + step, 0))
                mark("copy ahead")
                cute.copy(loads, load.partition_S(ahead), target[None, None, None, 1 - stage])
            mark("commit")
            cute.arch.cp_async_commit_group()
            mark("tile awaited")
            cute.arch.cp_async_wait_group(1)
            mark("tile there")
            cute.arch.sync_threads()
            mark("fragments of a")
            cute.copy(fetch_a, source_a[None, None, None, stage], fetch_a.retile(fa))
            mark("fragments of b")
            cute.copy(fetch_b, source_b[None, None, None, stage], fetch_b.retile(fb))
            acc.fill(0.0)
            for k in range_constexpr(cute.size(fa, mode=[2])):
                mark("product")
                cute.gemm(mma, acc, fa[None, None, k], fb[None, None, k], acc)
            mark("tile read")
            cute.arch.sync_threads()
            cute.autovec_copy(acc, part.partition_C(cute.local_tile(out, (self.M, self.M), (tile, 0))))
            stage = 1 - stage


@functools.cache
def warp_gram() -> Any:
    """A compiled `WarpGram`; call it with (x, out, number of CTAs)."""
    rows = cute.sym_int(divisibility=64)
    return compiled(WarpGram(), fake(BFloat16, rows, 64), fake(Float32, rows, 64), Int32(1))
