"""Two CTAs of a cluster that send each other rows by st.async, into a ring of two places in shared memory."""

import functools
from typing import Any

import cuda.bindings.driver as cuda
import cutlass
from cutlass import Float32, Int64, cute, range_constexpr
from cutlass._mlir.dialects import llvm, nvvm
from cutlass.cutlass_dsl import dsl_user_op

from kernels import WARPGROUP, compiled, fake, mark

STAGES, WIDTH = 2, 4 * WARPGROUP


@dsl_user_op
def _send(to: Any, values: list[Any], barrier: Any, *, loc: Any = None, ip: Any = None) -> None:
    """Four values of a thread to the shared memory of a CTA of the cluster, and 16 bytes to a barrier beside it."""
    places = [x.toint(loc=loc, ip=ip).ir_value(loc=loc, ip=ip) for x in (to, barrier)]
    llvm.inline_asm(
        None, [*places, *(x.ir_value(loc=loc, ip=ip) for x in values)],
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [$0], {$2, $3, $4, $5}, [$1];",
        "r,r,f,f,f,f", has_side_effects=True, is_align_stack=False, asm_dialect=llvm.AsmDialect.AD_ATT, loc=loc, ip=ip,
    )  # fmt: skip


@cute.kernel
def _exchange(x: cute.Tensor, out: cute.Tensor) -> None:
    memory = cutlass.memory.SmemAllocator()
    full, empty = memory.allocate_array(Int64, STAGES), memory.allocate_array(Int64, STAGES)
    inbox = memory.allocate_tensor(Float32, cute.make_layout((WIDTH, STAGES)), byte_alignment=128)
    thread, lane = cute.arch.thread_idx()[0], cute.arch.lane_idx()
    rank = cute.arch.block_idx_in_cluster()
    peer = 1 - rank
    if thread == 0:
        for stage in range_constexpr(STAGES):
            cute.arch.mbarrier_init(full + stage, 1)
            cute.arch.mbarrier_init(empty + stage, WARPGROUP // 32)
        cute.arch.mbarrier_init_fence()
    cute.arch.cluster_arrive_relaxed()
    cute.arch.cluster_wait()
    for round in cutlass.range(x.shape[0] // 2, unroll=1):
        stage, phase = round % STAGES, (round // STAGES) % 2
        mine = cute.local_tile(x[2 * round + rank, None], (4,), (thread,)).load()
        if thread == 0:
            mark("expect")
            cute.arch.mbarrier_arrive_and_expect_tx(full + stage, 4 * WIDTH)
        mark("wait empty")
        cute.arch.mbarrier_wait(empty + stage, phase ^ 1)  # the peer's place: its warps arrive here
        to = inbox.iterator + (stage * WIDTH + 4 * thread)
        mark("send")
        target = cute.arch.map_dsmem_ptr(to, peer)
        _send(target, [mine[i] for i in range(4)], cute.arch.map_dsmem_ptr(full + stage, peer))
        mark("wait full")
        cute.arch.mbarrier_wait(full + stage, phase)
        mark("receive")
        theirs = cute.local_tile(inbox[None, stage], (4,), (thread,)).load()
        cute.local_tile(out[2 * round + rank, None], (4,), (thread,)).store(mine + theirs)
        cute.arch.sync_warp()
        mark("release")
        if lane == 0:
            cute.arch.mbarrier_arrive(empty + stage, peer, scope=nvvm.MemScopeKind.CLUSTER)
    mark("end")
    cute.arch.cluster_arrive()
    cute.arch.cluster_wait()


@cute.jit
def _launch(x: cute.Tensor, out: cute.Tensor, stream: cuda.CUstream) -> None:
    _exchange(x, out).launch(grid=(2, 1, 1), block=(WARPGROUP, 1, 1), cluster=(2, 1, 1), stream=stream)


@functools.cache
def exchange() -> Any:
    """(x, out: fp32[rows, 512], stream): rows 2 i and 2 i + 1 of out are the sum of both of x, each made by a CTA."""
    rows = cute.sym_int(divisibility=2)
    return compiled(_launch, fake(Float32, rows, WIDTH), fake(Float32, rows, WIDTH))
