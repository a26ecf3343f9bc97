"""Checks of the arguments of block masks."""

from __future__ import annotations

import inspect

from ..mask.checks import check_length, shown

__all__ = ["check_mod", "check_orders", "check_seq_lengths"]


def check_mod(name: str, mod: object, arguments: int, *, or_none: bool = False) -> None:
    """A function of so many arguments. or_none: whether errors say that None would do too."""
    said = {4: "b, h, q_idx, kv_idx", 5: "score, b, h, q_idx, kv_idx"}[arguments]
    if not callable(mod):
        allowed = f"{'None or ' if or_none else ''}a function {name}({said})"
        raise TypeError(f"{name} must be {allowed}, got {shown(mod)}")
    try:
        inspect.signature(mod).bind(*range(arguments))
    except (TypeError, ValueError) as error:  # ValueError: it does not say, as builtins
        raise TypeError(f"{name} must take ({said}), got {shown(mod)}: {error}") from None


def check_orders(**orders: object) -> None:
    """Arguments for torch's kernels that must be left alone."""
    for name, value in orders.items():
        if value is not None:
            raise ValueError(f"{name} must be None, as our kernels order their sums by themselves, got {shown(value)}")


def check_seq_lengths(lengths: object) -> tuple[int, int]:
    if not isinstance(lengths, (tuple, list)) or len(lengths) != 2:
        raise ValueError(f"seq_lengths must be two ints, rows and keys, got {shown(lengths)}")
    return check_length("seq_lengths[0]", lengths[0]), check_length("seq_lengths[1]", lengths[1])
