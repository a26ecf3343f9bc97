"""Who holds which rows: equal numbers of chunks on every rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..mask import IntervalMask
from .checks import check_int, check_tensor

__all__ = ["Placement", "chunk_areas", "rank_areas"]


@dataclass(frozen=True, eq=False)
class Placement:
    """A split of one sequence, padded at its end, into equal chunks that ranks hold in ascending order.

    length: tokens of the sequence without padding.
    chunk_size: rows a chunk.
    chunks: int64 `(world, chunks_per_rank)` on the CPU: rank r holds chunks `chunks[r]`, ascending; all rows together
        are a permutation of the chunks. Chunk c is positions `[c * chunk_size, (c + 1) * chunk_size)`.

    Positions `>= length` are padding: they attend nothing and nothing attends them. Since a rank's chunks ascend, so do
    its positions, and its own keys can be attended as they lie.
    """

    length: int
    chunk_size: int
    chunks: torch.Tensor

    def __post_init__(self) -> None:
        chunks = self.chunks
        check_tensor("chunks", chunks)
        check_int("length", self.length, 0)
        check_int("chunk_size", self.chunk_size, 1)
        if chunks.device.type != "cpu":
            raise ValueError(f"chunks must be on the CPU, got {chunks.device}")
        if chunks.ndim != 2 or chunks.dtype != torch.int64:
            raise TypeError(
                f"chunks must be int64 of shape (world, chunks_per_rank), got {chunks.dtype} {chunks.shape}"
            )
        if not torch.equal(chunks.reshape(-1).sort().values, torch.arange(chunks.numel(), device="cpu")):
            raise ValueError("chunks must hold every chunk once")
        if not bool((chunks[:, 1:] > chunks[:, :-1]).all()):
            raise ValueError("the chunks of each rank must ascend")
        if not 0 <= self.length <= self.padded_length:
            raise ValueError(f"length must be in [0, {self.padded_length}], got {self.length}")

    @property
    def world(self) -> int:
        return self.chunks.shape[0]

    @property
    def padded_length(self) -> int:
        return self.chunks.numel() * self.chunk_size

    @property
    def pad_size(self) -> int:
        return self.padded_length - self.length

    @property
    def rows_per_rank(self) -> int:
        return self.chunks.shape[1] * self.chunk_size

    def owner(self) -> torch.Tensor:
        """int64 `(chunks,)`: the rank that holds each chunk."""
        owner = torch.empty(self.chunks.numel(), dtype=torch.int64, device="cpu")
        owner[self.chunks.reshape(-1)] = torch.arange(self.world, device="cpu").repeat_interleave(self.chunks.shape[1])
        return owner

    def positions(self, rank: int) -> torch.Tensor:
        """int64 `(rows_per_rank,)`: the global position of each of a rank's rows, ascending; padding `>= length`."""
        return (self.chunks[rank, :, None] * self.chunk_size + torch.arange(self.chunk_size, device="cpu")).reshape(-1)

    def order(self) -> torch.Tensor:
        """int64 `(padded_length,)`: global positions of all ranks' rows, rank 0's first: `padded_x[order]` is the
        concatenation of what the ranks hold."""
        return (self.chunks.reshape(-1, 1) * self.chunk_size + torch.arange(self.chunk_size, device="cpu")).reshape(-1)

    def inverse(self) -> torch.Tensor:
        """int64 `(padded_length,)`: where each global position sits in the concatenation of what the ranks hold:
        `concatenation[inverse][:length]` is the sequence in global order without padding."""
        inverse = torch.empty(self.padded_length, dtype=torch.int64, device="cpu")
        inverse[self.order()] = torch.arange(self.padded_length, device="cpu")
        return inverse

    def position_ids(self, rank: int) -> torch.Tensor:
        """int64 `(rows_per_rank,)`: as `positions`, padding rows carrying the last valid position (0 if none)."""
        return self.positions(rank).clamp(max=max(0, self.length - 1))

    @classmethod
    def contiguous(cls, length: int, chunk_size: int, world: int, chunks_per_rank: int) -> Placement:
        """Rank r holds the r-th consecutive part."""
        return cls(
            length, chunk_size, torch.arange(world * chunks_per_rank, device="cpu").reshape(world, chunks_per_rank)
        )


def chunk_areas(mask: IntervalMask, chunk_size: int, chunks: int) -> torch.Tensor:
    """int64 `(chunks,)`: attended pairs of each chunk of rows."""
    area = torch.zeros(chunks * chunk_size, dtype=torch.int64, device="cpu")
    area[: mask.seqlen_q] = mask.row_area()[0].cpu()
    return area.view(chunks, chunk_size).sum(1)


def rank_areas(mask: IntervalMask, query: Placement) -> torch.Tensor:
    """int64 `(world,)`: attended pairs of each rank's rows."""
    areas = chunk_areas(mask, query.chunk_size, query.chunks.numel())
    return torch.zeros(query.world, dtype=torch.int64, device="cpu").index_add_(0, query.owner(), areas)
