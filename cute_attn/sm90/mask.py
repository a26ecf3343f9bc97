"""The interval mask on accumulator fragments, by words of bits.

A thread holds two rows of a 64 x n accumulator, h = 0, 1, and of each row the columns 8j + q (q = 0, 1) beyond its own
first one, 2 * (lane % 4): number c = 2j + q of its columns. The compiler turns bits into predicates, seven an
instruction. What thins the intervals is asked for each element, and meets its bit.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import cutlass.cute as cute
from cutlass import Boolean, Float32, Int32, Uint32, const_expr, range_constexpr

from .ptx import bits_from, keep_where

__all__ = ["Bits", "RowBounds", "first_column", "mask_scores"]

WORD, BITS = 128, 32  # columns of a tile that one word stands for, and of these such that a thread has


class Bits(Protocol):
    """A bit for each element of a thread."""

    def elements(self, columns: int) -> list[tuple[int, int]]:
        """(h, c) of all, in the order of bits: those that follow one another become predicates together."""

    def has(self, h: int, c: int) -> Boolean:
        """Whether that of column number c of row h is set."""


def first_column() -> Int32:
    """Of this thread within a tile."""
    return 2 * (cute.arch.lane_idx() % 4)


@cute.jit
def mask_scores(scores, outside, certain, predicate, first):
    """scores = -inf where a bit of `outside` is set, and where a predicate does not hold.

    certain: bits of what is kept whatever the predicate says, None for nothing. first: of the thread's columns.
    predicate: None, or what thins the intervals: see `cute_attn.mods.device.rows.RowPredicate`.
    """
    columns = cute.size(scores) // 2
    if const_expr(predicate is None):
        elements = outside.elements(columns)
        for i in range_constexpr(columns // 4):
            for j in range_constexpr(8):
                h, c = elements[8 * i + j]
                k = 4 * (c // 2) + 2 * h + c % 2
                is_outside = outside.has(h, c)
                scores[k] = -Float32.inf if is_outside else scores[k]
    else:
        _ask(scores, 4 * columns, outside, certain, predicate, first)


def _ask(scores: Any, n: int, outside: Bits, certain: Any, predicate: Any, first: Any) -> None:
    for c, column in enumerate(predicate.columns(first, n, False)):
        for h in range(2):
            k = 4 * (c // 2) + 2 * h + c % 2
            keep = predicate.holds(h, column, ~outside.has(h, c))
            if certain is not None:
                keep = keep | certain.has(h, c)
            scores[k] = keep_where(scores[k], keep)


@dataclass(frozen=True)
class _RowBits:
    """words: one a row and 128 columns, bit c % 32 for column number c."""

    words: Any

    def elements(self, columns: int) -> list[tuple[int, int]]:
        return [(h, c) for h in range(2) for c in range(columns)]

    def has(self, h: int, c: int) -> Boolean:
        return Boolean(self.words[h, c // BITS] & (Uint32(1) << (c % BITS)))


@dataclass(frozen=True)
class RowBounds:
    """One interval of each of this thread's two rows: `lo <= column < hi`.

    Of a bound it is enough to know how many of the thread's columns are below it. In a tile that begins at a multiple
    of 8 that is a constant less: an addition, a maximum and a shift make a word.

    columns: n of the tile. bounds: lo and hi of each row, as `count` has them; no lo is not tested.
    """

    columns: int
    bounds: list[tuple[Any, Any]]

    @classmethod
    def dense(cls, columns: int, seqlen_k: Int32) -> "RowBounds":
        """Every key, for every row."""
        return cls(columns, [(None, count(seqlen_k - first_column()))] * 2)

    @classmethod
    def of(cls, columns: int, has_lower: bool, *rows: tuple[Any, Any]) -> "RowBounds":
        """(lo, hi) of each of the two rows."""
        own = first_column()
        return cls(columns, [(count(lo - own) if has_lower else None, count(hi - own)) for lo, hi in rows])

    def read(self, slot: Any) -> None:
        """Of what comes with a tile in a slot, nothing is needed."""

    def bits(self, _read: None, first: Int32) -> tuple[Bits, None]:
        """What is outside in the tile whose first key this is; nothing is certain."""
        tile = -(first >> 2)  # what brings a count into the tile
        words = cute.make_rmem_tensor((2, -(-self.columns // WORD)), Uint32)
        for h, (lo, hi) in enumerate(self.bounds):
            for w in range(words.shape[1]):
                word = bits_from(hi + (tile - w * BITS))
                words[h, w] = word if lo is None else word | ~bits_from(lo + (tile - w * BITS))
        return _RowBits(words), None


def count(column: Int32) -> Int32:
    """How many of the columns 0, 1, 8, 9, 16, ... are below `column`; less than none below 0."""
    return ((column + 7) >> 3) + ((column + 6) >> 3)
