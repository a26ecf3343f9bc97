"""Bundles: directories of compiled kernels that a deployment loads read-only, without the compiler."""

from __future__ import annotations

import functools
import logging
import os
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..directories import expanded
from ..errors import in_words
from ..spec.operation import Spec, operation
from . import cache
from . import entry as entries
from .entry import BrokenEntry, Entry, OtherFormat, spec_of
from .fingerprint import made_from

__all__ = ["Bundle", "bundles", "difference", "find", "load_bundle"]

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

    def __repr__(self) -> str:
        return f"Bundle({str(self.path)!r}, {len(self.places)} kernels)"

    @property
    def specs(self) -> tuple[Spec, ...]:
        return tuple(self.places)

    def find(self, spec: Spec, any_compiler: bool) -> Entry | None:
        """The verified entry of a spec, or None; a broken one gives a warning and None.

        any_compiler: whether kernels count that another version of the compiler made.
        """
        for place in list(self.places.get(spec, [])):
            if difference(place.manifest, spec, any_compiler):
                continue
            try:
                return entries.read(place.directory)
            except (BrokenEntry, OSError) as error:
                self.places[spec].remove(place)
                warnings.warn(f"a kernel of the bundle {self.path} is broken and not used: {error}", stacklevel=6)
        return None

    def unused_because(self, any_compiler: bool) -> str:
        """Why this installation uses none of its kernels, or none of an operation; "" if it uses some of each."""
        reasons: dict[str, list[str]] = {}
        for spec, places in self.places.items():
            reasons.setdefault(spec.op, []).extend(difference(p.manifest, spec, any_compiler) for p in places)
        unused = {op: why[0] for op, why in reasons.items() if all(why)}
        if not unused:
            return ""
        kind = "" if len(unused) == len(reasons) else f"{operation(next(iter(unused))).title} "
        return f"no {kind}kernel of the bundle {self.path} is used: {next(iter(unused.values()))}"


def load_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Puts a bundle, made by `cute-attn build`, on the search path of this process, before those loaded earlier.

    Only manifests are read now; a kernel is verified when it is first asked for. Imports no compiler. A bundle of which
    no forward kernel, or no backward kernel, fits this installation gives a warning with the reason. `~` in `path` is
    the home directory.

    Raises FileNotFoundError or ValueError if there is no bundle at `path`, PermissionError if it may not be read,
    TypeError for what is no path.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be the path of a bundle, got {path!r} of type {type(path).__name__}")
    found = _read_bundle(expanded(path))
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
    return tuple(_read_bundle(expanded(part)) for part in value.split(os.pathsep) if part)


def _read_bundle(path: Path) -> Bundle:
    places: dict[Spec, list[_Place]] = {}
    others = []
    for directory in _entries(path):
        try:
            manifest = entries.read_manifest(directory)
            places.setdefault(spec_of(manifest), []).append(_Place(directory, manifest))
        except OtherFormat as error:
            others.append(str(error))
        except (BrokenEntry, OSError, ValueError, TypeError, KeyError) as error:
            warnings.warn(f"a kernel of the bundle {path} is broken and not used: {error}", stacklevel=4)
    if others:
        number = f"{len(others)} kernel{'s' * (len(others) > 1)}"
        warnings.warn(f"of the bundle {path} {number} cannot be used: {others[0]}", stacklevel=4)
    if not places and not others:
        raise ValueError(f"{path} holds no compiled kernels: a bundle is what `cute-attn build --output` wrote")
    found = Bundle(path, places)
    if reason := found.unused_because(any_compiler=cache.cache_mode() != "jit"):
        warnings.warn(reason, stacklevel=4)
    return found


def _entries(path: Path) -> list[Path]:
    try:
        if stat.S_ISDIR(path.stat().st_mode):
            return cache.entry_directories(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise OSError(error.errno, f"the bundle {path} cannot be read: {in_words(error)}") from error
    raise FileNotFoundError(f"no bundle at {path}: it is not a directory")


def difference(manifest: dict[str, Any], spec: Spec, any_compiler: bool) -> str:
    """Why an entry does not fit this installation; "" if it does. A package that is not installed is not compared."""
    here, there = made_from(spec), manifest.get("made_from", {})
    for name in ("architecture", "sources"):
        if there.get(name) != here[name]:
            return f"other {name} of cute_attn's kernels: {str(there.get(name))[:12]} there, {here[name][:12]} here"
    for name, version in here["packages"].items():
        if not any_compiler and there["packages"].get(name, version) != version:
            built = there["packages"][name]
            return (
                f"{name} {built} made it and {version} is here; CUTE_ATTN_CACHE_MODE=prefer-cached uses it all the same"
            )
    return ""
