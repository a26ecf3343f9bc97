"""One compiled kernel as files: written whole, and verified before it is used.

An entry is a directory of three files: the host code as a shared object (its CUDA runtime symbols are undefined: the
loader supplies the runtime, or the simulator its stub), the PTX, compressed, and a manifest in JSON with their hashes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import struct
import subprocess
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import Unavailable
from ..spec.operation import Spec, operation, parse_spec
from .compile import Compiled
from .fingerprint import FORMAT, made_from

__all__ = [
    "MANIFEST",
    "SYMBOL",
    "BrokenEntry",
    "Entry",
    "OtherFormat",
    "embedded_cubin",
    "link",
    "linker",
    "read",
    "read_manifest",
    "spec_of",
    "write",
]

SYMBOL = "kernel"  # of the host function in every shared object
MANIFEST = "manifest.json"
_EXPORTED, _SHARED_OBJECT, _PTX = "kernel.o", "kernel.so", "kernel.ptx.z"
# What tells of an entry that it lacks a file; any other error of a file tells of a place that cannot be read.
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class BrokenEntry(Exception):
    """An entry that is not what its manifest says; it is compiled anew."""


class OtherFormat(Exception):
    """An entry that another version of cute_attn wrote, whose spec this one need not understand."""

    def __init__(self, manifest: dict[str, Any]) -> None:
        super().__init__(f"it has the format {manifest['format']}, this version of cute_attn reads {FORMAT}")
        self.manifest = manifest


@dataclass(frozen=True)
class Entry:
    """A compiled kernel, verified if it was read. `directory` is None as long as it lives in memory only."""

    spec: Spec
    shared_object: bytes
    packed_ptx: bytes
    manifest: dict[str, Any]
    directory: Path | None = None

    @property
    def ptx(self) -> str:
        return zlib.decompress(self.packed_ptx).decode()

    @property
    def cubin(self) -> bytes:
        """The code for the GPU, inside that of the host."""
        return embedded_cubin(self.shared_object)


def link(compiled: Compiled) -> Entry:
    """Exports and links the host code of a compiled kernel. Raises Unavailable where no linker is, or works."""
    with tempfile.TemporaryDirectory() as scratch:
        built, target = Path(scratch) / _EXPORTED, Path(scratch) / _SHARED_OBJECT
        compiled.function.export_to_c(object_file_path=str(built), function_name=SYMBOL)
        _link(built, target)
        exported, code = built.read_bytes(), target.read_bytes()
    packed = zlib.compress(compiled.ptx.encode(), 6)
    manifest = {
        "format": FORMAT,
        "spec": compiled.spec.canonical(),
        "made_from": made_from(compiled.spec),
        "symbol": SYMBOL,
        "registers": compiled.registers,
        "shared_memory_bytes": operation(compiled.spec.op).shared_memory_bytes(compiled.spec),
        "spill_bytes": compiled.spill_bytes,
        "warnings": list(compiled.warnings),
        "sha256": {
            name: hashlib.sha256(content).hexdigest()
            for name, content in ((_EXPORTED, exported), (_SHARED_OBJECT, code), (_PTX, packed))
        },
    }
    return Entry(compiled.spec, code, packed, manifest)


def read(path: Path) -> Entry:
    """The entry in a directory. Raises BrokenEntry if a file is missing or altered, OSError if it may not be read, and
    OtherFormat for one that is whole."""
    manifest = read_manifest(path)
    try:
        code, packed = ((path / name).read_bytes() for name in (_SHARED_OBJECT, _PTX))
        for name, content in ((_SHARED_OBJECT, code), (_PTX, packed)):
            if hashlib.sha256(content).hexdigest() != manifest["sha256"][name]:
                raise BrokenEntry(f"{path / name} is not the file that was written there: its hash differs")
        return Entry(spec_of(manifest), code, packed, manifest, path)
    except (*_ABSENT, ValueError, KeyError, TypeError) as error:
        raise BrokenEntry(f"{path} cannot be read: {error}") from error


def spec_of(manifest: dict[str, Any]) -> Spec:
    """Raises OtherFormat; KeyError, ValueError or TypeError for a manifest without a spec."""
    if manifest["format"] != FORMAT:
        raise OtherFormat(manifest)
    return parse_spec(manifest["spec"])


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the entry in a directory; raises as `read` does."""
    try:
        return _unsealed((path / MANIFEST).read_text())
    except (*_ABSENT, ValueError) as error:
        raise BrokenEntry(f"{path / MANIFEST} cannot be read: {error}") from error


def write(entry: Entry, path: Path) -> None:
    """Writes an entry as a directory, all of it or nothing; a directory that is there already stays.

    Raises OSError where it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=".new-"))
    try:
        (scratch / _SHARED_OBJECT).write_bytes(entry.shared_object)
        (scratch / _PTX).write_bytes(entry.packed_ptx)
        (scratch / MANIFEST).write_text(_sealed(entry.manifest))
        scratch.chmod(0o755)
        try:
            os.rename(scratch, path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def linker() -> str:
    """The C compiler that links. Raises Unavailable where there is none."""
    compiler = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise Unavailable("a kernel has to be linked once, and none of $CC, cc, gcc, clang was found")
    return compiler


def _link(built: Path, target: Path) -> None:
    command = [linker(), "-shared", "-o", str(target), str(built)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode and os.strerror(errno.ENOSPC) in result.stderr:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} to link a kernel", str(target))
    if result.returncode:
        raise Unavailable(f"{' '.join(command)} failed:\n{result.stderr}")


def embedded_cubin(shared_object: bytes) -> bytes:
    """The GPU's code inside the host's. Raises ValueError where there is none."""
    start = shared_object.find(b"\x7fELF", 1)
    if start < 0 or struct.unpack_from("<H", shared_object, start + 18)[0] != 190:  # EM_CUDA
        raise ValueError("the shared object holds no code for a GPU")
    programs, sections = struct.unpack_from("<QQ", shared_object, start + 32)
    program_size, program_count, section_size, section_count = struct.unpack_from("<4H", shared_object, start + 54)
    size = max(programs + program_size * program_count, sections + section_size * section_count)
    return shared_object[start : start + size]


def _sealed(manifest: dict[str, Any]) -> str:
    """A manifest as text that holds its own hash."""
    seal = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return json.dumps({**manifest, "seal": seal}, indent=1, sort_keys=True)


def _unsealed(text: str) -> dict[str, Any]:
    """The inverse of `_sealed`. Raises ValueError if the text was altered."""
    manifest = json.loads(text)
    if not isinstance(manifest, dict):
        raise ValueError("the manifest is not a JSON object")
    if manifest.pop("seal", None) is None:
        raise ValueError("the manifest holds no hash of itself")
    if _sealed(manifest) != text:
        raise ValueError("the manifest is not the file that was written there: its hash differs")
    return manifest
