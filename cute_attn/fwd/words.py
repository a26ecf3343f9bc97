"""Which pairs of a tile are outside of the mask, as bits: idle warps make them, consumers read a word or two.

So consumers pay the same for any mask. A thread of a consumer warpgroup holds the columns 8j + 2t + e (t = lane % 4,
e = 0, 1) of two rows, h = 0, 1. A lane of the makers makes the words of the four threads that share a row. It begins
with a word for each quarter i of a unit of columns, whose bit 8b + 2t + e is that of column 8b + 2t + e of the quarter.
In every byte, four times two bits then change places with the four words: bit 8b + 2i + e of word t.

Units are 32, 64 or 128 columns, words 8, 16 or 32 bits. Of tiles that these do not divide the units are 16 columns, and
halves s of both rows are what quarters are else: i = 2h + s.
"""

from dataclasses import dataclass
from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Int32, Uint8, Uint16, Uint32, range_constexpr

from cute_attn.sm90.mask import Bits
from cute_attn.sm90.ptx import bits_from, thread_here
from cute_attn.spec.forward import ForwardSpec

__all__ = ["WRITERS", "RowWords", "WordForm", "layout_of_words", "store_words", "store_words_of_all"]

WRITERS = 2  # warps, each with a share of the words of a tile
WARP, ONES = 32, 0xFFFFFFFF
TYPES = {8: Uint8, 16: Uint16, 32: Uint32}


@dataclass(frozen=True)
class WordForm:
    """What a word stands for: so many rows and columns."""

    rows: int
    columns: int

    @classmethod
    def of(cls, spec: ForwardSpec) -> "WordForm":
        n = spec.tile.n
        return cls(2, 16) if n % 32 else cls(1, max(unit for unit in (32, 64, 128) if n % unit == 0))

    @property
    def piece(self) -> int:
        """Columns of each of the four words that a lane begins with, and bits of each that it ends with."""
        return self.rows * self.columns // 4

    @property
    def dtype(self) -> Any:
        return TYPES[self.piece]

    def row(self, line: Any, h: int) -> Any:
        """In a tile, row h of the line number `line`, where lines have so many rows."""
        return line if self.rows == 1 else line // 8 * 16 + line % 8 + 8 * h

    def place(self, h: int, c: int) -> tuple[int, int]:
        """The word, of those that a thread reads, and the bit of column number c in row h of the thread."""
        unit, c = divmod(c, self.columns // 4)
        i, c = divmod(c, self.piece // 4)
        if self.rows == 2:
            return unit, 8 * (c // 2) + 4 * h + 2 * i + c % 2
        return 2 * unit + h, 8 * (c // 2) + 2 * i + c % 2


def layout_of_words(spec: ForwardSpec) -> cute.Layout:
    """(word, unit, kind, stage). Kinds: what is outside of the intervals, and what is in marked ones."""
    form, tile = WordForm.of(spec), spec.tile
    shape = 4 * tile.m // form.rows, tile.n // form.columns, 1 + spec.mask.has_certain, tile.stages
    return cute.make_ordered_layout(shape, (0, 1, 2, 3))


@cute.jit
def store_words(spec: cutlass.Constexpr, part, bounds, row_of, layers, first_key, target):
    """Makes a share of the words of a tile of keys from first_key on.

    part: which of the WRITERS this warp is. bounds: lo and hi of a layer and a row of the mask. row_of: which of these
    a row of the tile has. layers: the two ends of those that meet the tile. target: (word, unit, kind).
    """
    form = WordForm.of(spec)
    blocks, units = spec.tile.m // form.rows // WARP, spec.tile.n // form.columns
    for number in cutlass.range(part, blocks * units, WRITERS, unroll=1):
        unit = number // blocks
        for kind in range_constexpr(1 + spec.mask.has_certain):
            words = cute.make_rmem_tensor(4, Uint32)
            words.fill(0 if kind else ONES)
            for h in range_constexpr(form.rows):
                row = row_of(form.row(line_of(number % blocks), h))
                for layer in cutlass.range(layers[0], layers[1], unroll=1):
                    lo, hi = bounds(layer, row)
                    for i in range_constexpr(4 // form.rows):
                        first = first_key + unit * form.columns + i * form.piece
                        words[2 * h + i] = with_interval(spec, kind, words[2 * h + i], lo, hi, first)
            transpose(words)
            put(form, words, target[None, unit, kind], line_of(number % blocks))


@cute.jit
def store_words_of_all(spec: cutlass.Constexpr, part, target):
    """The same where nothing is outside."""
    form = WordForm.of(spec)
    blocks, units = spec.tile.m // form.rows // WARP, spec.tile.n // form.columns
    for number in cutlass.range(part, blocks * units, WRITERS, unroll=1):
        for kind in range_constexpr(1 + spec.mask.has_certain):
            words = cute.make_rmem_tensor(4, Uint32)
            words.fill(ONES if kind else 0)
            put(form, words, target[None, number // blocks, kind], line_of(number % blocks))


def line_of(block: Int32) -> Int32:
    """That of this lane, read anew: neither it nor what depends on it waits in a register, of which there are few."""
    return block * WARP + (thread_here() & (WARP - 1))


def with_interval(spec: ForwardSpec, kind: int, word: Uint32, lo: Int32, hi: Int32, first: Int32) -> Uint32:
    """A word of columns from `first` on, of what is outside, without an interval; or of what is certain, with it."""
    mark = Uint32(lo >> 31)
    if spec.mask.has_certain:
        lo = lo & 0x7FFFFFFF
    beside = bits_from(hi - first) | ~bits_from(lo - first)
    return word | (~beside & mark) if kind else word & beside


def transpose(words: Any) -> None:
    """Two bits number t of each byte of word i change places with those number i of word t."""
    for places, low in ((2, 0x33333333), (4, 0x0F0F0F0F)):
        for a in (0, 4 // places):
            b = a + places // 2
            x, y = words[a], words[b]
            words[a] = (x & Uint32(low)) | ((y << places) & Uint32(low ^ ONES))
            words[b] = ((x >> places) & Uint32(low)) | (y & Uint32(low ^ ONES))


def put(form: WordForm, words: Any, target: cute.Tensor, line: Int32) -> None:
    """Writes those of the four threads of a line, which lie one behind another."""
    rounded = cute.make_rmem_tensor(4, form.dtype)
    for t in range(4):
        rounded[t] = form.dtype(words[t])
    cute.autovec_copy(rounded, cute.logical_divide(target, cute.make_layout(4))[None, line])


@dataclass(frozen=True)
class _ThreadBits:
    """words: that a thread has read."""

    words: list[Uint32]
    form: WordForm

    def elements(self, columns: int) -> list[tuple[int, int]]:
        return sorted(((h, c) for h in range(2) for c in range(columns)), key=lambda at: self.form.place(*at))

    def has(self, h: int, c: int) -> Boolean:
        word, bit = self.form.place(h, c)
        return Boolean(self.words[word] & (Uint32(1) << bit))


@dataclass(frozen=True)
class RowWords:
    """Those of this thread, (unit, kind, stage), for each of its rows or for both."""

    words: list[Any]
    form: WordForm

    @classmethod
    def of(cls, spec: ForwardSpec, shared: Any, warp: Int32, lane: Int32) -> "RowWords":
        """warp: among those of all consumers."""
        form = WordForm.of(spec)
        count = 2 // form.rows
        return cls([shared[(warp * count + i) * WARP + lane, None, None, None] for i in range(count)], form)

    def read(self, slot: Any) -> list[list[Uint32]]:
        """By kind; before the slot is released."""
        units, kinds, _ = self.words[0].shape
        return [[Uint32(of[u, k, slot]) for u in range(units) for of in self.words] for k in range(kinds)]

    def bits(self, read: list[list[Uint32]], _first: Any) -> tuple[Bits, Bits | None]:
        """What is outside, and what is certain, of the tile that was read."""
        outside, *certain = [_ThreadBits(words, self.form) for words in read]
        return outside, certain[0] if certain else None
