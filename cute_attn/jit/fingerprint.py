"""What machine code depends on besides its spec, and the name that a compiled kernel gets from both."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from ..packages import versions_of
from ..renamed import original
from ..spec.operation import Spec, operation
from .compile import ARCHITECTURE

__all__ = ["FORMAT", "PACKAGES", "key", "key_of", "made_from"]

FORMAT = 3  # of the entries and of specs as text; another number, another key
# The distributions that machine code comes from; which of the last two is there depends on the CUDA of the machine.
PACKAGES = (
    "apache-tvm-ffi",
    "nvidia-cutlass-dsl",
    "nvidia-cutlass-dsl-libs-base",
    "nvidia-cutlass-dsl-libs-core",
    "nvidia-cutlass-dsl-libs-cu12",
    "nvidia-cutlass-dsl-libs-cu13",
)
# Sources that the machine code of every operation is made from; the options of the compiler are in jit/compile.py.
_SHARED_SOURCES = ("columns.py", "spec", "sm90", "jit/compile.py")


def key(spec: Spec) -> str:
    """The name of a spec's entry: equal in every process for equal specs, sources and tools."""
    return key_of(spec.canonical(), made_from(spec), FORMAT)


def key_of(spec: str, made_from: dict[str, Any], format: int) -> str:
    """The name of an entry with such a manifest."""
    text = json.dumps({"format": format, "spec": spec, "made_from": made_from}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def made_from(spec: Spec) -> dict[str, Any]:
    """The architecture, the hash of our sources, and the version of each of PACKAGES that is installed."""
    sources = _sources(operation(spec.op).sources(spec))
    return {"architecture": ARCHITECTURE, "sources": sources, "packages": _packages()}


@functools.cache
def _sources(of_kernel: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    root = Path(__file__).parent.parent
    for part in (*_SHARED_SOURCES, *of_kernel):
        files = sorted((root / part).glob("**/*.py")) if (root / part).is_dir() else [root / part]
        for file in files:
            name = file.relative_to(root) if file.is_relative_to(root) else file.name
            digest.update(f"{name}\n".encode())
            digest.update(original(file.read_bytes().decode()).encode())
    return digest.hexdigest()


@functools.cache
def _packages() -> dict[str, str]:
    return versions_of(PACKAGES)
