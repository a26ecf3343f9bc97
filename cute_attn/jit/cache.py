"""Compiled kernels on disk: found by what they depend on, committed whole, verified before they are loaded.

An entry is a directory of three files: the host code as a shared object (its CUDA runtime symbols are undefined: the
loader supplies the runtime, or the simulator its stub), the PTX, compressed, and a manifest in JSON with their hashes.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import subprocess
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from .compile import ARCHITECTURE, Compiled, Spec

__all__ = [
    "BrokenEntry",
    "Entry",
    "cache_directory",
    "commit",
    "entry_path",
    "fingerprint",
    "key",
    "read",
    "set_aside",
    "write_shared_object",
]

SYMBOL = "kernel"  # of the host function in every shared object
FORMAT = 1  # of the entries; another number, another key
_SHARED_OBJECT, _PTX, _MANIFEST = "kernel.so", "kernel.ptx.z", "manifest.json"
# Sources that the machine code of an operation is made from.
_SHARED_SOURCES = ("sm90", "jit/spec.py", "jit/compile.py")
_SOURCES = {"fwd": ("fwd",), "bwd": ("bwd", "jit/backward_spec.py")}

log = logging.getLogger("cute_attn.cache")


class BrokenEntry(Exception):
    """An entry that is not what its manifest says; it is compiled anew."""


@dataclass(frozen=True)
class Entry:
    """A verified entry."""

    spec: Spec
    shared_object: Path
    ptx: str
    manifest: dict[str, object]


def cache_directory() -> Path:
    """Where compiled kernels are kept: `CUTE_ATTN_CACHE_DIR`, or the user's cache directory."""
    return Path(os.environ.get("CUTE_ATTN_CACHE_DIR") or platformdirs.user_cache_dir("cute_attn"))


def key(spec: Spec) -> str:
    """The name of a spec's entry: equal in every process for equal specs, sources and tools."""
    text = json.dumps({"format": FORMAT, "spec": spec.canonical(), "made_from": fingerprint(spec.op)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def fingerprint(op: str) -> str:
    """Hash of what else an operation's code depends on: our sources, the DSL, the architecture, how it is compiled."""
    digest = hashlib.sha256(ARCHITECTURE.encode())
    for package in ("nvidia-cutlass-dsl", "apache-tvm-ffi"):
        digest.update(f"{package}={importlib.metadata.version(package)}\n".encode())
    root = Path(__file__).parent.parent
    for part in (*_SHARED_SOURCES, *_SOURCES[op]):
        files = sorted((root / part).glob("**/*.py")) if (root / part).is_dir() else [root / part]
        for file in files:
            digest.update(f"{file.relative_to(root)}\n".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def entry_path(spec: Spec) -> Path:
    """Where a spec's entry is, or would be."""
    name = key(spec)
    return cache_directory() / "kernels" / name[:2] / name


def read(spec: Spec) -> Entry | None:
    """The entry of a spec, or None. Raises BrokenEntry if a file is missing, altered or not of this spec."""
    path = entry_path(spec)
    if not path.is_dir():
        return None
    try:
        manifest = _unsealed((path / _MANIFEST).read_text())
        code, packed = ((path / name).read_bytes() for name in (_SHARED_OBJECT, _PTX))
        if manifest["spec"] != spec.canonical():
            raise BrokenEntry(f"{path} holds another spec: {manifest['spec']}")
        for name, content in ((_SHARED_OBJECT, code), (_PTX, packed)):
            if hashlib.sha256(content).hexdigest() != manifest["sha256"][name]:
                raise BrokenEntry(f"{path / name} is not the file that was written there: its hash differs")
        return Entry(spec, path / _SHARED_OBJECT, zlib.decompress(packed).decode(), manifest)
    except (OSError, ValueError, KeyError, TypeError, zlib.error) as error:
        raise BrokenEntry(f"{path} cannot be read: {error}") from error


def commit(compiled: Compiled) -> Entry:
    """Writes an entry, all of it or nothing, and returns it verified. Whoever comes second keeps the first one's.

    Raises OSError where the directory cannot be written, RuntimeError where there is no linker.
    """
    path = entry_path(compiled.spec)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=".new-"))
    try:
        _write(compiled, scratch)
        try:
            os.rename(scratch, path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    entry = read(compiled.spec)
    if entry is None:
        raise OSError(f"{path} vanished while it was written")
    log.info("wrote %s", path)
    return entry


def set_aside(spec: Spec) -> None:
    """Moves a broken entry out of the way, so that it can be looked at and is not found again."""
    path = entry_path(spec)
    target = Path(tempfile.mkdtemp(dir=path.parent, prefix=".broken-"))
    os.rename(path, target / path.name)


def write_shared_object(compiled: Compiled, directory: Path) -> Path:
    """Exports and links the host code of a kernel, `kernel.o` and `kernel.so` in a directory; returns the latter."""
    built, target = directory / "kernel.o", directory / _SHARED_OBJECT
    compiled.function.export_to_c(object_file_path=str(built), function_name=SYMBOL)
    compiler = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise RuntimeError("a kernel has to be linked once, and none of $CC, cc, gcc, clang was found")
    command = [compiler, "-shared", "-o", str(target), str(built)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")
    return target


def _write(compiled: Compiled, directory: Path) -> None:
    write_shared_object(compiled, directory)
    built = directory / "kernel.o"
    exported = hashlib.sha256(built.read_bytes()).hexdigest()
    built.unlink()
    (directory / _PTX).write_bytes(zlib.compress(compiled.ptx.encode(), 6))
    manifest = {
        "format": FORMAT,
        "spec": compiled.spec.canonical(),
        "made_from": fingerprint(compiled.spec.op),
        "symbol": SYMBOL,
        "registers": compiled.registers,
        "spill_bytes": compiled.spill_bytes,
        "sha256": {
            "kernel.o": exported,
            **{n: hashlib.sha256((directory / n).read_bytes()).hexdigest() for n in (_SHARED_OBJECT, _PTX)},
        },
    }
    (directory / _MANIFEST).write_text(_sealed(manifest))


def _sealed(manifest: dict[str, object]) -> str:
    """A manifest as text that holds its own hash."""
    seal = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return json.dumps({**manifest, "seal": seal}, indent=1, sort_keys=True)


def _unsealed(text: str) -> dict[str, Any]:
    """The inverse of `_sealed`. Raises ValueError if the text was altered."""
    manifest = json.loads(text)
    del manifest["seal"]
    if _sealed(manifest) != text:
        raise ValueError("the manifest is not the file that was written there: its hash differs")
    return manifest
