"""Where tiles of keys, and of values, come from: tensors of them, or the pages of a cache.

A producer finds a tile before it waits for the slot that the tile is to land in, and loads what it found.
"""

from dataclasses import dataclass
from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Int32, const_expr, range_constexpr

from .tiles import partition

__all__ = ["KeyTiles", "PagedKeyTiles", "Pages"]

MOST_UNROLLED = 4  # pieces of a tile: a producer warp has few registers


@dataclass(frozen=True)
class KeyTiles:
    """The tiles of K, or of V, of one key head, which lie one behind another in a tensor.

    source, target: as one TMA copy sees them: (elements, tile), and (elements, slot) or (elements).
    n_bytes: that a copy brings.
    """

    atom: cute.CopyAtom
    source: cute.Tensor
    target: cute.Tensor
    n_bytes: int

    @classmethod
    def of(cls, atom: cute.CopyAtom, tensor: cute.Tensor, batch: Any, head: Any, shared: cute.Tensor) -> "KeyTiles":
        """tensor: (seq, dim, head, batch), as `load_atom` has made it. shared: (rows, dim[, slots])."""
        rows, dim = cute.size(shared, mode=[0]), cute.size(shared, mode=[1])
        target, source = partition(
            atom, shared, cute.local_tile(tensor[None, None, head, batch], (rows, dim), (None, 0))
        )
        return cls(atom, source, target, rows * dim * shared.element_type.width // 8)

    def find(self, tile: Any) -> Any:
        """What `load` takes of a tile."""
        return tile

    def load(self, found: Any, barrier: cute.Pointer, slot: Any = None) -> None:
        """By one warp; lands in a slot if there are several."""
        target = self.target if slot is None else self.target[None, slot]
        cute.copy(self.atom, self.source[None, found], target, tma_bar_ptr=barrier)


@dataclass(frozen=True)
class Pages:
    """The pages of a sequence, of so many keys, in a pool of so many. Of its keys those in [begin, end) are wanted.

    table: (batch, max_pages), int32. begin: None where nobody asks for a tile in which there are none.
    """

    page_size: Int32
    n_pages: Int32
    table: cute.Tensor
    sequence: Int32
    begin: Int32 | None
    end: Int32


@dataclass(frozen=True)
class PagedKeyTiles:
    """The tiles of K, or of V, of one key head of a cache, in pieces of so many keys, each of which lies in one page.

    A piece in which no key is wanted is a box of a page that is not in the pool: it lies outside of the tensor, so that
    zeros come without any traffic, and the number of bytes to wait for is the same for every tile.

    source, target: (elements, piece of a page, page), and (elements, piece of a tile, slot).
    rows: of a tile.
    """

    atom: cute.CopyAtom
    source: cute.Tensor
    target: cute.Tensor
    n_bytes: int
    rows: int
    piece: int
    pages: Pages

    @classmethod
    def of(
        cls, piece: int, atom: cute.CopyAtom, pool: cute.Tensor, head: Any, pages: Pages, shared: cute.Tensor
    ) -> "PagedKeyTiles":
        """pool: (token, dim, head, page), as `load_atom` has made it for pieces. shared: (rows, dim, slots)."""
        rows, dim = cute.size(shared, mode=[0]), cute.size(shared, mode=[1])
        boxes = cute.local_tile(pool[None, None, head, None], (piece, dim), (None, 0, None))
        target, source = partition(atom, cute.local_tile(shared, (piece, dim), (None, 0, None)), boxes)
        n_bytes = rows * dim * shared.element_type.width // 8
        return cls(atom, source, target, n_bytes, rows, piece, pages)

    @cute.jit
    def find(self, tile):
        """Of piece p of a tile, in lane p: which of its page it is, and the page."""
        lane, pages = cute.arch.lane_idx(), self.pages
        first = tile * self.rows + lane * self.piece
        page = pages.n_pages
        wanted = lane < self.rows // self.piece and first < pages.end
        if const_expr(pages.begin is not None):
            wanted = wanted and first + self.piece > pages.begin
        if wanted:
            page = pages.table[pages.sequence, first // pages.page_size]
        return first % pages.page_size // self.piece, page

    @cute.jit
    def load(self, found, barrier, slot):
        """By one warp."""
        if const_expr(self.rows // self.piece <= MOST_UNROLLED):
            for p in range_constexpr(self.rows // self.piece):
                self.load_piece(p, found, barrier, slot)
        else:
            for p in cutlass.range(self.rows // self.piece, unroll=1):
                self.load_piece(p, found, barrier, slot)

    def load_piece(self, p: Any, found: Any, barrier: cute.Pointer, slot: Any) -> None:
        which, page = (cute.arch.shuffle_sync(x, p) for x in found)
        cute.copy(self.atom, self.source[None, which, page], self.target[None, p, slot], tma_bar_ptr=barrier)
