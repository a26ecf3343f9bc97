"""Checks that keys, rows and attention share."""

from __future__ import annotations

import torch

__all__ = ["check_int", "check_rows", "check_side", "check_tensor"]


def check_int(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")


def check_side(side: str) -> str:
    if side not in ("q", "k"):
        raise ValueError(f"side must be 'q' or 'k', got {side!r}")
    return side


def check_tensor(name: str, x: object) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")


def check_rows(name: str, x: torch.Tensor, rows: int, meaning: str) -> None:
    check_tensor(name, x)
    if x.ndim < 1 or x.shape[0] != rows:
        raise ValueError(f"{name} must have {rows} rows, {meaning}, got shape {tuple(x.shape)}")
