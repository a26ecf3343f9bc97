"""Checks that keys, plans, rows and attention share. NumPy's integers are ints, its arrays are lists of ints."""

from __future__ import annotations

import math

import numpy as np
import torch

from ..kinds import is_number
from ..mask import IntervalMask
from ..mask.checks import END, check_is_dense, shown
from ..mask.checks import check_int as check_any_int

__all__ = [
    "END",
    "as_list",
    "check_fill",
    "check_finite",
    "check_int",
    "check_kind",
    "check_one_plane",
    "check_rows",
    "check_side",
    "check_tensor",
    "integer_tensor",
]


def check_int(name: str, value: object, least: int | None = None, below: int | None = None) -> int:
    number = check_any_int(name, value)
    if least is not None and number < least:
        raise ValueError(f"{name} must be >= {least}, got {number}")
    if below is not None and number >= below:
        raise ValueError(f"{name} must be below {below}, got {number}")
    return number


def check_one_plane(name: str, mask: IntervalMask) -> None:
    """One sequence under one mask is what is placed."""
    if mask.planes != 1:
        heads = f" and heads {mask.heads}" if mask.heads > 1 else ""
        raise ValueError(
            f"{name} must have batch 1 and heads 1 under context parallelism, got batch {mask.batch}{heads}; "
            "flex_flash_attn_func on one device takes a mask for each head"
        )


def check_finite(name: str, value: object) -> float:
    """A finite number."""
    if not is_number(value, np.integer, np.floating):
        raise TypeError(f"{name} must be a number, got {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value}")
    return number


def check_kind(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be of type {kind.__name__}, got {shown(value)}")


def check_side(side: str, following: str = "") -> str:
    """following: the argument that others have in its place."""
    if not isinstance(side, str):
        by_keyword = f": pass {following} by keyword" if following else ""
        raise TypeError(f"side must be 'q' or 'k', got {shown(side)}{by_keyword}")
    if side not in ("q", "k"):
        raise ValueError(f"side must be 'q' or 'k', got {side!r}")
    return side


def check_tensor(name: str, x: object) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    check_is_dense(name, x)


def check_rows(name: str, x: torch.Tensor, rows: int, meaning: str) -> None:
    check_tensor(name, x)
    if x.ndim < 1 or x.shape[0] != rows:
        raise ValueError(f"{name} must have {rows} rows, {meaning}, got shape {tuple(x.shape)}")
    if x.device.type == "meta":
        raise ValueError(f"{name} must hold values, got a tensor on meta, which has none")


def check_fill(name: str, value: float, dtype: torch.dtype) -> float:
    """A number that a tensor of the dtype can hold: an integer where it holds integers."""
    if isinstance(value, float) and not math.isfinite(value) and dtype.is_floating_point:
        return value
    number = int(value) if isinstance(value, bool) else check_finite(name, value)
    if dtype.is_floating_point or dtype.is_complex:
        return float(number)  # torch takes no int past int64
    least, most = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    if number != int(number) or not least <= value <= most:
        raise ValueError(f"{name} must be an integer in [{least}, {most}] for x of {dtype}, got {value}")
    return value


def as_list(name: str, value: object) -> list[object]:
    """The items of a list, a tuple, an array or a tensor of one dimension."""
    if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim == 1:
        return integer_tensor(name, value).tolist()
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name} must be a list, got {shown(value)}")
    return list(value)


def integer_tensor(name: str, value: object) -> torch.Tensor:
    """Integers in a tensor of one dimension, an array or a list, as a tensor."""
    if isinstance(value, (list, tuple)):
        numbers = [check_int(f"{name}[{i}]", x, -END, END) for i, x in enumerate(value)]
        return torch.tensor(numbers, dtype=torch.int64, device="cpu")
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "iu":
            raise TypeError(f"{name} must hold integers, got {value.dtype}")
        return torch.from_numpy(value.astype(np.int64))
    check_tensor(name, value)
    assert isinstance(value, torch.Tensor)
    if value.device.type == "meta":
        raise ValueError(f"{name} must hold values, got a tensor on meta, which has none")
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must hold integers, got {value.dtype}")
    return value
