"""Softmax attention as pipelined kernels do it: two rings, ping-pong warpgroups, P V overlapped with the next Q K."""

import functools
import math
from typing import Any

import cuda.bindings.driver as cuda
import cutlass
import cutlass.utils.hopper_helpers as hopper
from cutlass import BFloat16, Float32, Int32, cute, range_constexpr
from cutlass.cute.nvgpu import OperandMajorMode, cpasync, warp, warpgroup

from kernels import WARPGROUP, compiled, fake, mark
from kernels.matmul import one_stage, smem_layout, tma_slices

STAGES = 2
TURN = 1  # named barriers 1 and 2: a warpgroup's turn to issue its products
EPILOGUE = 3  # named barriers 3 and 4: a warpgroup's own


@cute.jit
def multiply(op, acc, a, b, clear: cutlass.Constexpr):
    """acc (+)= a @ b, as one group of asynchronous products."""
    atom = cute.make_mma_atom(op)
    atom.set(warpgroup.Field.ACCUMULATE, not clear)
    for step in range_constexpr(cute.size(a.shape[2])):
        cute.gemm(atom, acc, a[None, None, step], b[None, None, step], acc)
        atom.set(warpgroup.Field.ACCUMULATE, True)
    warpgroup.commit_group()


class Attention:
    """out = softmax(scale * q @ k.T) @ v, one head: q, out bf16[rows, 64], k, v bf16[keys, 64], lse fp32[rows].

    Query tiles of 128 rows, key tiles of 64; rows and keys are multiples of these, and every query tile sees every key.
    CTA i takes query tiles i, i + grid, ...; warp 0 loads q and k, warp 1 loads v.
    """

    M, N, D = 128, 64, 64

    @cute.jit
    def __call__(
        self, q: cute.Tensor, k: cute.Tensor, v: cute.Tensor, out: cute.Tensor, lse: cute.Tensor,
        scale: Float32, n_cta: Int32, stream: cuda.CUstream,
    ) -> None:  # fmt: skip
        q_layout, kv_layout = smem_layout(64, self.D, 2), smem_layout(self.N, self.D, STAGES)
        load, store = cpasync.CopyBulkTensorTileG2SOp(), cpasync.CopyBulkTensorTileS2GOp()
        tma_q = cpasync.make_tiled_tma_atom(load, q, one_stage(q_layout), (64, self.D))
        tma_k = cpasync.make_tiled_tma_atom(load, k, one_stage(kv_layout), (self.N, self.D))
        tma_v = cpasync.make_tiled_tma_atom(load, v, one_stage(kv_layout), (self.N, self.D))
        tma_o = cpasync.make_tiled_tma_atom(store, out, one_stage(q_layout), (64, self.D))
        k_major, mn_major = OperandMajorMode.K, OperandMajorMode.MN
        make = functools.partial(hopper.make_trivial_tiled_mma, BFloat16, BFloat16, k_major)
        mma_qk = make(k_major, Float32, (1, 1, 1), (64, self.N))
        mma_pv = make(mn_major, Float32, (1, 1, 1), (64, self.D), a_source=warpgroup.OperandSource.RMEM)

        @cute.struct
        class Storage:
            q_full: cute.struct.MemRange[cutlass.Int64, 1]
            q_empty: cute.struct.MemRange[cutlass.Int64, 1]
            k_full: cute.struct.MemRange[cutlass.Int64, STAGES]
            k_empty: cute.struct.MemRange[cutlass.Int64, STAGES]
            v_full: cute.struct.MemRange[cutlass.Int64, STAGES]
            v_empty: cute.struct.MemRange[cutlass.Int64, STAGES]
            q: cute.struct.Align[cute.struct.MemRange[BFloat16, cute.cosize(q_layout)], 1024]
            o: cute.struct.Align[cute.struct.MemRange[BFloat16, cute.cosize(q_layout)], 1024]
            k: cute.struct.Align[cute.struct.MemRange[BFloat16, cute.cosize(kv_layout)], 1024]
            v: cute.struct.Align[cute.struct.MemRange[BFloat16, cute.cosize(kv_layout)], 1024]

        self.Storage = Storage
        tiles = (cute.size(q, mode=[0]) // self.M, cute.size(k, mode=[0]) // self.N)
        self.kernel(
            *tma_q, *tma_k, *tma_v, *tma_o, lse, scale * math.log2(math.e), tiles, q_layout, kv_layout, mma_qk, mma_pv
        ).launch(grid=(n_cta, 1, 1), block=(3 * WARPGROUP, 1, 1), stream=stream, min_blocks_per_mp=1)

    @cute.kernel
    def kernel(
        self, atom_q: cute.CopyAtom, q: cute.Tensor, atom_k: cute.CopyAtom, k: cute.Tensor, atom_v: cute.CopyAtom,
        v: cute.Tensor, atom_o: cute.CopyAtom, o: cute.Tensor, lse: cute.Tensor, scale: Float32, tiles: cute.Shape,
        q_layout: cute.ComposedLayout, kv_layout: cute.ComposedLayout, mma_qk: cute.TiledMma, mma_pv: cute.TiledMma,
    ) -> None:  # fmt: skip
        storage = cutlass.memory.SmemAllocator().allocate(self.Storage)
        sq, so = [x.get_tensor(q_layout.outer, swizzle=q_layout.inner) for x in (storage.q, storage.o)]
        sk, sv = [x.get_tensor(kv_layout.outer, swizzle=kv_layout.inner) for x in (storage.k, storage.v)]
        q_full, q_empty = storage.q_full.data_ptr(), storage.q_empty.data_ptr()
        k_full, k_empty = storage.k_full.data_ptr(), storage.k_empty.data_ptr()
        v_full, v_empty = storage.v_full.data_ptr(), storage.v_empty.data_ptr()
        index = cute.arch.make_warp_uniform(cute.arch.warp_idx())
        if index == 0:
            with cute.arch.elect_one():
                cute.arch.mbarrier_init(q_full, 1)
                mark("init q empty")
                cute.arch.mbarrier_init(q_empty, 8)
                for stage in range_constexpr(STAGES):
                    for full, empty in ((k_full, k_empty), (v_full, v_empty)):
                        cute.arch.mbarrier_init(full + stage, 1)
                        cute.arch.mbarrier_init(empty + stage, 8)
                cute.arch.mbarrier_init_fence()
        cute.arch.sync_threads()
        if index == 0:
            self.produce_qk(atom_q, q, sq, atom_k, k, sk, (q_full, q_empty, k_full, k_empty), tiles)
        if index == 1:
            self.produce_v(atom_v, v, sv, v_full, v_empty, tiles)
        if index >= 4:
            barriers = (q_full, q_empty, k_full, k_empty, v_full, v_empty)
            sv_t = cute.composition(sv, cute.make_ordered_layout((self.D, self.N, STAGES), order=(1, 0, 2)))
            self.consume(sq, sk, sv_t, so, barriers, atom_o, o, lse, scale, tiles, index - 4, mma_qk, mma_pv)

    @cute.jit
    def produce_qk(self, atom_q, q, sq, atom_k, k, sk, barriers, tiles):
        q_full, q_empty, k_full, k_empty = barriers
        sq, gq = tma_slices(atom_q, sq, cute.local_tile(q, (64, self.D), (None, 0)))
        sk, gk = tma_slices(atom_k, sk, cute.local_tile(k, (self.N, self.D), (None, 0)))
        i, phase = Int32(0), Int32(1)
        for tile in cutlass.range(cute.arch.block_idx()[0], tiles[0], cute.arch.grid_dim()[0], unroll=1):
            mark("wait q empty")
            cute.arch.mbarrier_wait(q_empty, phase)
            phase ^= 1
            with cute.arch.elect_one():
                mark("expect q")
                cute.arch.mbarrier_arrive_and_expect_tx(q_full, self.M * self.D * 2)
            for group in range_constexpr(2):
                mark(f"load q {group}")
                cute.copy(atom_q, gq[None, 2 * tile + group], sq[None, group], tma_bar_ptr=q_full)
            i = self.ring(atom_k, gk, sk, k_full, k_empty, "k", i, tiles[1])

    @cute.jit
    def produce_v(self, atom_v, v, sv, full, empty, tiles):
        sv, gv = tma_slices(atom_v, sv, cute.local_tile(v, (self.N, self.D), (None, 0)))
        i = Int32(0)
        for _ in cutlass.range(cute.arch.block_idx()[0], tiles[0], cute.arch.grid_dim()[0], unroll=1):
            i = self.ring(atom_v, gv, sv, full, empty, "v", i, tiles[1])

    @cute.jit
    def ring(self, atom, source, target, full, empty, name: cutlass.Constexpr, i: Int32, n: Int32):
        """Loads n tiles into the ring; i counts the tiles of all query tiles. Returns the new count."""
        for tile in cutlass.range(0, n, unroll=1):
            stage = i % STAGES
            mark(f"wait {name} empty")
            cute.arch.mbarrier_wait(empty + stage, i // STAGES % 2 ^ 1)
            with cute.arch.elect_one():
                mark(f"expect {name}")
                cute.arch.mbarrier_arrive_and_expect_tx(full + stage, self.N * self.D * 2)
            mark(f"load {name}")
            cute.copy(atom, source[None, tile], target[None, stage], tma_bar_ptr=full + stage)
            i += 1
        return i

    @cute.jit
    def consume(self, sq, sk, sv, so, barriers, atom_o, o, lse, scale, tiles, index, mma_qk, mma_pv):
        q_full, q_empty, k_full, k_empty, v_full, v_empty = barriers
        cta, n_cta = cute.arch.block_idx()[0], cute.arch.grid_dim()[0]
        lane, group = cute.arch.lane_idx(), index // 4
        thread = index % 4 * 32 + lane
        qk, pv = mma_qk.get_slice(0), mma_pv.get_slice(0)
        fq = qk.make_fragment_A(qk.partition_A(sq))[None, None, None, group]
        fk, fv = qk.make_fragment_B(qk.partition_B(sk)), pv.make_fragment_B(pv.partition_B(sv))
        p = pv.make_fragment_A(pv.partition_shape_A((64, self.N)))
        scores = cute.make_rmem_tensor(qk.partition_shape_C((64, self.N)), Float32)
        acc = cute.make_rmem_tensor(pv.partition_shape_C((64, self.D)), Float32)
        top, total, correction = [cute.make_rmem_tensor(2, Float32) for _ in range(3)]
        if group == 1:
            mark("first turn")
            cute.arch.barrier_arrive(barrier_id=TURN, number_of_threads=2 * WARPGROUP)
        i, phase = Int32(0), Int32(0)
        for tile in cutlass.range(cta, tiles[0], n_cta, unroll=1):
            acc.fill(0.0)
            top.fill(-1.0e30)
            total.fill(0.0)
            mark("wait q full")
            cute.arch.mbarrier_wait(q_full, phase)
            phase ^= 1
            mark("wait first k full")
            cute.arch.mbarrier_wait(k_full + i % STAGES, i // STAGES % 2)
            self.take_turn(group)
            warpgroup.fence()
            multiply(mma_qk.op, scores, fq, fk[None, None, None, i % STAGES], True)
            self.pass_turn(group)
            mark("wait first qk")
            warpgroup.wait_group(0)
            mark("release first k")
            self.release(k_empty + i % STAGES, lane)
            self.softmax(scores, top, total, correction, scale)
            self.to_p(scores, p)
            for _ in cutlass.range(1, tiles[1], unroll=1):
                v_stage, v_turn = i % STAGES, i // STAGES % 2
                i += 1
                stage, turn = i % STAGES, i // STAGES % 2
                mark("wait k full")
                cute.arch.mbarrier_wait(k_full + stage, turn)
                self.take_turn(group)
                mark("fence qk")
                warpgroup.fence()
                multiply(mma_qk.op, scores, fq, fk[None, None, None, stage], True)
                mark("wait v full")
                cute.arch.mbarrier_wait(v_full + v_stage, v_turn)
                multiply(mma_pv.op, acc, p, fv[None, None, None, v_stage], False)
                self.pass_turn(group)
                mark("wait qk")
                warpgroup.wait_group(1)
                mark("release k")
                self.release(k_empty + stage, lane)
                self.softmax(scores, top, total, correction, scale)
                mark("wait pv")
                warpgroup.wait_group(0)
                mark("release v")
                self.release(v_empty + v_stage, lane)
                for e in range_constexpr(cute.size(acc)):
                    acc[e] = acc[e] * correction[e // 2 % 2]
                self.to_p(scores, p)
            mark("wait last v full")
            cute.arch.mbarrier_wait(v_full + i % STAGES, i // STAGES % 2)
            warpgroup.fence()
            multiply(mma_pv.op, acc, p, fv[None, None, None, i % STAGES], False)
            mark("wait last pv")
            warpgroup.wait_group(0)
            mark("release last v")
            self.release(v_empty + i % STAGES, lane)
            i += 1
            mark("release q")
            self.release(q_empty, lane)
            self.epilogue(acc, top, total, scale, so[None, None, group], atom_o, o, lse, mma_pv, thread, group, tile)
        if thread < 32:
            cute.arch.cp_async_bulk_wait_group(0, read=True)
        if group == 0:  # takes the last turn that warpgroup 1 passed: the barriers end as they began
            mark("last turn")
            cute.arch.barrier(barrier_id=TURN, number_of_threads=2 * WARPGROUP)

    @cute.jit
    def take_turn(self, group):
        mark("wait turn")
        cute.arch.barrier(barrier_id=TURN + group, number_of_threads=2 * WARPGROUP)

    @cute.jit
    def pass_turn(self, group):
        mark("pass turn")
        cute.arch.barrier_arrive(barrier_id=TURN + 1 - group, number_of_threads=2 * WARPGROUP)

    @cute.jit
    def softmax(self, scores, top, total, correction, scale):
        """scores = exp2(scale * (scores - row maximum)); total moves to the new maximum, by the factor correction."""
        for half in range_constexpr(2):
            new = top[half]
            for j in range_constexpr(self.N // 8):
                new = cute.arch.fmax(new, cute.arch.fmax(scores[4 * j + 2 * half], scores[4 * j + 2 * half + 1]))
            new = cute.arch.fmax(new, cute.arch.shuffle_sync_bfly(new, offset=1))
            new = cute.arch.fmax(new, cute.arch.shuffle_sync_bfly(new, offset=2))
            correction[half] = cute.math.exp2((top[half] - new) * scale, fastmath=True)
            top[half] = new
            total[half] = total[half] * correction[half]
            for j in range_constexpr(self.N // 8):
                for c in range_constexpr(2):
                    e = 4 * j + 2 * half + c
                    scores[e] = cute.math.exp2((scores[e] - new) * scale, fastmath=True)
                    total[half] = total[half] + scores[e]

    @cute.jit
    def to_p(self, scores, p):
        for e in range_constexpr(cute.size(p)):  # accumulator and A fragment have the same linear order
            p[e] = scores[e].to(BFloat16)

    @cute.jit
    def release(self, barrier, lane):
        if lane == 0:
            cute.arch.mbarrier_arrive(barrier)

    @cute.jit
    def epilogue(self, acc, top, total, scale, so, atom_o, o, lse, mma, thread, group, tile):
        for half in range_constexpr(2):
            total[half] = total[half] + cute.arch.shuffle_sync_bfly(total[half], offset=1)
            total[half] = total[half] + cute.arch.shuffle_sync_bfly(total[half], offset=2)
            row = tile * self.M + group * 64 + thread // 32 * 16 + 8 * half + thread % 32 // 4
            if thread % 4 == 0:
                mark(f"store lse {half}")
                lse[row] = (top[half] * scale + cute.math.log2(total[half], fastmath=True)) * math.log(2.0)
        for e in range_constexpr(cute.size(acc)):
            acc[e] = acc[e] * cute.arch.rcp_approx(total[e // 2 % 2])
        out = cute.make_rmem_tensor_like(acc, BFloat16)
        out.store(acc.load().to(BFloat16))
        atom = cute.make_copy_atom(warp.StMatrix8x8x16bOp(transpose=False, num_matrices=4), BFloat16)
        part = cute.make_tiled_copy_C(atom, mma).get_slice(thread)
        if thread < 32:
            mark("wait store read")
            cute.arch.cp_async_bulk_wait_group(0, read=True)
        mark("epilogue barrier 1")
        cute.arch.barrier(barrier_id=EPILOGUE + group, number_of_threads=WARPGROUP)
        cute.copy(atom, part.retile(out), part.partition_D(so))
        mark("epilogue fence")
        cute.arch.fence_view_async_shared()
        mark("epilogue barrier 2")
        cute.arch.barrier(barrier_id=EPILOGUE + group, number_of_threads=WARPGROUP)
        if thread < 32:
            s, g = tma_slices(atom_o, so, cute.local_tile(o, (64, self.D), (2 * tile + group, 0)))
            mark("store o")
            cute.copy(atom_o, s, g)
            cute.arch.cp_async_bulk_commit_group()


@functools.cache
def attention() -> Any:
    """A compiled `Attention`; call it with (q, k, v, out, lse, scale, number of CTAs)."""
    rows, keys = cute.sym_int(divisibility=128), cute.sym_int(divisibility=64)
    q, k = fake(BFloat16, rows, 64), fake(BFloat16, keys, 64)
    v, out = fake(BFloat16, keys, 64), fake(BFloat16, rows, 64)
    return compiled(Attention(), q, k, v, out, fake(Float32, rows, align=4), Float32(1.0), Int32(1))
