"""Intervals of masks that are given pair by pair."""

from __future__ import annotations

import torch

from .checks import shown
from .union import stack_layers

__all__ = ["check_dense", "runs", "runs_of_rows"]

_PAIRS = 1 << 24  # looked at together


def check_dense(dense: object) -> torch.Tensor:
    """A bool tensor `(seqlen_q, seqlen_k)`, `(batch, ...)` or `(batch, heads, ...)` as `(batch, heads, ...)`."""
    if not isinstance(dense, torch.Tensor) or dense.dtype != torch.bool or dense.is_nested:
        raise TypeError(f"dense must be a bool tensor, got {shown(dense)}")
    if dense.ndim not in (2, 3, 4) or 0 in dense.shape[:-2] or max(dense.shape) >= 1 << 31:
        raise ValueError(
            "dense must have shape (seqlen_q, seqlen_k), (batch, seqlen_q, seqlen_k) or (batch, heads, seqlen_q, "
            f"seqlen_k) with at least one batch element and head, got {tuple(dense.shape)}"
        )
    if dense.device.type == "meta":
        raise ValueError("dense must hold values, got a tensor on meta, which has none")
    if dense.ndim == 3:
        return dense[:, None]
    return dense if dense.ndim == 4 else dense[None, None]


def runs_of_rows(dense: torch.Tensor, least: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """`lo, hi`, int32 `(layers, rows)`: the runs of each row, of an argument as `runs` takes it."""
    return stack_layers(*runs(dense, least), len(dense))


def runs(dense: torch.Tensor, least: float | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row, lo and hi, int64, in order, of the runs of True in each row of a bool `(rows, keys)`; with `least`, of what
    is at least that in one of numbers. Nothing is made as large as the argument."""
    rows, keys = dense.shape
    found = [(torch.zeros(0, dtype=torch.int64, device=dense.device),) * 3]
    step = max(1, _PAIRS // max(1, keys))
    for first in range(0, rows, step):
        part = dense[first : first + step]
        padded = torch.nn.functional.pad(part if least is None else part >= least, (1, 1))
        row, at = (padded[:, 1:] != padded[:, :-1]).nonzero(as_tuple=True)  # by row: begin, end, begin, end, ...
        found.append((row[::2] + first, at[::2], at[1::2]))
    row, lo, hi = (torch.cat(parts) for parts in zip(*found, strict=True))
    return row, lo, hi
