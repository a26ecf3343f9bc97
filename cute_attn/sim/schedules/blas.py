"""Keeps NumPy's matrix products on one thread: small products are faster so, and rounded alike on every machine."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np


@lru_cache(maxsize=1)
def _openblas() -> tuple[Any, Any] | None:
    """Getter and setter of the thread count of the OpenBLAS that NumPy's wheel brings; None with another library."""
    folder = Path(np.__file__).parent.parent / "numpy.libs"
    for path in sorted(folder.glob("*openblas*")):
        library = ctypes.CDLL(str(path))
        for prefix, suffix in (("scipy_openblas_", "64_"), ("openblas_", "64_"), ("openblas_", "")):
            getter = getattr(library, f"{prefix}get_num_threads{suffix}", None)
            setter = getattr(library, f"{prefix}set_num_threads{suffix}", None)
            if getter is not None and setter is not None:
                return getter, setter
    return None


@contextmanager
def one_thread() -> Iterator[None]:
    """Matrix products on one thread while this lasts."""
    control = _openblas()
    if control is None:
        yield
        return
    getter, setter = control
    before = getter()
    setter(1)
    try:
        yield
    finally:
        setter(before)
