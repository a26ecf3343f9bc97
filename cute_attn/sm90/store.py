"""Accumulators straight to global memory, unrounded."""

import cutlass.cute as cute
from cutlass import range_constexpr

__all__ = ["store_fragment"]


@cute.jit
def store_fragment(fragment, target, row, column):
    """Writes a thread's part of a 64 x n accumulator by 8 bytes an instruction; four threads fill a sector of 32.

    target: fp32 (rows, columns), columns contiguous and a multiple of 8, every row 8-byte aligned; what of the
        accumulator lies outside is not written.
    row, column: of the thread's first element in the target.
    """
    groups = cute.size(fragment) // 4
    values = cute.make_tensor(fragment.iterator, cute.make_layout((2, 2, groups)))  # pair, row half, 8 columns
    for h in range_constexpr(2):
        if row + 8 * h < target.shape[0]:
            pairs = cute.logical_divide(target[row + 8 * h, None], cute.make_layout(2))
            for j in range_constexpr(groups):
                if column + 8 * j < target.shape[1]:
                    cute.autovec_copy(values[None, h, j], pairs[None, column // 2 + 4 * j])
