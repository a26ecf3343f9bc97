"""Groups of rows of one tensor, each loaded by TMA through a map that its CTA makes: the maps of a grouped GEMM."""

import functools
from typing import Any

import cuda.bindings.driver as cuda
import cutlass
from cutlass import BFloat16, Int32, Int64, cute
from cutlass.cute.nvgpu import cpasync

from kernels import compiled, fake, mark

ROWS, COLUMNS, THREADS = 24, 64, 128


@cute.kernel
def _grouped(
    atom: cute.CopyAtom,
    tensor: cute.Tensor,
    x: cute.Tensor,
    starts: cute.Tensor,
    maps: cute.Tensor,
    out: cute.Tensor,
    layout: cute.Layout,
) -> None:
    group, thread = cute.arch.block_idx()[0], cute.arch.thread_idx()[0]
    memory = cutlass.memory.SmemAllocator()
    tile = memory.allocate_tensor(BFloat16, layout, byte_alignment=128)
    draft = memory.allocate_array(Int64, 16, byte_alignment=128)
    barrier = memory.allocate_array(Int64, 1, byte_alignment=8)
    published = maps[group, None].iterator.align(128)
    warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
    if warp == 0:
        with cute.arch.elect_one():
            cute.arch.mbarrier_init(barrier, 1)
    cute.arch.mbarrier_init_fence()
    cute.arch.sync_threads()
    if warp == 0:
        cpasync.copy_tensormap(atom, draft)
        cute.arch.sync_warp()
        first, end = starts[group], starts[group + 1]
        rows = cute.make_layout((end - first, COLUMNS), stride=(COLUMNS, 1))
        mark("update")
        cpasync.update_tma_descriptor(atom, cute.make_tensor(x[first, None].iterator.align(16), rows), draft)
        cute.arch.sync_warp()
        mark("publish")
        cpasync.cp_fence_tma_desc_release(published, draft)
        mark("acquire")
        cpasync.fence_tma_desc_acquire(published)
        with cute.arch.elect_one():
            cute.arch.mbarrier_arrive_and_expect_tx(barrier, 2 * ROWS * COLUMNS)
        box = cute.local_tile(tensor, (ROWS, COLUMNS), (0, 0))
        to, source = cpasync.tma_partition(
            atom, 0, cute.make_layout(1), cute.group_modes(tile, 0, 2), cute.group_modes(box, 0, 2)
        )
        descriptor = cutlass.tensor_utils.TensorMapManager(
            cutlass.tensor_utils.TensorMapUpdateMode.SMEM, 128
        ).get_tensormap_ptr(published, cute.AddressSpace.generic)
        cute.copy(atom, source, to, tma_bar_ptr=barrier, tma_desc_ptr=descriptor)
    cute.arch.mbarrier_wait(barrier, 0)
    for i in cutlass.range(thread, ROWS * COLUMNS, THREADS):
        out[group * ROWS + i // COLUMNS, i % COLUMNS] = tile[i // COLUMNS, i % COLUMNS]


@cute.jit
def _launch(x: cute.Tensor, starts: cute.Tensor, maps: cute.Tensor, out: cute.Tensor, stream: cuda.CUstream) -> None:
    layout = cute.make_layout((ROWS, COLUMNS), stride=(COLUMNS, 1))
    atom, tensor = cpasync.make_tiled_tma_atom(cpasync.CopyBulkTensorTileG2SOp(), x, layout, (ROWS, COLUMNS))
    _grouped(atom, tensor, x, starts, maps, out, layout).launch(
        grid=(maps.shape[0], 1, 1), block=(THREADS, 1, 1), stream=stream
    )


@functools.cache
def grouped_copy() -> Any:
    """(x: bf16[n, 64], starts: int32[groups + 1], maps: int64[groups, 16], out: bf16[groups * 24, 64], stream).

    out has, for each group, its rows of x (those from starts[i] to starts[i + 1], at most 24) and zeros behind them.
    """
    rows, groups = (cute.sym_int() for _ in range(2))
    return compiled(
        _launch,
        fake(BFloat16, rows, COLUMNS),
        fake(Int32, cute.sym_int(), align=4),
        fake(Int64, groups, 16, align=128),
        fake(BFloat16, cute.sym_int(), COLUMNS),
    )
