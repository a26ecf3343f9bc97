"""Where installed packages lie, without loading them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

__all__ = ["folders_of"]


def folders_of(package: str) -> list[Path]:
    """The directories of a package that may be installed in several; none if it is not installed."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # something in its place cannot be loaded, or is no package
        return []
    return [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
