"""Where installed packages lie, and which versions of distributions they are, without loading them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterable
from pathlib import Path

__all__ = ["folders_of", "versions_of"]


def folders_of(package: str) -> list[Path]:
    """The directories of a package that may be installed in several; none if it is not installed."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # something in its place cannot be loaded, or is no package
        return []
    return [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []


def versions_of(distributions: Iterable[str]) -> dict[str, str]:
    """By name, of those that are installed."""
    found = {}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
