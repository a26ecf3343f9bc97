"""Tensor maps in im2col mode as the DSL makes them, handed out by a kernel: its own copies by them do not compile."""

from typing import Any

import cuda.bindings.driver as cuda
import cutlass
from cutlass import BFloat16, Int64, cute
from cutlass.cute.nvgpu import cpasync

from kernels import compiled, fake

WORDS = 8  # of 64 bits, of a tensor map: the rest means nothing


class Windows:
    """What `window_map` compiles."""

    def __init__(self, pixels: int, channels: int, corners: tuple, steps: tuple) -> None:
        self.box, self.corners, self.steps = (pixels, channels), corners, steps

    @cute.jit
    def __call__(self, x: cute.Tensor, out: cute.Tensor, stream: cuda.CUstream) -> None:
        axes = len(self.steps)
        order = tuple(reversed(range(axes + 1)))  # width first, images last
        pixels = cute.make_layout(tuple(x.shape[i] for i in order), stride=tuple(x.stride[i] for i in order))
        images = cute.make_tensor(x.iterator, cute.append(cute.group_modes(pixels, 0), cute.make_layout(x.shape[-1])))
        dense = cute.make_layout(self.box, stride=(self.box[1], 1))
        layout = cute.make_composed_layout(cute.make_swizzle(0, 4, 3), 0, dense)
        zeros, ones = (0,) * axes, (1,) * axes
        padding = tuple(max(0, x) for x in self.corners[1])  # of which only the filter's size is made
        atom, _ = cpasync.make_im2col_tma_atom(
            cpasync.CopyBulkTensorIm2ColG2SOp(), images, layout, self.box,
            *self.corners, zeros, padding, self.steps, zeros, ones,
        )  # fmt: skip
        self.kernel(atom, out).launch(grid=(1, 1, 1), block=(32, 1, 1), smem=128, stream=stream)

    @cute.kernel
    def kernel(self, atom: cute.CopyAtom, out: cute.Tensor) -> None:
        draft = cutlass.memory.SmemAllocator().allocate_array(Int64, 16, byte_alignment=128)
        cpasync.copy_tensormap(atom, draft)
        cute.arch.sync_warp()
        thread = cute.arch.thread_idx()[0]
        if thread < WORDS:
            out[thread] = cute.make_tensor(draft, cute.make_layout(WORDS))[thread]


def window_map(shape: tuple[int, ...], pixels: int, channels: int, corners: tuple, steps: tuple) -> Any:
    """(x: bf16[n, ..., w, c] of this shape, out: int64[8], stream): out is the map of x, the first half of it.

    corners and steps: those of the bounding box, lower and upper, and its steps, for w, h, d.
    """
    order = tuple(reversed(range(len(shape))))
    x = cute.runtime.make_fake_compact_tensor(BFloat16, shape, stride_order=order, assumed_align=16)
    return compiled(Windows(pixels, channels, corners, steps), x, fake(Int64, WORDS))
