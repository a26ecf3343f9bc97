"""What a CTA attends: some rows of a sequence and key head, over some tiles of its keys."""

from dataclasses import dataclass

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Int32

from cute_attn.sm90.reach import Reach
from cute_attn.spec.decode import DecodeSpec

from .arguments import Arguments

__all__ = ["Work"]


@dataclass(frozen=True)
class Work:
    """Row r of a CTA is the pair of token `(first_row + r) // heads_per_key` and query head
    `(first_row + r) % heads_per_key` of those that share the key head.

    reach: of the sequence's tokens. lo: the first key that a row attends; all of them lie in [lo, length).
    first, last: the tiles of keys of this CTA.
    """

    split: Int32
    head: Int32  # of the keys
    batch: Int32
    reach: Reach
    tokens: Int32
    heads_per_key: Int32  # query heads that share the key head
    first_row: Int32
    lo: Int32
    first: Int32
    last: Int32

    @classmethod
    def of_this_cta(cls, spec: DecodeSpec, arguments: Arguments) -> "Work":
        tensors, scalars = arguments.tensors, arguments.scalars
        rows, keys = spec.tile.rows, spec.tile.n
        place, head, batch = cute.arch.block_idx()
        tokens, heads_per_key = tensors.q.shape[1], tensors.q.shape[2] // tensors.k.shape[2]
        blocks = cute.ceil_div(tokens * heads_per_key, rows)
        split, first_row = place // blocks, place % blocks * rows  # neighbours read the same keys
        capacity = tensors.table.shape[1] * tensors.k.shape[1]
        reach = Reach.of(tensors.lengths[batch], capacity, tokens, scalars.left, scalars.right)
        last_token = cutlass.min((first_row + rows - 1) // heads_per_key, tokens - 1)
        lo, _ = reach.around(reach.position + first_row // heads_per_key)
        _, hi = reach.around(reach.position + last_token)
        hi = cutlass.max(hi, 0)
        begin, end = lo // keys, cute.ceil_div(hi, keys)
        splits = cute.arch.grid_dim()[0] // blocks
        share = cute.ceil_div(cutlass.max(end - begin, 0), splits)
        first = cutlass.min(begin + split * share, end)
        return cls(
            split=split,
            head=head,
            batch=batch,
            reach=reach,
            tokens=tokens,
            heads_per_key=heads_per_key,
            first_row=first_row,
            lo=lo,
            first=first,
            last=cutlass.min(first + share, end),
        )

    def token(self, row: Int32) -> Int32:
        return (self.first_row + row) // self.heads_per_key

    def query_head(self, row: Int32) -> Int32:
        return self.head * self.heads_per_key + (self.first_row + row) % self.heads_per_key

    def is_there(self, row: Int32) -> Boolean:
        """Whether a row is one of the problem's."""
        return self.first_row + row < self.tokens * self.heads_per_key

    @property
    def length(self) -> Int32:
        """Of the sequence."""
        return self.reach.length
