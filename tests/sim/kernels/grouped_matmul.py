"""Products of groups of any shapes in one launch: a persistent kernel that changes its tensor maps for each group."""

import functools
from typing import Any

import cuda.bindings.driver as cuda
import cutlass
import cutlass.utils.hopper_helpers as hopper
from cutlass import BFloat16, Float32, Int32, Int64, cute, range_constexpr
from cutlass.cute.nvgpu import OperandMajorMode, cpasync, warp, warpgroup

from kernels import WARPGROUP, accumulating, compiled, fake, mark
from kernels.matmul import one_stage, smem_layout, tma_slices

MAP_WORDS = 16  # of 64 bits


class GroupedMatmul:
    """c = a @ b.T for every group: TMA into a ring of stages, a consumer warpgroup with WGMMA, TMA store.

    CTA i takes tiles i, i + grid, ... of those of all groups, one group after another. It has three maps, for a, b and
    c of its group, in shared memory where it changes them and in global memory where TMA reads them.
    """

    M, N, K, STAGES = 64, 64, 64, 3

    @cute.jit
    def __call__(
        self, a: cute.Tensor, b: cute.Tensor, c: cute.Tensor, shapes: cute.Tensor, starts: cute.Tensor,
        maps: cute.Tensor, stream: cuda.CUstream,
    ) -> None:  # fmt: skip
        a_layout, b_layout = smem_layout(self.M, self.K, self.STAGES), smem_layout(self.N, self.K, self.STAGES)
        c_layout = smem_layout(self.M, self.N, 1)
        load, store = cpasync.CopyBulkTensorTileG2SOp(), cpasync.CopyBulkTensorTileS2GOp()
        # box, swizzle and type are those of every group; extents are replaced, so none may be a constant
        a_rows, b_rows, c_rows = (
            cute.make_tensor(x.iterator, cute.make_layout((x.shape[0] // 64, Int32(64)), stride=(64, 1)))
            for x in (a, b, c)
        )
        tma_a = cpasync.make_tiled_tma_atom(load, a_rows, one_stage(a_layout), (self.M, self.K))
        tma_b = cpasync.make_tiled_tma_atom(load, b_rows, one_stage(b_layout), (self.N, self.K))
        tma_c = cpasync.make_tiled_tma_atom(store, c_rows, one_stage(c_layout), (self.M, self.N))
        major = OperandMajorMode.K
        mma = hopper.make_trivial_tiled_mma(BFloat16, BFloat16, major, major, Float32, (1, 1, 1), (64, self.N))

        @cute.struct
        class Storage:
            full: cute.struct.MemRange[Int64, self.STAGES]
            empty: cute.struct.MemRange[Int64, self.STAGES]
            maps: cute.struct.Align[cute.struct.MemRange[Int64, 3 * MAP_WORDS], 128]
            a: cute.struct.Align[cute.struct.MemRange[BFloat16, cute.cosize(a_layout)], 1024]
            b: cute.struct.Align[cute.struct.MemRange[BFloat16, cute.cosize(b_layout)], 1024]
            c: cute.struct.Align[cute.struct.MemRange[BFloat16, cute.cosize(c_layout)], 1024]

        self.Storage = Storage
        self.kernel(
            *tma_a, *tma_b, *tma_c, a, b, c, shapes, starts, maps, a_layout, b_layout, c_layout, mma
        ).launch(
            grid=(maps.shape[0], 1, 1), block=(2 * WARPGROUP, 1, 1), stream=stream, min_blocks_per_mp=1
        )  # fmt: skip

    @cute.kernel
    def kernel(
        self, atom_a: cute.CopyAtom, tma_a: cute.Tensor, atom_b: cute.CopyAtom, tma_b: cute.Tensor,
        atom_c: cute.CopyAtom, tma_c: cute.Tensor, a: cute.Tensor, b: cute.Tensor, c: cute.Tensor, shapes: cute.Tensor,
        starts: cute.Tensor, maps: cute.Tensor, a_layout: cute.ComposedLayout, b_layout: cute.ComposedLayout,
        c_layout: cute.ComposedLayout, mma: cute.TiledMma,
    ) -> None:  # fmt: skip
        storage = cutlass.memory.SmemAllocator().allocate(self.Storage)
        sa = storage.a.get_tensor(a_layout.outer, swizzle=a_layout.inner)
        sb = storage.b.get_tensor(b_layout.outer, swizzle=b_layout.inner)
        sc = storage.c.get_tensor(c_layout.outer, swizzle=c_layout.inner)
        full, empty, drafts = storage.full.data_ptr(), storage.empty.data_ptr(), storage.maps.data_ptr()
        index = cute.arch.make_warp_uniform(cute.arch.warp_idx())
        if index == 0:
            with cute.arch.elect_one():
                for stage in range_constexpr(self.STAGES):
                    cute.arch.mbarrier_init(full + stage, 1)
                    cute.arch.mbarrier_init(empty + stage, 4)
                cute.arch.mbarrier_init_fence()
        cute.arch.sync_threads()
        if index == 0:
            self.produce(atom_a, tma_a, sa, a, atom_b, tma_b, sb, b, full, empty, shapes, starts, maps, drafts)
        elif index >= 4:
            self.consume(sa, sb, sc, atom_c, tma_c, c, full, empty, shapes, starts, maps, drafts, index - 4, mma)

    @cute.jit
    def find(self, tile, shapes):
        """The group of a tile, its row and its column of tiles there, the steps along k."""
        group, first, end = Int32(0), Int32(0), Int32(0)
        for g in cutlass.range(shapes.shape[0], unroll=1):
            end += cute.ceil_div(shapes[g, 0], self.M) * cute.ceil_div(shapes[g, 1], self.N)
            if tile >= end:
                group, first = g + 1, end
        rows = cute.ceil_div(shapes[group, 0], self.M)
        return group, (tile - first) % rows, (tile - first) // rows, cute.ceil_div(shapes[group, 2], self.K)

    @cute.jit
    def tiles(self, shapes):
        """Of all groups."""
        count = Int32(0)
        for g in cutlass.range(shapes.shape[0], unroll=1):
            count += cute.ceil_div(shapes[g, 0], self.M) * cute.ceil_div(shapes[g, 1], self.N)
        return count

    @cute.jit
    def change(self, name: cutlass.Constexpr, atom, x, start, rows, columns, draft, published):
        """A warp makes the map that of a matrix [rows, columns] from an element of x on."""
        matrix = cute.make_layout((rows, columns), stride=(columns, 1))
        mark(f"update {name}")
        cpasync.update_tma_descriptor(atom, cute.make_tensor((x.iterator + start).align(16), matrix), draft)
        cute.arch.sync_warp()
        mark(f"publish {name}")
        cpasync.cp_fence_tma_desc_release(published, draft)
        mark(f"acquire {name}")
        cpasync.fence_tma_desc_acquire(published)

    @cute.jit
    def draft(self, atom, drafts, number: cutlass.Constexpr):
        """The place of a map in shared memory, with what is the same for every group."""
        draft = (drafts + number * MAP_WORDS).align(128)
        cpasync.copy_tensormap(atom, draft)
        return draft

    @cute.jit
    def published(self, maps, number: cutlass.Constexpr):
        """The place of a map in global memory, to write it and to copy through it."""
        where = maps[cute.arch.block_idx()[0], number, None].iterator.align(128)
        manager = cutlass.tensor_utils.TensorMapManager(cutlass.tensor_utils.TensorMapUpdateMode.SMEM, 128)
        return where, manager.get_tensormap_ptr(where, cute.AddressSpace.generic)

    @cute.jit
    def produce(self, atom_a, tma_a, sa, a, atom_b, tma_b, sb, b, full, empty, shapes, starts, maps, drafts):
        sa, ga = tma_slices(atom_a, sa, cute.local_tile(tma_a, (self.M, self.K), (None, None)))
        sb, gb = tma_slices(atom_b, sb, cute.local_tile(tma_b, (self.N, self.K), (None, None)))
        draft_a, draft_b = self.draft(atom_a, drafts, 0), self.draft(atom_b, drafts, 1)
        cute.arch.sync_warp()
        (published_a, map_a), (published_b, map_b) = self.published(maps, 0), self.published(maps, 1)
        i, last = Int32(0), Int32(-1)
        for tile in cutlass.range(cute.arch.block_idx()[0], self.tiles(shapes), cute.arch.grid_dim()[0], unroll=1):
            group, m, n, steps = self.find(tile, shapes)
            if group != last:
                for back in range_constexpr(1, self.STAGES + 1):  # no load may read the maps any more
                    if i >= back:
                        j = i - back
                        mark(f"wait load {back}")
                        cute.arch.mbarrier_wait(full + j % self.STAGES, (j // self.STAGES) % 2)
                rows, columns, depth = shapes[group, 0], shapes[group, 1], shapes[group, 2]
                self.change("a", atom_a, a, starts[group, 0], rows, depth, draft_a, published_a)
                self.change("b", atom_b, b, starts[group, 1], columns, depth, draft_b, published_b)
                last = group
            for k in cutlass.range(0, steps, unroll=1):
                stage = i % self.STAGES
                mark("wait empty")
                cute.arch.mbarrier_wait(empty + stage, (i // self.STAGES) % 2 ^ 1)
                with cute.arch.elect_one():
                    mark("expect")
                    cute.arch.mbarrier_arrive_and_expect_tx(full + stage, (self.M + self.N) * self.K * 2)
                mark("load a")
                cute.copy(atom_a, ga[None, m, k], sa[None, stage], tma_bar_ptr=full + stage, tma_desc_ptr=map_a)
                mark("load b")
                cute.copy(atom_b, gb[None, n, k], sb[None, stage], tma_bar_ptr=full + stage, tma_desc_ptr=map_b)
                i += 1

    @cute.jit
    def consume(self, sa, sb, sc, atom_c, tma_c, c, full, empty, shapes, starts, maps, drafts, index, mma):
        lane = cute.arch.lane_idx()
        thread = index * 32 + lane
        part = mma.get_slice(0)
        acc = cute.make_rmem_tensor(part.partition_shape_C((self.M, self.N)), Float32)
        fa, fb = part.make_fragment_A(part.partition_A(sa)), part.make_fragment_B(part.partition_B(sb))
        out = cute.make_rmem_tensor_like(acc, BFloat16)
        atom = cute.make_copy_atom(warp.StMatrix8x8x16bOp(transpose=False, num_matrices=4), BFloat16)
        slices = cute.make_tiled_copy_C(atom, mma).get_slice(thread)
        s, g = tma_slices(atom_c, sc[None, None, 0], cute.local_tile(tma_c, (self.M, self.N), (None, None)))
        published, map_c = self.published(maps, 2)
        draft = (drafts + 2 * MAP_WORDS).align(128)
        if index == 0:
            cpasync.copy_tensormap(atom_c, draft)
            cute.arch.sync_warp()
        i, last = Int32(0), Int32(-1)
        for tile in cutlass.range(cute.arch.block_idx()[0], self.tiles(shapes), cute.arch.grid_dim()[0], unroll=1):
            group, m, n, steps = self.find(tile, shapes)
            if index == 0 and group != last:
                mark("wait stores")  # none may read the map any more
                cute.arch.cp_async_bulk_wait_group(0, read=True)
                self.change("c", atom_c, c, starts[group, 2], shapes[group, 0], shapes[group, 1], draft, published)
                last = group
            acc.fill(0.0)
            for _ in cutlass.range(0, steps, unroll=1):
                stage = i % self.STAGES
                mark("wait full")
                cute.arch.mbarrier_wait(full + stage, (i // self.STAGES) % 2)
                mark("wgmma fence")
                warpgroup.fence()
                for step in range_constexpr(self.K // 16):
                    tile_a, tile_b = fa[None, None, step, stage], fb[None, None, step, stage]
                    cute.gemm(accumulating(mma), acc, tile_a, tile_b, acc)
                warpgroup.commit_group()
                mark("wait wgmma")
                warpgroup.wait_group(0)
                mark("release")
                if lane == 0:
                    cute.arch.mbarrier_arrive(empty + stage)
                i += 1
            out.store(acc.load().to(BFloat16))
            if index == 0:
                mark("wait store read")
                cute.arch.cp_async_bulk_wait_group(0, read=True)
            mark("epilogue barrier 1")
            cute.arch.barrier(barrier_id=1, number_of_threads=WARPGROUP)
            mark("stmatrix")
            cute.copy(atom, slices.retile(out), slices.partition_D(sc[None, None, 0]))
            mark("epilogue fence")
            cute.arch.fence_view_async_shared()
            mark("epilogue barrier 2")
            cute.arch.barrier(barrier_id=1, number_of_threads=WARPGROUP)
            if index == 0:
                mark("store c")
                cute.copy(atom_c, s, g[None, m, n], tma_desc_ptr=map_c)
                cute.arch.cp_async_bulk_commit_group()
        if index == 0:
            mark("last wait")
            cute.arch.cp_async_bulk_wait_group(0, read=True)


@functools.cache
def grouped_matmul() -> Any:
    """(a, b, c: bf16[n], shapes: int32[groups, 3], starts: int32[groups, 3], maps: int64[ctas, 3, 16], stream).

    shapes: M, N, K of each group, N and K multiples of 8. starts: the first elements of its [M, K] in a, [N, K] in b
    and [M, N] in c, multiples of 8. maps: a workspace, aligned to 128 bytes.
    """
    operands = (fake(BFloat16, cute.sym_int(divisibility=64)) for _ in range(3))
    groups = cute.sym_int()
    tables = (fake(Int32, groups, 3, align=4) for _ in range(2))
    return compiled(GroupedMatmul(), *operands, *tables, fake(Int64, cute.sym_int(), 3, MAP_WORDS, align=128))
