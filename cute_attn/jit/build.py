"""Building bundles, and proving them: each kernel once more from source, the hashes compared."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from ..directories import CacheUnusable
from ..errors import Unavailable
from ..spec.operation import Spec, parse_spec
from ..strict_json import loads
from . import cache
from . import entry as entries
from .compile import compile
from .entry import BrokenEntry, Entry, OtherFormat, link
from .fingerprint import key, key_of
from .obtain import KernelNotBuilt, cached_or_compiled
from .parallel import Outcome, in_processes

__all__ = ["build", "load_specs", "rebuild", "specs_of", "verify"]


def build(specs: Sequence[Spec], root: Path, workers: int, executor: Executor | None = None) -> Iterator[Outcome]:
    """Puts the kernel of each spec into the bundle at `root`, `workers` at a time; yields outcomes as they come.

    A kernel that the user's cache has is copied, another compiled (and kept in that cache too).
    """
    unique = list(dict.fromkeys(specs))
    return in_processes(functools.partial(_build, root), unique, workers, executor)


def verify(path: Path) -> str:
    """What is wrong with the files of an entry; "" if nothing is."""
    try:
        manifest = entries.read(path).manifest
    except OtherFormat as error:  # whole all the same
        manifest = error.manifest
    except (BrokenEntry, OSError) as error:
        return str(error)
    own = key_of(manifest["spec"], manifest["made_from"], manifest["format"])
    return "" if path.name == own else f"{path} is not named by its content, which is {own}"


def rebuild(directories: Sequence[Path], workers: int, executor: Executor | None = None) -> Iterator[Outcome]:
    """Compiles each entry's spec anew and compares: the result is "" or the difference.

    The exported object and the PTX are compared; a linked file depends on the machine's linker.
    """
    return in_processes(_rebuild, list(directories), workers, executor)


def load_specs(path: Path) -> list[Spec]:
    """The specs of a JSON list, as `record_specs` saves it. Raises ValueError or TypeError, naming the item."""
    try:
        items = loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(items, list):
        raise ValueError(f"{path} must hold a JSON list of specs, got {type(items).__name__}")
    return specs_of(items, str(path))


def specs_of(items: Sequence[Any], where: str) -> list[Spec]:
    """Specs of decoded JSON objects. Raises ValueError, naming the one that is none."""
    specs = []
    for number, item in enumerate(items):
        try:
            specs.append(parse_spec(json.dumps(item)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: spec {number} is not valid: {error}") from None
    return specs


def _build(root: Path, spec: Spec) -> Path:
    try:
        found = cache.read(spec, root)
    except BrokenEntry as error:
        raise OSError(f"{error}; remove it, then build again") from error
    if found is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CacheUnusable)  # every process would say it; the command does
            cache.commit(_made(spec), root)
    return cache.entry_path(spec, root)


def _made(spec: Spec) -> Entry:
    try:
        return cached_or_compiled(spec)
    except KernelNotBuilt as error:
        raise Unavailable(error.why) from error  # the rest of it says how to build


def _rebuild(path: Path) -> str:
    try:
        there = entries.read(path)
    except OtherFormat as error:
        return str(error)
    if key(there.spec) != path.name:
        return "made from other sources or tools than are here"
    here = link(compile(there.spec))
    differs = ["exported object"] * (here.manifest["sha256"]["kernel.o"] != there.manifest["sha256"]["kernel.o"])
    differs += ["PTX"] * (here.ptx != there.ptx)
    return f"built anew, the {' and the '.join(differs)} differ" if differs else ""
