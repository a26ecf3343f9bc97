"""What a missing kernel was nearly found as: the same made otherwise, with another tile or other packed_heads."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any, cast

from ..directories import cache_directory
from ..spec.operation import Spec
from . import cache
from .bundle import bundles, difference
from .entry import BrokenEntry, OtherFormat, read_manifest, spec_of
from .fingerprint import made_from

__all__ = ["near_misses"]


def near_misses(spec: Spec, mode: str) -> list[str]:
    """A sentence for each bundle, and one for the cache, that has nearly this kernel."""
    found = []
    for bundle in bundles():
        kernels = [(other, place.manifest) for other, places in bundle.places.items() for place in places]
        found.append(_sentence(f"the bundle {bundle.path}", spec, kernels, mode))
    with contextlib.suppress(OSError):  # a cache that cannot be reached was warned of
        found.append(_sentence(f"the cache {cache_directory()}", spec, _cached(), mode))
    return [sentence for sentence in found if sentence]


def _sentence(where: str, spec: Spec, kernels: list[tuple[Spec, dict[str, Any]]], mode: str) -> str:
    for other, manifest in kernels:
        if other == spec:
            why = difference(manifest, spec, any_compiler=mode != "jit")
            return f"{where} has it, but {why or _other_packages(manifest, spec)}"
    said = []
    if tiles := [str(tile) for tile in _others("tile", spec, kernels)]:
        said.append(f"{'the tile' if len(tiles) == 1 else 'tiles'} {'; '.join(tiles)}")
    if numbers := sorted(_others("packed_heads", spec, kernels)):
        said.append(f"packed_heads {', '.join(map(str, numbers))}")
    return f"{where} has it with {', and with '.join(said)}" if said else ""


def _others(name: str, spec: Spec, kernels: list[tuple[Spec, dict[str, Any]]]) -> list[Any]:
    """The values of a field, where specs have it, of those that differ in nothing else."""
    if not hasattr(spec, name):
        return []
    wanted = {name: getattr(spec, name)}
    near = (other for other, _ in kernels if other.op == spec.op and _changed(other, wanted) == spec)
    return list(dict.fromkeys(getattr(other, name) for other in near))  # a kernel may be there more than once


def _changed(other: Spec, wanted: dict[str, Any]) -> Spec | None:
    try:
        return cast(Spec, replace(cast(Any, other), **wanted))
    except ValueError:  # other fields do not go with it
        return None


def _cached() -> list[tuple[Spec, dict[str, Any]]]:
    found = []
    for directory in cache.entry_directories(cache_directory()):
        with contextlib.suppress(BrokenEntry, OtherFormat, OSError, ValueError, TypeError, KeyError):
            manifest = read_manifest(directory)
            found.append((spec_of(manifest), manifest))
    return found


def _other_packages(manifest: dict[str, Any], spec: Spec) -> str:
    """Entries of the cache are for equal installations, and this one differs in what is not installed."""
    there, here = (m.get("packages", {}) for m in (manifest.get("made_from", {}), made_from(spec)))
    absent = sorted(set(there) - set(here))
    return f"it was made where {', '.join(absent)} is installed too" if absent else "it cannot be used"
