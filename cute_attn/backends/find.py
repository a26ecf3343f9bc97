"""The backend that a text names, as it travels through custom ops: see `cute_attn.backend.BackendRequest`."""

from __future__ import annotations

import functools

from ..backend import BackendRequest
from .interface import Backend
from .kernels import Kernels
from .reference import Reference

__all__ = ["find"]


@functools.lru_cache
def find(text: str) -> Backend:
    """The backend with its options; one object for a text."""
    request = BackendRequest.parse(text)
    return Reference() if request.name == "reference" else Kernels(request.name, **request.options)  # type: ignore
