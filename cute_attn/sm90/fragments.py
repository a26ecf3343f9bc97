"""Accumulator fragments in registers."""

import cutlass.cute as cute
from cutlass import Int32, range_constexpr

from .ptx import pack, store_matrices

__all__ = ["pack_fragment", "row_address", "write_fragment", "write_rows"]


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


def row_address(tile: cute.Pointer, row, column, thread) -> Int32:
    """Where `write_rows` begins for a thread of a warpgroup whose 64 x n fragment is at (row, column) of the tile.

    tile: rows of 64 16-bit elements with the 128-byte swizzle, aligned to 1024 bytes. column: a multiple of 16.
    """
    row = row + thread // 32 * 16 + thread % 16
    chunk = (column // 8 + thread % 32 // 16) ^ (row % 8)
    return tile.toint() + row * 128 + chunk * 16


@cute.jit
def write_rows(address, packed):
    """`write_fragment` for a tile of 64 columns, with one register of addresses: the rest is an XOR an instruction."""
    packed = cute.recast_tensor(packed, Int32)
    for i in range_constexpr(cute.size(packed) // 4):
        store_matrices(address ^ (32 * i), *(packed[4 * i + j] for j in range(4)))
