"""Which position and which query head a row of a tile is, of tiles of one head and of several that share a key head.

Row r of a packed tile is position `r // packed_heads` of head `r % packed_heads` of its heads. That is a power of two,
so that a box of the TMA is the rows of a warpgroup whatever the ratio of heads: the heads that are too many lie outside
of the tensor, read as zeros, and are not written.
"""

from dataclasses import dataclass
from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Int32

__all__ = ["Query", "head_view"]


@dataclass(frozen=True)
class Query:
    """A row of an item.

    packed: packed_heads of the spec. first_head: of the item's query heads, of which there are `heads`.
    first_row, offset: whose sum is the row, counted over all tiles of its heads. seqlen: positions.
    """

    packed: int
    first_head: Int32
    heads: Int32
    first_row: Int32
    offset: int
    seqlen: Int32

    @property
    def row(self) -> Int32:
        return self.first_row + self.offset

    @property
    def _number(self) -> Int32:
        return self.row & (self.packed - 1)

    @property
    def position(self) -> Int32:
        return self.row >> (self.packed.bit_length() - 1) if self.packed > 1 else self.row

    @property
    def head(self) -> Int32:
        return self.first_head + self._number if self.packed > 1 else self.first_head

    @property
    def last_position(self) -> Int32:
        """Its position, or the last one if it lies behind."""
        return cutlass.min(self.position, self.seqlen - 1)

    @property
    def last_head(self) -> Int32:
        return cutlass.min(self.head, self.first_head + self.heads - 1) if self.packed > 1 else self.first_head

    def is_there(self) -> Boolean:
        """Whether it is a row of the problem."""
        inside = self.position < self.seqlen
        return inside if self.packed == 1 else inside & (self._number < self.heads)


def head_view(tensor: cute.Tensor, packed: int, heads: Any) -> cute.Tensor:
    """(batch, seq, heads_q, dim) as TMA takes it: (seq, dim, head, batch), or, where `heads` of the heads share a tile,
    ((heads, seq), dim, heads_q / heads, batch)."""
    if packed == 1:
        return cute.make_tensor(tensor.iterator, cute.select(tensor.layout, mode=[1, 3, 2, 0]))
    batch, seqlen, heads_q, dim = tensor.shape
    of_batch, of_position, of_head, of_dim = tensor.stride
    shape = (heads, seqlen), dim, heads_q // heads, batch
    stride = (of_head, of_position), of_dim, of_head * heads, of_batch
    return cute.make_tensor(tensor.iterator, cute.make_layout(shape, stride=stride))
