"""Checks of arguments that describe masks: what is computed with has passed here.

NumPy's integers count as ints and its arrays as lists of ints, and become them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..kinds import is_int

__all__ = [
    "Integers",
    "check_cumulative",
    "check_device",
    "check_flag",
    "check_int",
    "check_integer_tensor",
    "check_integers",
    "check_is_dense",
    "check_length",
    "check_lengths",
    "check_number",
    "check_tile",
    "device_of",
    "shown",
]

Integers = torch.Tensor | np.ndarray | Sequence[int] | Sequence[Sequence[int]]

INTEGERS = (
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
)
END = 1 << 31  # positions are int32


def shown(value: object) -> str:
    """A value as errors tell of it: its text and type, of a tensor or an array only shape and dtype."""
    if isinstance(value, torch.Tensor) and value.is_nested:
        return f"a nested tensor of dtype {value.dtype}"  # the strided ones have no shape
    if isinstance(value, (torch.Tensor, np.ndarray)):
        kind = "a tensor" if isinstance(value, torch.Tensor) else "an array"
        return f"{kind} of shape {tuple(value.shape)} and dtype {value.dtype}"
    return f"{value!r} of type {type(value).__name__}"


def check_int(name: str, value: object) -> int:
    """An int; TypeError naming it otherwise."""
    if isinstance(value, np.integer):
        value = int(value)
    if not is_int(value):
        raise TypeError(f"{name} must be an int, got {shown(value)}")
    return value


def check_number(name: str, value: object, minimum: int | None = None) -> int:
    """An int of at least `minimum` that fits int32, as positions must; TypeError or ValueError naming it otherwise."""
    value = check_int(name, value)
    if minimum is not None and value < minimum:
        raise ValueError(f"{name} must be {'positive' if minimum == 1 else f'>= {minimum}'}, got {value}")
    if not -END <= value < END:
        raise ValueError(f"{name} must be below 2^31, as all positions, got {value}")
    return value


def check_length(name: str, value: object) -> int:
    """A length that is no argument of its own but goes with tensors: an int, ValueError for anything else."""
    if isinstance(value, np.integer):
        value = int(value)
    if not is_int(value) or not 0 <= value < END:
        got = repr(value) if isinstance(value, int) else shown(value)
        raise ValueError(f"{name} must be an int >= 0 and below 2^31, got {got}")
    return value


def check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")


def check_tile(tile: object) -> tuple[int, int]:
    """Two positive ints: rows and keys of a tile."""
    sizes = tile.tolist() if isinstance(tile, np.ndarray) else tile
    if isinstance(sizes, (tuple, list)) and len(sizes) == 2:
        rows, keys = (int(x) if isinstance(x, np.integer) else x for x in sizes)
        if all(is_int(x) and 1 <= x < END for x in (rows, keys)):
            return rows, keys
    raise ValueError(f"tile must be (rows, keys), two ints >= 1 and below 2^31, got {tile!r}")


def check_lengths(seqlen_q: object, seqlen_k: object, *, equal_for: str | None = None) -> tuple[int, int]:
    """Both lengths, seqlen_k defaulting to seqlen_q; `equal_for` names a builder that needs one sequence."""
    rows = check_number("seqlen_q", seqlen_q, 0)
    keys = rows if seqlen_k is None else check_number("seqlen_k", seqlen_k, 0)
    if equal_for and keys != rows:
        raise ValueError(f"{equal_for} needs seqlen_k equal to seqlen_q, got {rows} and {keys}")
    return rows, keys


def check_is_dense(name: str, x: torch.Tensor, advice: str = "") -> None:
    if x.is_nested or x.layout != torch.strided:
        kind = "a nested tensor" if x.is_nested else f"layout {x.layout}"
        raise TypeError(f"{name} must be a dense tensor, got {kind}{advice}")


def check_integer_tensor(name: str, value: torch.Tensor, *, takes_bools: bool = False) -> None:
    """A dense tensor of integers that can be read: none on `meta`."""
    check_is_dense(name, value)
    if value.dtype not in INTEGERS and not (takes_bools and value.dtype == torch.bool):
        raise TypeError(f"{name} must hold integers, got {value.dtype}")
    if value.device.type == "meta":
        raise ValueError(f"{name} must hold values, got a tensor on meta, which has none")


def check_integers(
    name: str, value: object, device: torch.device | None = None, *, takes_bools: bool = False
) -> torch.Tensor:
    """A tensor, an array or a (nested) list of integers as an int64 tensor on `device`, or where it is."""
    if not isinstance(value, torch.Tensor):
        if isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, np.ndarray)):
            raise TypeError(f"{name} must be an integer tensor or a list of ints, got {type(value).__name__}")
        try:
            if isinstance(value, np.ndarray):  # copied: it may be read-only or have strides that a tensor cannot have
                value = torch.from_numpy(value.copy())
            else:
                value = torch.tensor(value, device="cpu")
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # RuntimeError: a number past int64
            raise TypeError(f"{name} must be an integer tensor or a list of ints: {error}") from None
        if value.numel() == 0:  # an empty list says nothing of its type
            value = value.long()
    check_integer_tensor(name, value, takes_bools=takes_bools)
    return value.to(device=device or value.device, dtype=torch.int64)


def check_cumulative(name: str, ends: torch.Tensor, total: int, *, may_end_before: bool = False) -> None:
    """Cumulative lengths `(..., documents + 1)`: from 0 to `total`, or to less where they may, and never falling."""
    ends = ends.long()
    last = ends[..., -1]
    is_right = (ends[..., 0] == 0) & ((last <= total) if may_end_before else (last == total))
    if not bool(is_right.all() & (ends.diff() >= 0).all()):
        values = ends.flatten()[:8].tolist()
        got = f"[{', '.join(map(str, values))}{', ...' if ends.numel() > 8 else ''}]"
        end = f"at most {total}" if may_end_before else str(total)
        raise ValueError(f"{name} must go from 0 to {end} and never fall, got {got}")


def check_device(device: object) -> torch.device:
    """The device that is named, if tensors with values can be made on it here."""
    if isinstance(device, bool) or not isinstance(device, (torch.device, str, int)):
        raise TypeError(f"device must be a torch.device or its name, got {shown(device)}")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError, OverflowError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device must be one that is here, got {device!r}: {reason}") from None
    if found.type == "meta":
        raise ValueError("device must be one that holds values, got meta")
    return found


def device_of(device: object, *values: object) -> torch.device:
    """The asked device, else that of the first tensor among the arguments, else the CPU."""
    if device is not None:
        return check_device(device)
    return next((v.device for v in values if isinstance(v, torch.Tensor)), torch.device("cpu"))
