"""Which pairs of a partial tile are attended, as bits: the warp that loads dO makes them, consumers read a word each.

Bit k of a thread's word is for register k of its fragment of S^T (see `tile_math`). An interval is a few shifts, in the
lane of its row; from there bits go to the lanes of their keys by four exchanges, for 16 keys at a time, which are those
of a warp. So consumers pay the same for any mask.

In the order of `rows` row 16i + 8b + 2t + e of a tile is at 16i + 4t + 2b + e; lane l makes the words of those at l and
l + 32. With i = 2m + n, a key 8h + g of 16, and bits from the highest down, a position in a word is m h g2 g1 g0, the
lane n t1 t0 b e. Each exchange swaps a bit of the lane with a bit of the position:

    n and h, n t1 t0 b e -> h t1 t0 b e; then e and g0, h and g1, b and g2: m n b h e in the lane of g1 t1 t0 g2 g0
"""

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Uint16, Uint32, const_expr, range_constexpr

from cute_attn.sm90.ptx import bits_from, not_before, permute_bytes, rotate_left

__all__ = ["layout_of_words", "store_words"]

KEYS_OF_WORDS = 16  # keys that the words of a warp stand for
ONES = 0xFFFFFFFF
THREADS = 256  # of the consumers


def layout_of_words(kinds: int, stages: int) -> cute.Layout:
    """(thread, kind, stage)."""
    return cute.make_ordered_layout((THREADS, kinds, stages), (0, 1, 2))


@cute.jit
def store_words(
    form: cutlass.Constexpr, keys: cutlass.Constexpr, bounds, layers, first_key, marked: cutlass.Constexpr, target
):
    """Makes the words of a tile of keys from first_key on, and puts them into shared memory (thread).

    bounds: (m, 2, layers) of the tile's rows, lo and hi, in the order of `rows`. layers: the two ends of those to test.
    marked: whether only intervals that are marked count.

    32 keys at a time: the warp has few registers.
    """
    for part in cutlass.range(keys // 32, unroll=1):
        lane = not_before(cute.arch.lane_idx())  # read anew: what depends on it is kept in no register
        first = first_key + 32 * part
        rows = cute.make_rmem_tensor(2, Uint32)  # of this lane's two rows, a bit a key
        rows.fill(0)
        for layer in cutlass.range(layers[0], layers[1], unroll=1):
            for m in range_constexpr(2):
                lo, hi, word = bounds[lane + 32 * m, 0, layer], bounds[lane + 32 * m, 1, layer], Uint32(ONES)
                if const_expr(marked):
                    word = Uint32(lo >> 31)
                if const_expr(form.has_certain):
                    lo = lo & 0x7FFFFFFF
                rows[m] = rows[m] | (word & ~bits_from(hi - first) & bits_from(lo - first))
        words = cute.make_rmem_tensor(2, Uint32)  # of 16 keys each, for the lane that `put` gives them to
        words[0] = (rows[0] & Uint32(0xFFFF)) | (rows[1] << 16)
        words[1] = (rows[0] >> 16) | (rows[1] & Uint32(0xFFFF0000))
        swap_bytes(words, lane, 16)
        swap_bits(words, lane, 1, 1, 0x55555555)
        swap_bits(words, lane, 16, 2, 0x33333333)
        swap_bits(words, lane, 2, 4, 0x0F0F0F0F)
        put(words, lane, 2 * part, keys // KEYS_OF_WORDS, target)


@cute.jit
def swap_bytes(words, lane, lane_bit: cutlass.Constexpr):
    """Swaps a bit of the lane with that of the position which tells odd bytes from even ones."""
    chosen = Int32(0x6240) if (lane & lane_bit) == 0 else Int32(0x3715)
    for k in range_constexpr(cute.size(words)):
        words[k] = permute_bytes(words[k], cute.arch.shuffle_sync_bfly(words[k], offset=lane_bit), chosen)


@cute.jit
def swap_bits(words, lane, lane_bit: cutlass.Constexpr, places: cutlass.Constexpr, low: cutlass.Constexpr):
    """Swaps a bit of the lane with that of the position which says `places`. low: the positions without it."""
    is_low = (lane & lane_bit) == 0
    kept = Uint32(low) if is_low else Uint32(low ^ ONES)
    turn = Uint32(places) if is_low else Uint32(32 - places)
    for k in range_constexpr(cute.size(words)):
        other = rotate_left(cute.arch.shuffle_sync_bfly(words[k], offset=lane_bit), turn)
        words[k] = (words[k] & kept) | (other & ~kept)


@cute.jit
def put(words, lane, first, size: cutlass.Constexpr, target):
    """Puts words number first and first + 1 of a tile's `size` where the threads read them: those of lane 4g + t. Where
    two warps have the same keys and half of the queries each, they get a half."""
    owner = ((lane & 2) << 3) | ((lane & 16) >> 1) | ((lane & 1) << 2) | ((lane & 12) >> 2)
    for k in range_constexpr(2):
        place = 32 * (first + k) + owner
        if const_expr(32 * size == THREADS):
            target[place] = words[k]
        else:
            target[place] = Uint16(words[k])
            target[place + 32 * size] = Uint16(words[k] >> 16)
