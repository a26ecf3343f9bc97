"""Whether a value is a number as our errors mean it: to Python, True and False are ints too."""

from __future__ import annotations

from typing import TypeGuard

__all__ = ["is_int", "is_number"]


def is_int(value: object, *also: type) -> TypeGuard[int]:
    """An int, or of one of the further types, and no bool."""
    return isinstance(value, (int, *also)) and not isinstance(value, bool)


def is_number(value: object, *also: type) -> TypeGuard[float]:
    """An int or a float, or of one of the further types, and no bool."""
    return isinstance(value, (int, float, *also)) and not isinstance(value, bool)
