"""Tiles in shared memory, their TMA copies, and products of them on the tensor cores."""

from typing import Any

import cutlass
import cutlass.cute as cute
import cutlass.utils.hopper_helpers as hopper
from cutlass import Float32, const_expr, range_constexpr
from cutlass.cute.nvgpu import cpasync, warpgroup
from cutlass.tensor_utils import LayoutEnum

__all__ = ["gemm", "load_atom", "partition", "store_atom", "tile_layout", "tiled_mma"]


def tile_layout(dtype: Any, rows: int, columns: int, stages: int, slice_columns: int = 0) -> cute.ComposedLayout:
    """`stages` row-major tiles of rows x columns with the widest swizzle that the columns allow.

    slice_columns: where products take slices of so many columns as an MN-major operand, the swizzle must divide them.
    """
    kind = hopper.get_smem_layout_atom(LayoutEnum.ROW_MAJOR, dtype, slice_columns or columns)
    atom = warpgroup.make_smem_layout_atom(kind, dtype)
    return cute.tile_to_shape(atom, (rows, columns, stages), order=(0, 1, 2))


def load_atom(tensor: cute.Tensor, layout: cute.ComposedLayout, tile: tuple[Any, int]) -> tuple[Any, Any]:
    """TMA load of `tile` = (rows, columns) from a tensor (seq, dim, head, batch); what lies outside reads as zero.

    tile: its rows may be those of several modes, as (heads, positions) of a tensor ((heads, seq), dim, group, batch).
    layout: of what it lands in: a tile, or one of more rows, in which it lies.
    """
    op, whole = cpasync.CopyBulkTensorTileG2SOp(), cute.select(layout, mode=[0, 1])
    if cute.size(tile[0]) < cute.size(whole, mode=[0]):
        whole = cute.make_composed_layout(
            layout.inner, 0, cute.composition(cute.select(layout.outer, mode=[0, 1]), tile)
        )
    return cpasync.make_tiled_tma_atom(op, tensor, whole, tile)


def store_atom(tensor: cute.Tensor, layout: cute.ComposedLayout, tile: tuple[Any, int]) -> tuple[Any, Any]:
    """TMA store of `tile` to a tensor as `load_atom` has it; what lies outside is not written."""
    op = cpasync.CopyBulkTensorTileS2GOp()
    return cpasync.make_tiled_tma_atom(op, tensor, cute.select(layout, mode=[0, 1]), tile)


def partition(atom: cute.CopyAtom, shared: cute.Tensor, glob: cute.Tensor) -> tuple[cute.Tensor, cute.Tensor]:
    """Shared and global tiles as one TMA copy sees them: mode 0 is the tile, the others are kept."""
    shared, glob = cute.group_modes(shared, 0, 2), cute.group_modes(glob, 0, 2)
    return cpasync.tma_partition(atom, 0, cute.make_layout(1), shared, glob)


def tiled_mma(
    dtype: Any,
    n: int,
    b_major: Any,
    a_source: Any = warpgroup.OperandSource.SMEM,
    a_major: Any = cute.nvgpu.OperandMajorMode.K,
) -> cute.TiledMma:
    """64 x n products of one warpgroup with fp32 accumulators."""
    return hopper.make_trivial_tiled_mma(dtype, dtype, a_major, b_major, Float32, (1, 1, 1), (64, n), a_source=a_source)


@cute.jit
def gemm(op, accumulator, a, b, zero: cutlass.Constexpr):
    """Issues accumulator = a b (zero) or += a b, as one group that a later wait_group retires."""
    warpgroup.fence()
    atom = cute.make_mma_atom(op)  # a fresh atom: its ACCUMULATE field changes inside loops
    atom.set(warpgroup.Field.ACCUMULATE, not zero)
    for k in range_constexpr(cute.size(a.shape[2])):
        cute.gemm(atom, accumulator, a[None, None, k], b[None, None, k], accumulator)
        if const_expr(k == 0):
            atom.set(warpgroup.Field.ACCUMULATE, True)
    warpgroup.commit_group()
