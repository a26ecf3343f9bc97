"""Where PyTorch finds us, for as long as somebody wants it to."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import attention

from ..registration import Registration
from .aten import OPERATORS

__all__ = ["NAME", "register"]

NAME = "cute_attn"
DISPATCH_KEY = "CUDA"

_alive: set[Registration] = set()


def register() -> Registration:
    """Makes the name "cute_attn" known to `torch.nn.attention.activate_flash_attention_impl`, which puts us behind
    `torch.nn.attention.varlen` and the flash backend of `scaled_dot_product_attention` on GPUs;
    `restore_flash_attention_impl`, or removing the handle, takes us out. This alone activates nothing.

    Raises RuntimeError where PyTorch has no such registry, or somebody else has taken the name.
    """
    if not hasattr(attention, "register_flash_attention_impl"):
        raise RuntimeError(f"PyTorch {torch.__version__} has no torch.nn.attention.register_flash_attention_impl")
    if _implementations().get(NAME, _activate) is not _activate:
        raise RuntimeError(f"PyTorch has another flash attention implementation of the name {NAME!r} already")
    attention.register_flash_attention_impl(NAME, register_fn=_activate)
    return Registration(_alive, _forget)


def _forget() -> None:
    if _implementations().get(NAME) is _activate:
        if attention.current_flash_attention_impl() == NAME:
            attention.restore_flash_attention_impl()
        del _implementations()[NAME]


class _Active:
    """Our operators in PyTorch's dispatcher, until removed."""

    def __init__(self) -> None:
        self.library: torch.library.Library | None = torch.library.Library("aten", "IMPL", DISPATCH_KEY)
        for name, function in OPERATORS.items():
            self.library.impl(name, function, DISPATCH_KEY)

    def remove(self) -> None:
        self.library = None  # what it registered goes with it


def _activate() -> _Active:
    return _Active()


def _implementations() -> dict[str, Any]:
    return attention._registry._FLASH_ATTENTION_IMPLS  # PyTorch has no public way to take a name out
