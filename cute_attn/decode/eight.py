"""K and V^T of 8-bit caches as fp16 operands in registers, from tiles whose rows are lines of 128 or 64 swizzled bytes.

Nothing is dequantised in memory. The 16-bit pairs that a conversion gives decide what lies where: a thread takes a
quarter of each line of its keys, 32 or 16 dims, and calls them its columns (Q is stored in the same order, see
`column_of`), and V is transposed by pairs of bytes, so that neighbours in d become rows r and r + 8 of the product.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Int32, range_constexpr

from .arguments import CACHED
from .ptx import fp8_to_fp16, load_matrices, permute_bytes, subtract_fp16

__all__ = ["column_of", "line_of", "load_keys", "load_values", "swizzle_of"]


def line_of(dim: int) -> int:
    """Dims, and bytes, of a line of the swizzle in tiles of so many dims: the widest one that divides them."""
    return 128 if dim % 128 == 0 else 64


def swizzle_of(row: Int32, line: int) -> Int32:
    """What the number of 16 bytes within the line of a row is combined with, by XOR, for where they lie."""
    return row % 8 if line == 128 else row // 2 % 4


def column_of(chunk: Int32, i: int, dim: int) -> Int32:
    """The column of Q at which element i of chunk number `chunk` of 8 dims is stored."""
    line = line_of(dim)
    within, chunks = chunk % (line // 8), line // 32  # a thread's
    step, e = within % chunks * 2 + i // 4, i % 4
    return chunk // (line // 8) * line + 16 * step + 8 * (e // 2) + within // chunks * 2 + e % 2


def _pairs(word: Int32, cache: str, crossed: bool) -> list[Int32]:
    """Bytes (0, 1) and (2, 3), or crossed (0, 2) and (1, 3), of a register as two pairs of fp16, exactly."""
    if cache == "int8":
        word = word ^ Int32(-0x7F7F7F80)  # + 128; below a byte of 0x64 it is 1024 + that in fp16
        selectors = (0x4240, 0x4341) if crossed else (0x4140, 0x4342)
        return [subtract_fp16(permute_bytes(word, Int32(0x64646464), x), Int32(0x64806480)) for x in selectors]
    if crossed:
        word = permute_bytes(word, Int32(0), 0x3120)
    return [fp8_to_fp16(word, cache, upper) for upper in (False, True)]


@cute.jit
def load_keys(tile, fragment, thread, cache: cutlass.Constexpr):
    """64 keys as rows. A line of a key is four lanes' quarters."""
    registers, dims = cute.recast_tensor(fragment, Int32), cute.size(tile, mode=[1])
    chunks = line_of(dims) // 64  # of 16 bytes, a quarter
    for h in range_constexpr(2):
        line = cute.logical_divide(tile[thread // 32 * 16 + 8 * h + thread % 32 // 4, None], cute.make_layout(16))
        for part in range_constexpr(dims // 64):
            read = cute.make_rmem_tensor(16, CACHED)
            chunk = part // chunks * (4 * chunks) + thread % 4 * chunks + part % chunks
            cute.autovec_copy(line[None, chunk], read)
            words = cute.recast_tensor(read, Int32)
            for i in range_constexpr(4):
                at = 4 * (4 * part + i) + h
                registers[at], registers[at + 2] = _pairs(words[i], cache, False)


@cute.jit
def load_values(tile, fragment, thread, dims: cutlass.Constexpr, keys: cutlass.Constexpr, cache: cutlass.Constexpr):
    """Dims are rows, in blocks of 64. tile: address in shared memory."""
    registers = cute.recast_tensor(fragment, Int32)
    lane, blocks, line = thread % 32, dims // 64, line_of(dims)
    for m in range_constexpr(blocks):
        chunk = (m * 4 % (line // 16) + thread // 32) ^ swizzle_of(lane, line)
        for part in range_constexpr(keys // 32):
            words = load_matrices(tile + m * 64 // line * (keys * line) + (32 * part + lane) * line + chunk * 16)
            for i in range_constexpr(4):
                at = 4 * (m + blocks * (2 * part + i // 2)) + i % 2 * 2
                registers[at], registers[at + 1] = _pairs(words[i], cache, True)
