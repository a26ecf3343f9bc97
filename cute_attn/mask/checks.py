"""Checks of the builders' arguments: what a builder computes with has passed here."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["Integers", "check_flag", "check_integers", "check_lengths", "check_number", "check_tile", "device_of"]

Integers = torch.Tensor | Sequence[int] | Sequence[Sequence[int]]


def check_number(name: str, value: object, minimum: int | None = None) -> int:
    """An int of at least `minimum` that fits int32, as positions must; TypeError or ValueError naming it otherwise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")
    if minimum is not None and value < minimum:
        raise ValueError(f"{name} must be {'positive' if minimum == 1 else f'>= {minimum}'}, got {value}")
    if not -(1 << 31) <= value < 1 << 31:
        raise ValueError(f"{name} must be below 2^31, as all positions, got {value}")
    return value


def check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r} of type {type(value).__name__}")


def check_tile(tile: object) -> tuple[int, int]:
    """Two positive ints: rows and keys of a tile."""
    if (
        not isinstance(tile, (tuple, list))
        or len(tile) != 2
        or any(isinstance(x, bool) or not isinstance(x, int) or not 1 <= x < 1 << 31 for x in tile)
    ):
        raise ValueError(f"tile must be (rows, keys), two ints >= 1 and below 2^31, got {tile!r}")
    return tile[0], tile[1]


def check_lengths(seqlen_q: int, seqlen_k: int | None, *, equal_for: str | None = None) -> tuple[int, int]:
    """Both lengths, seqlen_k defaulting to seqlen_q; `equal_for` names a builder that needs one sequence."""
    check_number("seqlen_q", seqlen_q, 0)
    seqlen_k = seqlen_q if seqlen_k is None else check_number("seqlen_k", seqlen_k, 0)
    if equal_for and seqlen_k != seqlen_q:
        raise ValueError(f"{equal_for} needs seqlen_k equal to seqlen_q, got {seqlen_q} and {seqlen_k}")
    return seqlen_q, seqlen_k


def check_integers(
    name: str, value: object, device: torch.device | str | None = None, *, takes_bools: bool = False
) -> torch.Tensor:
    """A tensor or (nested) list of integers as an int64 tensor on `device`, or where it is."""
    if not isinstance(value, torch.Tensor):
        if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
            raise TypeError(f"{name} must be an integer tensor or a list of ints, got {type(value).__name__}")
        try:
            value = torch.tensor(value, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a number past int64
            raise TypeError(f"{name} must be an integer tensor or a list of ints: {error}") from None
        if value.numel() == 0:  # an empty list says nothing of its type
            value = value.long()
    if value.dtype.is_floating_point or value.dtype.is_complex or (value.dtype == torch.bool and not takes_bools):
        raise TypeError(f"{name} must hold integers, got {value.dtype}")
    return value.to(device=device or value.device, dtype=torch.int64)


def device_of(device: torch.device | str | None, *values: object) -> torch.device:
    """The asked device, else that of the first tensor among the arguments, else the CPU."""
    if device is not None:
        return torch.device(device)
    return next((v.device for v in values if isinstance(v, torch.Tensor)), torch.device("cpu"))
