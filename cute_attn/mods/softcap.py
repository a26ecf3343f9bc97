"""The score_mods that are the softcap which kernels have built in, c * tanh(score / c), however they write it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from .trace import Traced, trace

__all__ = ["softcap_of"]

# Ways to write it, and the two numbers of each as (what tanh is multiplied with, what the score is divided by).
_FORMS: tuple[tuple[Callable[..., Any], Callable[[Any, Any], tuple[float, float]]], ...] = (
    (lambda score, *_: 3.0 * torch.tanh(score / 2.0), lambda below, above: (above, below)),
    (lambda score, *_: 3.0 * torch.tanh(score * 2.0), lambda factor, above: (above, 1.0 / factor)),
)
_NUMBERS = {trace(form, "score_mod").text: numbers for form, numbers in _FORMS}
_OF_ONE = trace(lambda score, *_: torch.tanh(score), "score_mod").text


def softcap_of(traced: Traced) -> float | None:
    """The cap c > 0, or None where the function is another."""
    if traced.text == _OF_ONE:
        return 1.0
    if traced.text not in _NUMBERS:
        return None
    first, second = traced.scalars
    above, below = _NUMBERS[traced.text](first, second)
    # 1 / c and back may be off by a rounding
    return abs(above) if math.isclose(above, below, rel_tol=4e-16, abs_tol=0.0) else None
