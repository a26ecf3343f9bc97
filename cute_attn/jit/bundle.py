"""Bundles: directories of compiled kernels that a deployment loads read-only, without the compiler."""

from __future__ import annotations

import functools
import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import cache
from . import entry as entries
from .compile import Spec
from .entry import BrokenEntry, Entry
from .fingerprint import FORMAT, made_from, parse_spec

__all__ = ["Bundle", "bundles", "find", "load_bundle"]

log = logging.getLogger("cute_attn.cache")
_loaded: list[Bundle] = []


@dataclass(frozen=True)
class _Place:
    directory: Path
    manifest: dict[str, Any]


@dataclass(frozen=True)
class Bundle:
    """A directory of compiled kernels. `specs` are those that it holds."""

    path: Path
    places: dict[Spec, list[_Place]]

    @property
    def specs(self) -> tuple[Spec, ...]:
        return tuple(self.places)

    def find(self, spec: Spec, any_compiler: bool) -> Entry | None:
        """The verified entry of a spec, or None; a broken one gives a warning and None.

        any_compiler: whether kernels count that another version of the compiler made.
        """
        for place in list(self.places.get(spec, [])):
            if _difference(place.manifest, spec.op, any_compiler):
                continue
            try:
                return entries.read(place.directory)
            except BrokenEntry as error:
                self.places[spec].remove(place)
                warnings.warn(f"a kernel of the bundle {self.path} is broken and not used: {error}", stacklevel=6)
        return None

    def unused_because(self, any_compiler: bool) -> str:
        """Why none of its kernels is used by this installation; "" if some are."""
        reasons = [_difference(p.manifest, s.op, any_compiler) for s, places in self.places.items() for p in places]
        return reasons[0] if all(reasons) else ""


def load_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Puts a bundle, made by `cute-attn build`, on the search path of this process, before those loaded earlier.

    Only manifests are read now; a kernel is verified when it is first asked for. Imports no compiler. A bundle of which
    no kernel fits this installation gives a warning with the reason.

    Raises FileNotFoundError or ValueError if there is no bundle at `path`, TypeError for what is no path.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be the path of a bundle, got {path!r} of type {type(path).__name__}")
    found = _read_bundle(Path(path))
    _loaded[:] = [found, *(b for b in _loaded if b.path != found.path)]
    return found


def bundles() -> list[Bundle]:
    """The search path: what `load_bundle` put there, then the directories that CUTE_ATTN_BUNDLES lists."""
    return [*_loaded, *_of_environment(os.environ.get("CUTE_ATTN_BUNDLES", ""))]


def find(spec: Spec, mode: str) -> Entry | None:
    """The first entry of a spec on the search path that this installation can use in a mode of the cache."""
    for bundle in bundles():
        found = bundle.find(spec, any_compiler=mode != "jit")
        if found is not None:
            log.info("found %s in the bundle %s", spec, bundle.path)
            return found
    return None


@functools.lru_cache(maxsize=8)
def _of_environment(value: str) -> tuple[Bundle, ...]:
    return tuple(_read_bundle(Path(part)) for part in value.split(os.pathsep) if part)


def _read_bundle(path: Path) -> Bundle:
    if not path.is_dir():
        raise FileNotFoundError(f"no bundle at {path}: it is not a directory")
    places: dict[Spec, list[_Place]] = {}
    for directory in cache.entry_directories(path):
        try:
            manifest = entries.read_manifest(directory)
            places.setdefault(parse_spec(manifest["spec"]), []).append(_Place(directory, manifest))
        except (BrokenEntry, ValueError, TypeError, KeyError) as error:
            warnings.warn(f"a kernel of the bundle {path} is broken and not used: {error}", stacklevel=4)
    if not places:
        raise ValueError(f"{path} holds no compiled kernels: a bundle is what `cute-attn build --output` wrote")
    found = Bundle(path, places)
    if reason := found.unused_because(any_compiler=cache.cache_mode() != "jit"):
        warnings.warn(f"no kernel of the bundle {path} is used: {reason}", stacklevel=4)
    return found


def _difference(manifest: dict[str, Any], op: str, any_compiler: bool) -> str:
    """Why an entry does not fit this installation; "" if it does. A package that is not installed is not compared."""
    here, there = made_from(op), manifest.get("made_from", {})
    if manifest.get("format") != FORMAT:
        return f"it has the format {manifest.get('format')}, this version of cute_attn reads {FORMAT}"
    for name in ("architecture", "sources"):
        if there.get(name) != here[name]:
            return f"other {name} of cute_attn's kernels: {there.get(name)} there, {here[name]} here"
    for name, version in here["packages"].items():
        if not any_compiler and there["packages"].get(name, version) != version:
            built = there["packages"][name]
            return (
                f"{name} {built} made it and {version} is here; CUTE_ATTN_CACHE_MODE=prefer-cached uses it all the same"
            )
    return ""
