"""Rows without keys, and keys without rows: what stands there counts as zero, since 0 * NaN is NaN in a product.

Tables are those of `cute_attn.mask.tiles.by_lane`: (planes, tiles, 32), bit w of lane l for the row 32w + l of a tile.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Int32, range_constexpr

from .ptx import not_before

__all__ = ["clear_idle", "idle_of_lane", "idle_outside", "is_idle"]

VECTOR = 8  # elements of 16 bytes


@cute.jit
def idle_of_lane(table, plane, tile):
    """This lane's word of a tile, and whether any lane of the warp has one that is not zero."""
    word = Int32(0)
    if tile < table.shape[1]:
        word = table[plane, tile, cute.arch.lane_idx()]
    return word, cute.arch.vote_any_sync(word != 0)


@cute.jit
def idle_outside(begin, end, first, rows: cutlass.Constexpr):
    """The same of a tile of `rows` keys from `first` on, where those outside of [begin, end) are idle."""
    word = Int32(0)
    for w in range_constexpr(-(-rows // 32)):
        row = 32 * w + cute.arch.lane_idx()
        if row < rows and (first + row < begin or first + row >= end):
            word = word | (1 << w)
    return word, cute.arch.vote_any_sync(word != 0)


@cute.jit
def is_idle(table, plane, tile, row):
    """Whether row `row` of a tile is idle in a plane, if there is more than one, else in that of all."""
    idle = Boolean(False)
    if tile < table.shape[1]:
        own = plane if table.shape[0] > 1 else Int32(0)
        idle = Boolean((table[own, tile, row % 32] >> (row // 32)) & 1)
    return idle


@cute.jit
def clear_idle(word, *tiles):
    """Zeroes the idle rows of tiles (rows, columns) in shared memory; the lanes of a warp have a row each."""
    zeros = cute.make_rmem_tensor(VECTOR, tiles[0].element_type)
    zeros.fill(0.0)
    lane = not_before(cute.arch.lane_idx())  # or addresses wait in registers, of which a producer has few
    for tile in tiles:
        rows, columns = cute.size(tile.shape[0]), cute.size(tile.shape[1])
        for w in range_constexpr(-(-rows // 32)):
            if (word >> w) & 1 == 1:
                line = cute.logical_divide(tile[32 * w + lane, None], cute.make_layout(VECTOR))
                for c in range_constexpr(columns // VECTOR):
                    cute.autovec_copy(zeros, line[None, c])
