"""A persistent, warp-specialised matrix product: a ring of TMA stages, WGMMA from both operand sources, clusters."""

import functools
from typing import Any

import cuda.bindings.driver as cuda
import cutlass
import cutlass.utils.hopper_helpers as hopper
from cutlass import BFloat16, Float32, Int32, cute, range_constexpr
from cutlass.cute.nvgpu import OperandMajorMode, cpasync, warp, warpgroup
from cutlass.tensor_utils import LayoutEnum

from kernels import WARPGROUP, accumulating, compiled, fake, mark


def smem_layout(rows: int, columns: int, stages: int) -> cute.ComposedLayout:
    """Row-major bf16 tiles, swizzled as TMA and WGMMA want them."""
    kind = hopper.get_smem_layout_atom(LayoutEnum.ROW_MAJOR, BFloat16, columns)
    atom = warpgroup.make_smem_layout_atom(kind, BFloat16)
    return cute.tile_to_shape(atom, (rows, columns, stages), order=(0, 1, 2))


def one_stage(layout: cute.ComposedLayout) -> cute.ComposedLayout:
    return cute.select(layout, mode=[0, 1])


def tma_slices(atom: cute.CopyAtom, smem: cute.Tensor, gmem: cute.Tensor, rank: Any = 0, cluster: int = 1) -> Any:
    """The tiles of both sides as TMA sees them: mode 0 is one copy."""
    smem, gmem = cute.group_modes(smem, 0, 2), cute.group_modes(gmem, 0, 2)
    return cpasync.tma_partition(atom, rank, cute.make_layout(cluster), smem, gmem)


class Matmul:
    """c = a @ b.T: TMA into a ring of stages, two consumer warpgroups of 64 rows with WGMMA, TMA store.

    a: bf16[M, K], b: bf16[N, K], c: bf16[M, N]; M, N and K are multiples of the tile. The kernel is persistent: CTA i
    takes tiles i, i + grid, ... With `cluster=2`, CTAs with neighbouring row tiles share b: each loads half for both.
    """

    M, N, K = 128, 64, 64

    def __init__(self, stages: int = 3, a_in_registers: bool = False, cluster: int = 1) -> None:
        self.stages, self.a_in_registers, self.cluster = stages, a_in_registers, cluster

    @cute.jit
    def __call__(self, a: cute.Tensor, b: cute.Tensor, c: cute.Tensor, n_cta: Int32, stream: cuda.CUstream) -> None:
        a_layout, b_layout = smem_layout(self.M, self.K, self.stages), smem_layout(self.N, self.K, self.stages)
        c_layout = smem_layout(64, self.N, 2)
        load, store = cpasync.CopyBulkTensorTileG2SOp(), cpasync.CopyBulkTensorTileS2GOp()
        load_b = cpasync.CopyBulkTensorTileG2SMulticastOp() if self.cluster > 1 else load
        tma_a = cpasync.make_tiled_tma_atom(load, a, one_stage(a_layout), (self.M, self.K))
        tma_b = cpasync.make_tiled_tma_atom(load_b, b, one_stage(b_layout), (self.N, self.K), self.cluster)
        tma_c = cpasync.make_tiled_tma_atom(store, c, one_stage(c_layout), (64, self.N))
        source = warpgroup.OperandSource.RMEM if self.a_in_registers else warpgroup.OperandSource.SMEM
        major = OperandMajorMode.K
        mma = hopper.make_trivial_tiled_mma(
            BFloat16, BFloat16, major, major, Float32, (1, 1, 1), (64, self.N), a_source=source
        )

        @cute.struct
        class Storage:
            full: cute.struct.MemRange[cutlass.Int64, self.stages]
            empty: cute.struct.MemRange[cutlass.Int64, self.stages]
            a: cute.struct.Align[cute.struct.MemRange[BFloat16, cute.cosize(a_layout)], 1024]
            b: cute.struct.Align[cute.struct.MemRange[BFloat16, cute.cosize(b_layout)], 1024]
            c: cute.struct.Align[cute.struct.MemRange[BFloat16, cute.cosize(c_layout)], 1024]

        self.Storage = Storage
        tiles = (cute.size(a, mode=[0]) // self.M, cute.size(b, mode=[0]) // self.N, cute.size(a, mode=[1]) // self.K)
        self.kernel(*tma_a, *tma_b, *tma_c, tiles, a_layout, b_layout, c_layout, mma).launch(
            grid=(n_cta, 1, 1), block=(3 * WARPGROUP, 1, 1), cluster=(self.cluster, 1, 1), stream=stream,
            min_blocks_per_mp=1,
        )  # fmt: skip

    @cute.kernel
    def kernel(
        self, atom_a: cute.CopyAtom, a: cute.Tensor, atom_b: cute.CopyAtom, b: cute.Tensor,
        atom_c: cute.CopyAtom, c: cute.Tensor, tiles: cute.Shape, a_layout: cute.ComposedLayout,
        b_layout: cute.ComposedLayout, c_layout: cute.ComposedLayout, mma: cute.TiledMma,
    ) -> None:  # fmt: skip
        storage = cutlass.memory.SmemAllocator().allocate(self.Storage)
        sa = storage.a.get_tensor(a_layout.outer, swizzle=a_layout.inner)
        sb = storage.b.get_tensor(b_layout.outer, swizzle=b_layout.inner)
        sc = storage.c.get_tensor(c_layout.outer, swizzle=c_layout.inner)
        full, empty = storage.full.data_ptr(), storage.empty.data_ptr()
        index = cute.arch.make_warp_uniform(cute.arch.warp_idx())
        if index == 0:
            with cute.arch.elect_one():
                for stage in range_constexpr(self.stages):
                    mark(f"init full {stage}")
                    cute.arch.mbarrier_init(full + stage, 1)
                    mark(f"init empty {stage}")
                    cute.arch.mbarrier_init(empty + stage, 8 * self.cluster)
                mark("init fence")
                cute.arch.mbarrier_init_fence()
        if cutlass.const_expr(self.cluster > 1):
            cute.arch.cluster_arrive_relaxed()
            mark("cluster wait")
            cute.arch.cluster_wait()
        else:
            mark("init barrier")
            cute.arch.sync_threads()
        if index < 4:
            if index == 0:
                self.produce(atom_a, a, sa, atom_b, b, sb, full, empty, tiles)
        else:
            self.consume(sa, sb, sc, atom_c, c, full, empty, tiles, index - 4, mma)
        if cutlass.const_expr(self.cluster > 1):  # no CTA leaves while the other may still arrive at its barriers
            mark("cluster end")
            cute.arch.cluster_arrive()
            cute.arch.cluster_wait()

    @cute.jit
    def produce(self, atom_a, a, sa, atom_b, b, sb, full, empty, tiles):
        cta, n_cta = cute.arch.block_idx()[0], cute.arch.grid_dim()[0]
        rank = cute.arch.block_idx_in_cluster()
        sa, ga = tma_slices(atom_a, sa, cute.local_tile(a, (self.M, self.K), (None, None)))
        sb, gb = tma_slices(atom_b, sb, cute.local_tile(b, (self.N, self.K), (None, None)), rank, self.cluster)
        i = Int32(0)
        for tile in cutlass.range(cta, tiles[0] * tiles[1], n_cta, unroll=1):
            m, n = tile % tiles[0], tile // tiles[0]
            for k in cutlass.range(0, tiles[2], unroll=1):
                stage = i % self.stages
                mark("wait empty")
                cute.arch.mbarrier_wait(empty + stage, (i // self.stages) % 2 ^ 1)
                with cute.arch.elect_one():
                    mark("expect")
                    cute.arch.mbarrier_arrive_and_expect_tx(full + stage, (self.M + self.N) * self.K * 2)
                mark("load a")
                cute.copy(atom_a, ga[None, m, k], sa[None, stage], tma_bar_ptr=full + stage)
                mark("load b")
                everyone = {"mcast_mask": cutlass.Int16(3)} if cutlass.const_expr(self.cluster > 1) else {}
                cute.copy(atom_b, gb[None, n, k], sb[None, stage], tma_bar_ptr=full + stage, **everyone)
                i += 1

    @cute.jit
    def consume(self, sa, sb, sc, atom_c, c, full, empty, tiles, index, mma):
        cta, n_cta = cute.arch.block_idx()[0], cute.arch.grid_dim()[0]
        lane, group = cute.arch.lane_idx(), index // 4
        thread = (index % 4) * 32 + lane
        part = mma.get_slice(0)
        mine_a = cute.local_tile(sa, (64, self.K, self.stages), (group, 0, 0))
        acc = cute.make_rmem_tensor(part.partition_shape_C((64, self.N)), Float32)
        fb = part.make_fragment_B(part.partition_B(sb))
        if cutlass.const_expr(self.a_in_registers):
            fa = part.make_fragment_A(part.partition_shape_A((64, self.K)))
            atom = cute.make_copy_atom(warp.LdMatrix8x8x16bOp(transpose=False, num_matrices=4), BFloat16)
            loader = cute.make_tiled_copy_A(atom, mma).get_slice(thread)
            source = loader.partition_S(mine_a)
        else:
            fa = part.make_fragment_A(part.partition_A(mine_a))
        i = Int32(0)
        for tile in cutlass.range(cta, tiles[0] * tiles[1], n_cta, unroll=1):
            m, n = tile % tiles[0], tile // tiles[0]
            acc.fill(0.0)
            for _ in cutlass.range(0, tiles[2], unroll=1):
                stage = i % self.stages
                mark("wait full")
                cute.arch.mbarrier_wait(full + stage, (i // self.stages) % 2)
                if cutlass.const_expr(self.a_in_registers):
                    mark("ldmatrix")
                    cute.copy(atom, source[None, None, None, stage], loader.retile(fa))
                mark("wgmma fence")
                warpgroup.fence()
                tile_a = fa if cutlass.const_expr(self.a_in_registers) else fa[None, None, None, stage]
                for step in range_constexpr(self.K // 16):
                    cute.gemm(accumulating(mma), acc, tile_a[None, None, step], fb[None, None, step, stage], acc)
                warpgroup.commit_group()
                mark("wait wgmma")
                warpgroup.wait_group(0)
                mark("release")
                self.release(empty + stage, lane)
                i += 1
            self.store(acc, sc[None, None, group], atom_c, c, mma, thread, group, m, n)
        if thread < 32:
            cute.arch.cp_async_bulk_wait_group(0, read=True)

    @cute.jit
    def release(self, barrier, lane):
        if cutlass.const_expr(self.cluster > 1):
            if lane < self.cluster:
                cute.arch.mbarrier_arrive(barrier, lane)
        else:
            if lane == 0:
                cute.arch.mbarrier_arrive(barrier)

    @cute.jit
    def store(self, acc, sc, atom_c, c, mma, thread, group, m, n):
        out = cute.make_rmem_tensor_like(acc, BFloat16)
        out.store(acc.load().to(BFloat16))
        atom = cute.make_copy_atom(warp.StMatrix8x8x16bOp(transpose=False, num_matrices=4), BFloat16)
        part = cute.make_tiled_copy_C(atom, mma).get_slice(thread)
        if thread < 32:
            mark("wait store read")
            cute.arch.cp_async_bulk_wait_group(0, read=True)
        mark("epilogue barrier 1")
        cute.arch.barrier(barrier_id=1 + group, number_of_threads=WARPGROUP)
        mark("stmatrix")
        cute.copy(atom, part.retile(out), part.partition_D(sc))
        mark("epilogue fence")
        cute.arch.fence_view_async_shared()
        mark("epilogue barrier 2")
        cute.arch.barrier(barrier_id=1 + group, number_of_threads=WARPGROUP)
        if thread < 32:
            target = cute.local_tile(c, (64, self.N), (2 * m + group, n))
            s, g = tma_slices(atom_c, sc, target)
            mark("store c")
            cute.copy(atom_c, s, g)
            cute.arch.cp_async_bulk_commit_group()


@functools.cache
def matmul(stages: int = 3, a_in_registers: bool = False, cluster: int = 1) -> Any:
    """A compiled `Matmul`; call it with (a, b, c, number of CTAs)."""
    m, n, k = cute.sym_int(divisibility=128), cute.sym_int(divisibility=64), cute.sym_int(divisibility=64)
    function = Matmul(stages, a_in_registers, cluster)
    return compiled(function, fake(BFloat16, m, k), fake(BFloat16, n, k), fake(BFloat16, m, n), Int32(1))
