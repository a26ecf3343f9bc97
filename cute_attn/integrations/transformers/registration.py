"""Where transformers finds us, for as long as somebody wants it to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import AttentionInterface, AttentionMaskInterface

from .attention import attention_forward
from .masks import layer_mask

__all__ = ["NAME", "Registration", "register"]

NAME = "cute_attn"
ENTRIES: tuple[tuple[dict[str, Any], Callable[..., Any]], ...] = (
    (AttentionInterface._global_mapping, attention_forward),
    (AttentionMaskInterface._global_mapping, layer_mask),
)

_alive: set[Registration] = set()


class Registration:
    """What `register` returns. `remove()` takes the name out of transformers again; as a context manager it does so at
    the end of the block. A model that was made under the name cannot run without it."""

    def remove(self) -> None:
        """Undoes this registration. The name stays while another one lives; a second call does nothing."""
        if self in _alive:
            _alive.remove(self)
            if not _alive:
                for mapping, function in ENTRIES:
                    if mapping.get(NAME) is function:
                        del mapping[NAME]

    def __enter__(self) -> Registration:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def register() -> Registration:
    """Makes `attn_implementation="cute_attn"` known to transformers, for all models, until the handle is removed.

    Raises RuntimeError where somebody else has taken the name.
    """
    for mapping, function in ENTRIES:
        if mapping.get(NAME, function) is not function:
            raise RuntimeError(f"transformers has another attention implementation of the name {NAME!r} already")
    for mapping, function in ENTRIES:
        mapping[NAME] = function
    registration = Registration()
    _alive.add(registration)
    return registration
