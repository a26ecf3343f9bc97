"""Where tiles of keys, and of values, come from: tensors of them, or the pages of a cache.

A producer finds a tile before it waits for the slot that the tile is to land in, and loads what it found.
"""

from dataclasses import dataclass
from typing import Any

import cutlass.cute as cute
from cutlass import Int32, range_constexpr

from .tiles import partition

__all__ = ["KeyTiles", "PagedKeyTiles", "Pages"]


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
    """The pages of a sequence: table (batch, max_pages), int32. Of its keys those in [begin, end) are wanted."""

    table: cute.Tensor
    sequence: Int32
    begin: Int32
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
    page_size: Int32
    n_pages: Int32
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
        return cls(atom, source, target, n_bytes, rows, piece, pool.shape[0], pool.shape[3], pages)

    @cute.jit
    def find(self, tile):
        """Of piece p of a tile, in lane p: which of its page it is, and the page."""
        lane, pages = cute.arch.lane_idx(), self.pages
        first = tile * self.rows + lane * self.piece
        page = Int32(self.n_pages)
        if lane < self.rows // self.piece and first + self.piece > pages.begin and first < pages.end:
            page = pages.table[pages.sequence, first // self.page_size]
        return first % self.page_size // self.piece, page

    @cute.jit
    def load(self, found, barrier, slot):
        """By one warp."""
        for p in range_constexpr(self.rows // self.piece):
            place = [cute.arch.shuffle_sync(x, p) for x in found]
            cute.copy(self.atom, self.source[None, place[0], place[1]], self.target[None, p, slot], tma_bar_ptr=barrier)
