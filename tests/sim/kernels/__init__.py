"""Small kernels in the CuTe DSL, one for each way of working that the simulator must know; compiled once a process.

`mark("name")` leaves a comment in the PTX right before the instruction that follows, so that the mutation suite can say
which instruction it changes.
"""

import functools
import tempfile
from collections.abc import Callable
from typing import Any

import cuda.bindings.driver as cuda
import cutlass
from cutlass import BFloat16, Float32, Int32, cute, range_constexpr
from cutlass._mlir.dialects import llvm
from cutlass.cute.nvgpu import warpgroup
from cutlass.cutlass_dsl import dsl_user_op

WARPGROUP = 128
ROW_MAJOR = {1: (0,), 2: (1, 0), 3: (2, 1, 0)}


@dsl_user_op
def mark(name: str, *, loc: Any = None, ip: Any = None) -> None:
    """A comment in the PTX."""
    llvm.inline_asm(
        None, [], f"// mark: {name}", "", has_side_effects=True, is_align_stack=False,
        asm_dialect=llvm.AsmDialect.AD_ATT, loc=loc, ip=ip,
    )  # fmt: skip


def compiled(function: Callable, *args: Any) -> Any:
    """Compiles for fake arguments, with a stream from the environment as the last one."""
    stream = cute.runtime.make_fake_stream(use_tvm_ffi_env_stream=True)
    with tempfile.TemporaryDirectory() as dump:
        return cute.compile(function, *args, stream, options=f"--enable-tvm-ffi --keep-ptx --dump-dir={dump}")


def fake(dtype: type, *shape: Any, align: int = 16) -> Any:
    """A row-major tensor argument without memory."""
    return cute.runtime.make_fake_compact_tensor(dtype, shape, stride_order=ROW_MAJOR[len(shape)], assumed_align=align)


def accumulating(mma: Any) -> Any:
    """A tiled WGMMA as an atom that adds to its accumulator."""
    atom = cute.make_mma_atom(mma.op)
    atom.set(warpgroup.Field.ACCUMULATE, True)
    return atom


# ---------------------------------------------------------------------------- elementwise


@cute.kernel
def _scaled_sum(x: cute.Tensor, y: cute.Tensor, out: cute.Tensor, scale: Float32) -> None:
    i = cute.arch.block_idx()[0] * cute.arch.block_dim()[0] + cute.arch.thread_idx()[0]
    if i < out.shape[0]:
        out[i] = x[i] * scale + y[i]


@cute.jit
def _launch_scaled_sum(
    x: cute.Tensor, y: cute.Tensor, out: cute.Tensor, scale: Float32, threads: cutlass.Constexpr, stream: cuda.CUstream
) -> None:
    _scaled_sum(x, y, out, scale).launch(
        grid=(cute.ceil_div(out.shape[0], threads), 1, 1), block=(threads, 1, 1), stream=stream
    )


@functools.cache
def scaled_sum() -> Any:
    """out = scale * x + y, fp32 vectors of any length."""
    n = cute.sym_int()
    return compiled(_launch_scaled_sum, *(fake(Float32, n, align=4) for _ in range(3)), Float32(1.0), 128)


# ---------------------------------------------------------------------------- reductions


@cute.kernel
def _column_sums(x: cute.Tensor, out: cute.Tensor, total: cute.Tensor, rows: cutlass.Constexpr) -> None:
    thread = cute.arch.thread_idx()[0]
    lane = cute.arch.lane_idx()
    block = cute.arch.block_idx()[0]
    partial = cutlass.memory.SmemAllocator().allocate_tensor(Float32, cute.make_layout(WARPGROUP), 128)
    sums = Float32(0.0)
    for row in cutlass.range(rows):
        sums += x[block * rows + row, thread]
    mark("partial sums store")
    partial[thread] = sums
    for step in range_constexpr(5):
        sums += cute.arch.shuffle_sync_bfly(sums, offset=1 << step)
    if lane == 0:
        mark("atomic add")
        cute.arch.atomic_add(total.iterator, sums)
    mark("proxy fence")
    cute.arch.fence_view_async_shared()
    mark("block barrier")
    cute.arch.sync_threads()
    if thread < 32:
        with cute.arch.elect_one():
            mark("bulk add")
            _bulk_add(out.iterator, partial.iterator, WARPGROUP * 4)
            cute.arch.cp_async_bulk_commit_group()
            mark("bulk wait")
            cute.arch.cp_async_bulk_wait_group(0)


@dsl_user_op
def _bulk_add(target: Any, source: Any, size: int, *, loc: Any = None, ip: Any = None) -> None:
    """Adds `size` bytes of fp32 in shared memory to global memory, asynchronously."""
    llvm.inline_asm(
        None, [target.llvm_ptr, source.toint(loc=loc, ip=ip).ir_value(loc=loc, ip=ip), Int32(size).ir_value()],
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [$0], [$1], $2;", "l,r,r", has_side_effects=True,
        is_align_stack=False, asm_dialect=llvm.AsmDialect.AD_ATT, loc=loc, ip=ip,
    )  # fmt: skip


@cute.jit
def _launch_column_sums(
    x: cute.Tensor, out: cute.Tensor, total: cute.Tensor, rows: cutlass.Constexpr, stream: cuda.CUstream
) -> None:
    _column_sums(x, out, total, rows).launch(
        grid=(x.shape[0] // rows, 1, 1), block=(WARPGROUP, 1, 1), smem=WARPGROUP * 4, stream=stream
    )


@cute.kernel
def _round(sums: cute.Tensor, rounded: cute.Tensor) -> None:
    thread = cute.arch.thread_idx()[0]
    rounded[thread] = sums[thread].to(BFloat16)


@cute.jit
def _launch_rounded_sums(
    x: cute.Tensor, out: cute.Tensor, total: cute.Tensor, rounded: cute.Tensor, rows: cutlass.Constexpr,
    stream: cuda.CUstream,
) -> None:  # fmt: skip
    _launch_column_sums(x, out, total, rows, stream)
    _round(out, rounded).launch(grid=(1, 1, 1), block=(WARPGROUP, 1, 1), stream=stream)


@functools.cache
def rounded_sums() -> Any:
    """`column_sums`, and a second kernel that rounds out to bf16."""
    x = fake(Float32, cute.sym_int(divisibility=8), WARPGROUP)
    out, rounded = fake(Float32, WARPGROUP), fake(BFloat16, WARPGROUP)
    return compiled(_launch_rounded_sums, x, out, fake(Float32, 1), rounded, 8)


@functools.cache
def column_sums() -> Any:
    """out += x.sum(0) by bulk reductions, total += x.sum() by atomics; x: fp32[8 * blocks, 128], out: [128]."""
    x = fake(Float32, cute.sym_int(divisibility=8), WARPGROUP)
    return compiled(_launch_column_sums, x, fake(Float32, WARPGROUP), fake(Float32, 1), 8)
