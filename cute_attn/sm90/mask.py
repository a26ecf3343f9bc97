"""The interval mask on accumulator fragments: `lo <= column < hi` as words of bits, one a row and 128 columns.

A thread holds two rows of a 64 x n accumulator, and of each row the columns 8j + q (q = 0, 1) beyond its own first one,
2 * (lane % 4). Bit 2j + q of word w stands for column 128w + 8j + q, and is set where the column is outside. Of a bound
it is enough to know how many such columns are below it. In a tile that begins at a multiple of 8 that is a constant
less: an addition, a maximum and a shift. Layers are ANDs, and the compiler turns the bits into predicates, seven an
instruction: a layer more costs no more selects. What thins the intervals is asked for each element, and meets the bit
of its word.
"""

from dataclasses import dataclass, replace
from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Float32, Int32, Uint32, const_expr, range_constexpr

from cute_attn.spec.mask import MaskForm

from .ptx import bits_from, keep_where

__all__ = ["RowBounds"]

WORD, BITS = 128, 32  # columns of a tile that one word stands for, and of these such that a thread has
ONES = 0xFFFFFFFF


@dataclass(frozen=True)
class RowBounds:
    """The intervals of this thread's two rows.

    columns: n of the tile. first_column: of this thread within a tile.
    has_lower, has_upper: which of the two tests to make. has_certain: whether intervals are marked, by the sign of lo.
    fixed: for each row the (lo, hi) of its layers, as `count` has them; None with many layers, whose bounds are read
        again for every tile from lo, hi: (layers, seqlen_q) at `rows`.
    """

    columns: int
    has_lower: bool
    has_upper: bool
    first_column: Int32
    fixed: Any
    lo: Any = None
    hi: Any = None
    rows: Any = None
    has_certain: bool = False

    @classmethod
    def dense(cls, columns: int, seqlen_k: Int32) -> "RowBounds":
        """Every key, for every row."""
        first_column = 2 * (cute.arch.lane_idx() % 4)
        return cls(columns, False, True, first_column, [[(None, count(seqlen_k - first_column))]] * 2)

    @classmethod
    def of(cls, columns: int, form: MaskForm, *rows: tuple[Any, Any]) -> "RowBounds":
        """One layer: (lo, hi) of each of the two rows."""
        first_column = 2 * (cute.arch.lane_idx() % 4)
        fixed = [[(count(lo - first_column) if form.has_lower else None, count(hi - first_column))] for lo, hi in rows]
        return cls(columns, form.has_lower, form.has_upper, first_column, fixed)

    @classmethod
    def load(cls, columns: int, form: MaskForm, lo, hi, row, step=8) -> "RowBounds":
        """The bounds of rows `row` and `row + step` in lo, hi: (layers, seqlen_q).

        Rows past the end repeat the last one: nothing of them is stored.
        """
        rows = [cutlass.min(row + step * h, lo.shape[1] - 1) for h in range(2)]
        first_column = 2 * (cute.arch.lane_idx() % 4)
        bounds = cls(columns, form.has_lower, form.has_upper, first_column, None, lo, hi, rows, form.has_certain)
        if form.is_many:
            return bounds
        return replace(bounds, fixed=[[bounds._read(h, y) for y in range(form.fixed_layers)] for h in range(2)])

    def _read(self, h, layer):
        """The bounds of row h in a layer, those that are tested."""
        lo = count(self.lo[layer, self.rows[h]] - self.first_column) if self.has_lower else None
        hi = count(self.hi[layer, self.rows[h]] - self.first_column) if self.has_upper else None
        return lo, hi

    def _read_marked(self, h, layer):
        """The bounds of row h in a layer, and all bits or none, whether they are marked."""
        lo, hi = (ends[layer, self.rows[h]] for ends in (self.lo, self.hi))
        return count((lo & 0x7FFFFFFF) - self.first_column), count(hi - self.first_column), Uint32(lo >> 31)

    @cute.jit
    def apply(self, scores, place, predicate=None):
        """scores = -inf outside the intervals, in the tile at a Place.

        With many layers only those that meet the tile are looked at; none means all is kept.
        predicate: None, or what thins the intervals: see `cute_attn.mods.device.rows.RowPredicate`.
        """
        tile = -(place.first >> 2)  # what brings a count into the tile
        if const_expr(self.fixed is None):
            outside, certain = self._outside_many(tile, place.layer_begin, place.layer_end)
        else:
            outside, certain = self._outside(tile), None
        if const_expr(predicate is None):
            for h in range_constexpr(2):
                for j in range_constexpr(self.columns // 8):
                    word = outside[h, j // 16]
                    for q in range_constexpr(2):
                        k = 4 * j + 2 * h + q
                        is_outside = Boolean(word & (Uint32(1) << (2 * (j % 16) + q)))
                        scores[k] = -Float32.inf if is_outside else scores[k]
        else:
            self._ask(scores, place.first + self.first_column, outside, certain, predicate)

    def _ask(self, scores, first, outside, certain, predicate) -> None:
        """scores = -inf outside the intervals, and where a predicate does not hold. first: of the thread's columns."""
        for c, column in enumerate(predicate.columns(first, self.columns, False)):
            w, bit = c // 32, Uint32(1) << (c % 32)
            for h in range(2):
                k = 4 * (c // 2) + 2 * h + c % 2
                keep = predicate.holds(h, column, Boolean(~outside[h, w] & bit))
                if certain is not None:
                    keep = keep | Boolean(certain[h, w] & bit)
                scores[k] = keep_where(scores[k], keep)

    def _outside(self, tile):
        """The words of a tile."""
        words = -(-self.columns // WORD)
        outside = cute.make_rmem_tensor((2, words), Uint32)
        for h in range(2):
            for w in range(words):
                word = Uint32(ONES)
                for lo, hi in self.fixed[h]:
                    word = word & _beside(lo, hi, tile - w * BITS)
                outside[h, w] = word
        return outside

    @cute.jit
    def _outside_many(self, tile, layer_begin, layer_end):
        """The words of a tile, and those of what is in marked intervals; None for these where there are no marks."""
        words = -(-self.columns // WORD)
        outside = cute.make_rmem_tensor((2, words), Uint32)
        outside.fill(Uint32(0) if layer_begin == layer_end else Uint32(ONES))
        certain: Any = None
        if const_expr(self.has_certain):
            certain = cute.make_rmem_tensor((2, words), Uint32)
            certain.fill(Uint32(ONES) if layer_begin == layer_end else Uint32(0))
        for layer in cutlass.range(layer_begin, layer_end, unroll=1):
            for h in range_constexpr(2):
                if const_expr(self.has_certain):
                    lo, hi, mark = self._read_marked(h, layer)
                    for w in range_constexpr(words):
                        word = _beside(lo, hi, tile - w * BITS)
                        outside[h, w] = outside[h, w] & word
                        certain[h, w] = certain[h, w] | (~word & mark)
                else:
                    lo, hi = self._read(h, layer)
                    for w in range_constexpr(words):
                        outside[h, w] = outside[h, w] & _beside(lo, hi, tile - w * BITS)
        return outside, certain


def count(column: Int32) -> Int32:
    """How many of the columns 0, 1, 8, 9, 16, ... are below `column`; less than none below 0."""
    return ((column + 7) >> 3) + ((column + 6) >> 3)


def _beside(lo, hi, tile) -> Uint32:
    """The word of what is not in [lo, hi), counts that `tile` is added to."""
    behind = Uint32(0) if hi is None else bits_from(hi + tile)
    return behind if lo is None else behind | ~bits_from(lo + tile)
