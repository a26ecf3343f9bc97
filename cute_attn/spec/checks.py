"""What every spec, form and tile checks of itself: that its fields are of their types."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..kinds import is_int

__all__ = ["check_fields"]


def check_fields(value: Any) -> None:
    """Raises TypeError for a field of a dataclass that is not of its type, an int, bool, str or dataclass, and
    ValueError for one that is none of the literals of its type, as True is none of 0 and 1."""
    kind: Any = type(value)
    for name, hint in _hints(kind):
        given, what = getattr(value, name), f"{kind.__name__}.{name}"
        if get_origin(hint) is Literal:
            allowed = get_args(hint)
            if not any(given == a and type(given) is type(a) for a in allowed):
                raise ValueError(f"{what} must be one of {', '.join(map(repr, allowed))}, got {given!r}")
        elif hint is int:
            if not is_int(given):
                raise TypeError(f"{what} must be an int, got {given!r}")
        elif hint in (bool, str) or dataclasses.is_dataclass(hint):
            expected: Any = hint
            if not isinstance(given, expected):
                raise TypeError(f"{what} must be a {expected.__name__}, got {given!r}")


@functools.cache
def _hints(kind: Any) -> tuple[tuple[str, Any], ...]:
    hints = get_type_hints(kind)
    return tuple((field.name, hints[field.name]) for field in dataclasses.fields(kind))
