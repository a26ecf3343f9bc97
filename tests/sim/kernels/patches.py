"""The pixels that every element of a 3x3 filter meets, loaded in im2col mode: the operand of a convolution."""

import functools
from typing import Any

import cuda.bindings.driver as cuda
import cutlass
from cutlass import BFloat16, Int16, Int32, Int64, cute, range_constexpr
from cutlass._mlir.dialects import llvm
from cutlass.cute.nvgpu import cpasync
from cutlass.cutlass_dsl import dsl_user_op

from kernels import compiled, fake, mark

PIXELS, CHANNELS, STAGES, READERS, FILTER, PADDING = 32, 64, 2, 64, 3, 1


@dsl_user_op
def _load(
    to: Any, map: Any, at: list[Any], offsets: list[Any], barrier: Any, *, loc: Any = None, ip: Any = None
) -> None:
    """The DSL's own copies in this mode do not compile."""
    places = [x.toint(loc=loc, ip=ip).ir_value(loc=loc, ip=ip) for x in (to, map, barrier)]
    llvm.inline_asm(
        None, [*places, *(x.ir_value(loc=loc, ip=ip) for x in (*at, *offsets))],
        "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
        "[$0], [$1, {$3, $4, $5, $6}], [$2], {$7, $8};", "r,l,r,r,r,r,r,h,h", has_side_effects=True,
        is_align_stack=False, asm_dialect=llvm.AsmDialect.AD_ATT, loc=loc, ip=ip,
    )  # fmt: skip


@cute.kernel
def _patches(atom: cute.CopyAtom, maps: cute.Tensor, out: cute.Tensor, height: Int32, width: Int32) -> None:
    memory = cutlass.memory.SmemAllocator()
    full, empty = memory.allocate_array(Int64, STAGES), memory.allocate_array(Int64, STAGES)
    draft = memory.allocate_array(Int64, 16, byte_alignment=128)
    layout = cute.make_layout((PIXELS, CHANNELS, STAGES), stride=(CHANNELS, 1, PIXELS * CHANNELS))
    tile = memory.allocate_tensor(BFloat16, layout, byte_alignment=128)
    block, thread = cute.arch.block_idx()[0], cute.arch.thread_idx()[0]
    index = cute.arch.make_warp_uniform(cute.arch.warp_idx())
    if index == 0:
        with cute.arch.elect_one():
            for stage in range_constexpr(STAGES):
                cute.arch.mbarrier_init(full + stage, 1)
                cute.arch.mbarrier_init(empty + stage, READERS // 32)
        cute.arch.mbarrier_init_fence()
    cute.arch.sync_threads()
    if index == 0:
        published = maps[block, None].iterator.align(128)
        cpasync.copy_tensormap(atom, draft)
        cute.arch.sync_warp()
        mark("publish")
        cpasync.cp_fence_tma_desc_release(published, draft)
        mark("acquire")
        cpasync.fence_tma_desc_acquire(published)
        with cute.arch.elect_one():
            first = block * PIXELS
            at = [Int32(0), first % width - PADDING, first // width % height - PADDING, first // (width * height)]
            for element in cutlass.range(FILTER * FILTER, unroll=1):
                stage, phase = element % STAGES, (element // STAGES) % 2
                mark("wait empty")
                cute.arch.mbarrier_wait(empty + stage, phase ^ 1)
                mark("expect")
                cute.arch.mbarrier_arrive_and_expect_tx(full + stage, 2 * PIXELS * CHANNELS)
                offsets = [Int16(element % FILTER), Int16(element // FILTER)]
                mark("load")
                _load(tile[None, None, stage].iterator, published, at, offsets, full + stage)
    else:
        reader = thread - 32
        for element in cutlass.range(FILTER * FILTER, unroll=1):
            stage, phase = element % STAGES, (element // STAGES) % 2
            mark("wait full")
            cute.arch.mbarrier_wait(full + stage, phase)
            for i in cutlass.range(reader, PIXELS * CHANNELS, READERS, unroll=1):
                pixel, channel = i // CHANNELS, i % CHANNELS
                mark("read")
                out[element, block * PIXELS + pixel, channel] = tile[pixel, channel, stage]
            cute.arch.sync_warp()
            mark("release")
            if cute.arch.lane_idx() == 0:
                cute.arch.mbarrier_arrive(empty + stage)


@cute.jit
def _launch(x: cute.Tensor, maps: cute.Tensor, out: cute.Tensor, stream: cuda.CUstream) -> None:
    n, h, w, c = x.shape
    stride = x.stride
    images = cute.make_layout((w, h, n), stride=(stride[2], stride[1], stride[0]))
    pixels = cute.make_tensor(x.iterator, cute.append(cute.group_modes(images, 0), cute.make_layout(c)))
    dense = cute.make_layout((PIXELS, CHANNELS), stride=(CHANNELS, 1))
    layout = cute.make_composed_layout(cute.make_swizzle(0, 4, 3), 0, dense)
    lower, upper = (-PADDING,) * 2, (PADDING - (FILTER - 1),) * 2
    atom, _ = cpasync.make_im2col_tma_atom(
        cpasync.CopyBulkTensorIm2ColG2SOp(), pixels, layout, (PIXELS, CHANNELS),
        lower, upper, (0, 0), (0, 0), (1, 1), (0, 0), (1, 1),
    )  # fmt: skip
    _patches(atom, maps, out, h, w).launch(grid=(maps.shape[0], 1, 1), block=(32 + READERS, 1, 1), stream=stream)


@functools.cache
def patches(n: int, h: int, w: int) -> Any:
    """(x: bf16[n, h, w, 64], maps: int64[n h w / 32, 16], out: bf16[9, n h w, 64], stream).

    out: for each element of a 3x3 filter, padded by one, the pixel of x that it meets at each pixel; zero outside.
    """
    x = cute.runtime.make_fake_compact_tensor(
        BFloat16, (n, h, w, CHANNELS), stride_order=(3, 2, 1, 0), assumed_align=16
    )
    return compiled(_launch, x, fake(Int64, cute.sym_int(), 16, align=128), fake(BFloat16, 9, n * h * w, CHANNELS))
