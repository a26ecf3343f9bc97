"""How the library's custom ops are made known to PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .renamed import NAMESPACE

__all__ = ["register"]

_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")


def register(
    name: str,
    schema: str,
    function: Callable[..., Any],
    fake: Callable[..., Any],
    differentiable: Callable[..., Any] | None = None,
) -> None:
    """The op `cute_attn::name`. fake: what it returns, without values. differentiable: what it is above autograd.

    torch.library.custom_op does the same with less text, but its autograd does work on the host at every call that
    grows with the square of the number of arguments.
    """
    _LIBRARY.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    if differentiable is not None:
        _LIBRARY.impl(name, differentiable, "Autograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
