"""Accumulator fragments in registers."""

import cutlass.cute as cute
from cutlass import Int32, range_constexpr

from .ptx import pack

__all__ = ["pack_fragment", "write_fragment"]


@cute.jit
def pack_fragment(values, packed, bf16):
    """fp32 registers rounded to pairs; accumulator and A fragment have one order, so no layout is involved."""
    packed = cute.recast_tensor(packed, Int32)
    for k in range_constexpr(cute.size(packed)):
        packed[k] = pack(values[2 * k], values[2 * k + 1], bf16)


@cute.jit
def write_fragment(mma, packed, tile, thread):
    """Writes a packed accumulator of a warpgroup to its row-major tile in shared memory. thread: of the warpgroup."""
    atom = cute.make_copy_atom(cute.nvgpu.warp.StMatrix8x8x16bOp(transpose=False, num_matrices=4), tile.element_type)
    copy = cute.make_tiled_copy_C(atom, mma).get_slice(thread)
    shape = mma.get_slice(0).partition_shape_C(cute.shape(tile))
    fragment = cute.make_tensor(packed.iterator, cute.make_rmem_tensor(shape, tile.element_type).layout)
    cute.copy(atom, copy.retile(fragment), copy.partition_D(tile))
