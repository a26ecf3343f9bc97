"""Attention says itself in which dtype it computes; autocast, where somebody has it on, would round its products."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

__all__ = ["without_autocast"]

Function = TypeVar("Function", bound=Callable[..., Any])


def without_autocast(function: Function) -> Function:
    """The function with autocast off, whatever it is where the function is called or its backward runs.

    The first tensor among its arguments tells the device.
    """

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        device = next(x for x in args if isinstance(x, torch.Tensor)).device.type
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return function(*args, **options)
        with torch.autocast(device, enabled=False):
            return function(*args, **options)

    return cast(Function, call)
