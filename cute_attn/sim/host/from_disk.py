"""Kernels that a library loads from its own cache on disk: they carry no PTX, so they cannot be simulated."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ...errors import Unavailable
from .fresh import watching


class Module:
    """A loaded module whose functions say, when they are called within `simulated`, what to do instead."""

    def __init__(self, module: Any, path: str):
        self._module, self._path = module, path

    def __getitem__(self, name: str) -> Any:
        return self._guarded(self._module[name])

    def __getattr__(self, name: str) -> Any:
        return self._guarded(getattr(self._module, name))

    def _guarded(self, found: Any) -> Any:
        if not callable(found):
            return found

        def function(*args: Any, **kwargs: Any) -> Any:
            if watching.get() is not None:
                raise Unavailable(
                    f"a kernel came from {self._path}, which has no PTX to simulate: keep the library from its "
                    "cache on disk, such as by QUACK_CACHE_ENABLED=0 or FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED=0"
                )
            return found(*args, **kwargs)

        return function


def guarded(load_module: Callable) -> Callable:
    """The DSL's load_module, which gives a Module."""

    @functools.wraps(load_module)
    def load(path: Any, *args: Any, **kwargs: Any) -> Module:
        return Module(load_module(path, *args, **kwargs), str(path))

    return load
