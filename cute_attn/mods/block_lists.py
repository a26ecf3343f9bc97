"""The lists of blocks of a BlockMask: their checks, and how they are made and transposed."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..mask.blocks import BlockGrid
from ..mask.checks import INTEGERS, check_number, shown

__all__ = ["Lists", "check_block_size", "check_lists", "in_order", "transposed"]


class Lists(NamedTuple):
    """Checked lists: the blocks that they name, and their dimensions before the rows."""

    grid: BlockGrid
    leading: tuple[int, ...]


def check_block_size(size: object) -> tuple[int, int]:
    """One int, or two: rows and keys of a block."""
    sizes = size if isinstance(size, (tuple, list)) else (size, size)
    if len(sizes) != 2:
        raise ValueError(f"BLOCK_SIZE must be an int or two ints, rows and keys of a block, got {size!r}")
    return check_number("BLOCK_SIZE", sizes[0], 1), check_number("BLOCK_SIZE", sizes[1], 1)


def check_lists(
    num: object,
    indices: object,
    full_num: object,
    full_indices: object,
    block: tuple[int, int],
    lengths: tuple[int, int],
) -> Lists:
    """What lists of key blocks say; TypeError or ValueError naming the list that does not fit.

    On a GPU, where reading them would wait, counts above the width and blocks outside of the keys are not refused: they
    list nothing.
    """
    partial = _check_list("kv", num, indices, block, lengths)
    leading = tuple(partial[1].shape[:-2])
    full = None
    if (full_num is None) != (full_indices is None):
        alone = "full_kv_num_blocks" if full_indices is None else "full_kv_indices"
        raise ValueError(f"full_kv_num_blocks and full_kv_indices must be given both or neither, got {alone} alone")
    if full_num is not None:
        full = _check_list("full_kv", full_num, full_indices, block, lengths)
        if full[1].device != partial[1].device:
            raise ValueError(f"full_kv_indices must be on {partial[1].device} as kv_indices, got {full[1].device}")
        try:
            leading = tuple(torch.broadcast_shapes(leading, full[1].shape[:-2]))
        except RuntimeError:
            raise ValueError(
                f"full_kv_indices must have the batch and heads of kv_indices, {leading}, or 1, got "
                f"{tuple(full[1].shape[:-2])}"
            ) from None
    lists = [None if pair is None else tuple(_with_planes(x, x is pair[1]) for x in pair) for pair in (partial, full)]
    return Lists(BlockGrid.from_lists(lists[0], lists[1], block, *lengths), leading)  # type: ignore[arg-type]


def _check_list(
    kind: str, num: Any, indices: Any, block: tuple[int, int], lengths: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    names = f"{kind}_num_blocks", f"{kind}_indices"
    for name, x in zip(names, (num, indices), strict=True):
        if not isinstance(x, torch.Tensor) or x.dtype not in INTEGERS:
            raise TypeError(f"{name} must be a tensor of integers, got {shown(x)}")
    if indices.ndim not in (2, 3, 4) or num.shape != indices.shape[:-1] or 0 in indices.shape[:-2]:
        raise ValueError(
            f"{names[1]} must have shape ([[batch,] heads,] rows, width) and {names[0]} the same without width, got "
            f"{tuple(indices.shape)} and {tuple(num.shape)}"
        )
    if num.device != indices.device:
        raise ValueError(f"{names[0]} must be on {indices.device} as {names[1]}, got {num.device}")
    rows, columns = (-(-n // size) for n, size in zip(lengths, block, strict=True))
    if indices.shape[-2] != rows:
        raise ValueError(
            f"{names[1]} must have a row for each block of {block[0]} of the {lengths[0]} rows of seq_lengths, "
            f"{rows}, got {indices.shape[-2]}"
        )
    if indices.device.type != "cpu":
        return num, indices
    width = indices.shape[-1]
    if num.numel() and (int(num.min()) < 0 or int(num.max()) > width):
        raise ValueError(f"{names[0]} must be in [0, {width}], the width of {names[1]}, got {_worst(num, width)}")
    listed = indices[torch.arange(width, device=indices.device) < num[..., None]]
    if listed.numel() and (int(listed.min()) < 0 or int(listed.max()) >= columns):
        raise ValueError(
            f"{names[1]} must be in [0, {columns}), the blocks of {block[1]} of the {lengths[1]} keys of seq_lengths, "
            f"got {_worst(listed, columns - 1)}"
        )
    return num, indices


def _worst(x: torch.Tensor, most: int) -> int:
    return int(x.max()) if int(x.max()) > most else int(x.min())


def _with_planes(x: torch.Tensor, has_width: bool) -> torch.Tensor:
    """With both dimensions of planes."""
    while x.ndim < 3 + has_width:
        x = x[None]
    return x


def in_order(listed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts and indices, int32, of a bool `(..., rows, columns)`: listed columns first, each part ascending."""
    order = listed.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return listed.sum(-1, dtype=torch.int32), order.int()


def transposed(num: torch.Tensor, indices: torch.Tensor, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same blocks as lists of rows for each column."""
    is_listed = torch.arange(indices.shape[-1], device=indices.device) < num[..., None]
    is_listed &= (indices >= 0) & (indices < columns)
    at = indices.long().masked_fill(~is_listed, columns)
    dense = torch.zeros(*num.shape, columns + 1, dtype=torch.bool, device=indices.device)
    dense.scatter_(-1, at, True)
    return in_order(dense[..., :columns].transpose(-2, -1))
