"""Lists of blocks, the form in which flex_attention's BlockMask says where it attends, as intervals of blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .intervals import IntervalMask
from .union import stack_layers, unite

__all__ = ["BlockGrid"]


@dataclass(frozen=True)
class BlockGrid:
    """Which blocks of `block` = (rows, keys) a mask lists: masks whose rows and keys are block rows and block columns.

    listed: blocks of which some pairs may be attended. full: those of them of which all pairs are.
    seqlen_q, seqlen_k: rows and keys; the last blocks may be ragged.
    """

    listed: IntervalMask
    full: IntervalMask
    block: tuple[int, int]
    seqlen_q: int
    seqlen_k: int

    @classmethod
    def from_lists(
        cls,
        partial: tuple[torch.Tensor, torch.Tensor],
        full: tuple[torch.Tensor, torch.Tensor] | None,
        block: tuple[int, int],
        seqlen_q: int,
        seqlen_k: int,
    ) -> BlockGrid:
        """From lists `(counts, indices)` of shapes `(batch, heads, rows)` and `(batch, heads, rows, width)`: of row i,
        the first `counts[i]` of `indices[i]`, in any order and as often as they come; what is out of range lists
        nothing."""
        lists = [partial] if full is None else [partial, full]
        columns = -(-seqlen_k // block[1])
        batch, heads = torch.broadcast_shapes(*(counts.shape[:2] for counts, _ in lists))
        entries = [_entries(counts, indices, batch, heads, columns) for counts, indices in lists]
        group, column = (torch.cat(parts) for parts in zip(*entries, strict=True))
        n_partial = len(entries[0][0])
        shape = batch, heads, partial[0].shape[2], columns
        return cls(
            _mask(group, column, *shape),
            _mask(group[n_partial:], column[n_partial:], *shape),
            block,
            seqlen_q,
            seqlen_k,
        )

    @classmethod
    def from_states(cls, states: torch.Tensor, block: tuple[int, int], seqlen_q: int, seqlen_k: int) -> BlockGrid:
        """From int8 `(batch, heads, rows, columns)`: 0 none, 1 partial, 2 full."""
        return cls(IntervalMask.from_dense(states > 0), IntervalMask.from_dense(states == 2), block, seqlen_q, seqlen_k)

    @classmethod
    def from_mask(cls, mask: IntervalMask, block: tuple[int, int]) -> BlockGrid:
        """The blocks of a mask, ragged ones at the edges partial at most, as flex_attention has them."""
        tile = min(block[0], max(1, mask.seqlen_q)), min(block[1], max(1, mask.seqlen_k))
        states = mask.schedule(tile).to_grid().unflatten(0, (mask.batch, mask.heads))
        for dim, length, size in ((2, mask.seqlen_q, block[0]), (3, mask.seqlen_k, block[1])):
            if length % size:
                states.select(dim, -1).clamp_(max=1)
        return cls.from_states(states, block, mask.seqlen_q, mask.seqlen_k)

    def states(self) -> torch.Tensor:
        """int8 `(batch, heads, rows, columns)`: 0 none, 1 partial, 2 full. It has every block."""
        shape = self.listed.batch, self.listed.heads, self.listed.seqlen_q, self.listed.seqlen_k
        listed, full = (mask.to_dense().view(shape) for mask in (self.listed, self.full))
        return listed.to(torch.int8) + (listed & full).to(torch.int8)

    def pairs(self, blocks: IntervalMask) -> IntervalMask:
        """`listed` or `full` row by row and key by key."""
        rows = torch.arange(self.seqlen_q, device=blocks.device) // self.block[0]
        lo, hi = ((x[:, :, rows].long() * self.block[1]).clamp(max=self.seqlen_k).int() for x in (blocks.lo, blocks.hi))
        return IntervalMask._made(lo, hi, self.seqlen_k, blocks.heads)

    def to(self, device: torch.device | str | int) -> BlockGrid:
        return BlockGrid(self.listed.to(device), self.full.to(device), self.block, self.seqlen_q, self.seqlen_k)


def _entries(
    counts: torch.Tensor, indices: torch.Tensor, batch: int, heads: int, columns: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(group, column) of all entries that count, group = plane * rows + row."""
    rows, width = indices.shape[2:]
    counts, indices = counts.expand(batch, heads, rows), indices.expand(batch, heads, rows, width)
    is_listed = torch.arange(width, device=indices.device) < counts[..., None]
    is_listed &= (indices >= 0) & (indices < columns)
    plane, head, row, at = is_listed.nonzero(as_tuple=True)
    return (plane * heads + head) * rows + row, indices[plane, head, row, at].long()


def _mask(group: torch.Tensor, column: torch.Tensor, batch: int, heads: int, rows: int, columns: int) -> IntervalMask:
    group, lo, hi = unite(group, column, column + 1, columns)
    lo, hi = stack_layers(group, lo, hi, batch * heads * rows)
    lo, hi = (x.unflatten(1, (batch * heads, rows)).transpose(0, 1).contiguous() for x in (lo, hi))
    return IntervalMask._made(lo, hi, columns, heads)
