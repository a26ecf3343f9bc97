"""Checks that keys, rows and attention share."""

from __future__ import annotations

import torch

from ..reference import compute_dtype

__all__ = ["check_int", "check_rows", "check_side", "check_sinks", "check_tensor"]


def check_int(name: str, value: object, least: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be >= {least}, got {value}")


def check_side(side: str) -> str:
    if not isinstance(side, str):
        raise TypeError(f"side must be 'q' or 'k', got {side!r} of type {type(side).__name__}")
    if side not in ("q", "k"):
        raise ValueError(f"side must be 'q' or 'k', got {side!r}")
    return side


def check_tensor(name: str, x: object) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.is_nested or x.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got {'a nested tensor' if x.is_nested else x.layout}")


def check_rows(name: str, x: torch.Tensor, rows: int, meaning: str) -> None:
    check_tensor(name, x)
    if x.ndim < 1 or x.shape[0] != rows:
        raise ValueError(f"{name} must have {rows} rows, {meaning}, got shape {tuple(x.shape)}")


def check_sinks(sink: torch.Tensor | None, q: torch.Tensor) -> torch.Tensor | None:
    """The sinks as `(sinks, heads_q)` in the dtype that q computes in, for q `(rows, heads_q, head_dim)`."""
    if sink is None:
        return None
    check_tensor("sink", sink)
    if not sink.is_floating_point():
        raise TypeError(f"sink must be of a floating dtype, got {sink.dtype}")
    if sink.device != q.device:
        raise ValueError(f"sink must be on the device of q, {q.device}, got {sink.device}")
    heads = q.shape[1]
    if sink.ndim not in (1, 2) or sink.shape[-1] != heads:
        raise ValueError(f"sink must have shape ({heads},) or (sinks, {heads}), got {tuple(sink.shape)}")
    return sink.reshape(-1, heads).to(compute_dtype(q.dtype))
