"""Masks that compare by what they were made of, with rows in the order in which context parallelism holds them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..kinds import is_int
from ..mask import IntervalMask, causal, chunked_causal
from ..mask.checks import check_number, shown

__all__ = ["ChunkedCausalMask", "LoadBalancedCausalMask", "StripedMask", "balanced_order"]

Index = slice | int


class _ComparedMask(IntervalMask):
    """An IntervalMask that equals, and hashes as, every other of its class made of the same numbers.

    `mask[rows, cols]` gives pairs as a dense bool tensor, an int or a slice each; `mask[rows]` is an IntervalMask of
    some rows, as of any; so is what `&`, `|` and `~` give.
    """

    shape: tuple[int, int]
    _numbers: tuple[Any, ...]

    def _become(self, mask: IntervalMask, shape: tuple[int, int], **numbers: Any) -> None:
        """numbers: all that makes the mask besides its shape."""
        for name, value in {**vars(mask), **numbers, "shape": shape}.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_numbers", (shape, *numbers.values()))

    @classmethod
    def _made(cls, lo: torch.Tensor, hi: torch.Tensor, seqlen_k: int, heads: int = 1) -> IntervalMask:
        return IntervalMask._made(lo, hi, seqlen_k, heads)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _ComparedMask):
            return NotImplemented
        return type(self) is type(other) and self._numbers == other._numbers

    def __hash__(self) -> int:
        return hash((type(self), self._numbers))

    def __getitem__(self, index: slice | tuple[Index, Index]) -> Any:
        if not isinstance(index, tuple):
            return super().__getitem__(index)
        if len(index) != 2 or not all(isinstance(part, slice) or is_int(part, np.integer) for part in index):
            raise TypeError(f"a mask takes [rows] or [rows, cols] of slices and ints, got {index!r}")
        places = (torch.arange(size, device=self.device) for size in self.shape)
        row, column = (place[part] for place, part in zip(places, index, strict=True))
        lo, hi = (x[0, 0][row][..., None] for x in (self.lo, self.hi))
        pairs = (column.reshape(-1) >= lo) & (column.reshape(-1) < hi)
        return pairs.reshape((*row.shape, *column.shape))


class ChunkedCausalMask(_ComparedMask):
    """Causal attention inside chunks: row i attends key j where `j <= i` and both are in one chunk.

    Args:
        shape: rows and keys. chunk_size: keys of a chunk, at least 1. shard_count: a hint that changes nothing.

    Raises TypeError or ValueError naming the argument; "chunk_size must be positive".
    """

    chunk_size: int

    def __init__(self, shape: tuple[int, int], chunk_size: int, shard_count: int = 1) -> None:
        rows, keys = _check_shape(shape)
        chunk_size = check_number("chunk_size", chunk_size, 1)
        check_number("shard_count", shard_count, 1)
        mask = chunked_causal(rows, keys, chunk_size=chunk_size, align="top_left")
        self._become(mask, (rows, keys), chunk_size=chunk_size)


class LoadBalancedCausalMask(_ComparedMask):
    """Causal attention, rows in the order of `balanced_order`: row i attends key j where `j <= order[i] + offset`.

    Args:
        shape: rows and keys. offset: of the first row among the keys; negative ones leave first rows without keys.
        shard_count: a hint that changes nothing. cp_size: how many ranks share the rows; see `balanced_order`.

    Raises TypeError or ValueError naming the argument.
    """

    offset: int
    cp_size: int

    def __init__(self, shape: tuple[int, int], offset: int = 0, shard_count: int = 1, cp_size: int = 4) -> None:
        rows, keys = _check_shape(shape)
        offset = check_number("offset", offset)
        check_number("shard_count", shard_count, 1)
        order = balanced_order(rows, cp_size)
        mask = causal(rows, keys, align="top_left", offset=offset).permute_rows(order)
        self._become(mask, (rows, keys), offset=offset, cp_size=int(cp_size))


class StripedMask(_ComparedMask):
    """Causal attention whose rows are dealt to ranks in turn: rank r holds rows r, r + cp_size, r + 2 cp_size, ..., and
    the rows of rank 0 come first.

    Args:
        shape: rows and keys. cp_size: how many ranks share the rows; divides them.

    Raises TypeError or ValueError naming the argument.
    """

    cp_size: int

    def __init__(self, shape: tuple[int, int], cp_size: int) -> None:
        rows, keys = _check_shape(shape)
        cp_size = check_number("cp_size", cp_size, 1)
        if rows % cp_size:
            raise ValueError(f"the rows of shape must be a multiple of cp_size = {cp_size}, got {rows}")
        order = torch.arange(rows, device="cpu").view(-1, cp_size).T.reshape(-1)
        self._become(causal(rows, keys, align="top_left").permute_rows(order), (rows, keys), cp_size=cp_size)


def balanced_order(seqlen: int, cp_size: int) -> torch.Tensor:
    """The rows that ranks hold where each has an early and a late part, so that causal work is even.

    The sequence is cut into `2 * cp_size` equal parts; they come in the order `0, 2 cp - 1, 1, 2 cp - 2, ...`, two for
    each rank. Returns int64 `(seqlen,)` on the CPU, for `mask.permute_rows(order)` of any mask and `x[:, order]`.
    Raises ValueError unless cp_size is even and `2 * cp_size` divides seqlen.
    """
    seqlen, cp_size = check_number("seqlen", seqlen, 0), check_number("cp_size", cp_size, 1)
    if cp_size % 2:
        raise ValueError(f"cp_size must be even, got {cp_size}")
    if seqlen % (2 * cp_size):
        raise ValueError(f"seqlen must be a multiple of 2 * cp_size = {2 * cp_size}, got {seqlen}")
    parts = torch.arange(seqlen, device="cpu").view(2 * cp_size, -1)
    return torch.stack([parts[:cp_size], parts.flip(0)[:cp_size]], 1).reshape(-1)


def _check_shape(shape: object) -> tuple[int, int]:
    if not isinstance(shape, (tuple, list)) or len(shape) != 2:
        raise TypeError(f"shape must be (rows, keys), got {shown(shape)}")
    return check_number("shape[0]", shape[0], 0), check_number("shape[1]", shape[1], 0)
