"""Where transformers finds us, for as long as somebody wants it to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import AttentionInterface, AttentionMaskInterface

from ..registration import Registration
from .attention import attention_forward
from .masks import layer_mask

__all__ = ["NAME", "register"]

NAME = "cute_attn"
ENTRIES: tuple[tuple[dict[str, Any], Callable[..., Any]], ...] = (
    (AttentionInterface._global_mapping, attention_forward),
    (AttentionMaskInterface._global_mapping, layer_mask),
)

_alive: set[Registration] = set()


def register() -> Registration:
    """Makes `attn_implementation="cute_attn"` known to transformers, for all models, until the handle is removed.

    Raises RuntimeError where somebody else has taken the name.
    """
    for mapping, function in ENTRIES:
        if mapping.get(NAME, function) is not function:
            raise RuntimeError(f"transformers has another attention implementation of the name {NAME!r} already")
    for mapping, function in ENTRIES:
        mapping[NAME] = function
    return Registration(_alive, _forget)


def _forget() -> None:
    for mapping, function in ENTRIES:
        if mapping.get(NAME) is function:
            del mapping[NAME]
