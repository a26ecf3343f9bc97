"""Builds and loads the C stub that replaces the CUDA runtime under compiled host code.

The stub is compiled once with the system's C compiler into the user's cache directory, under a name that holds the hash
of its source, and found there ever after. It is loaded from memory, whatever that directory allows.
"""

import atexit
import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

from ...directories import cache_directory, warn_unusable
from ...errors import Unavailable
from ...loadable import loadable

# What host code compiled by the DSL needs of its runtime.
SYMBOLS = (
    "_cudaLaunchKernelEx",
    "_cudaLibraryLoadData",
    "_cudaLibraryGetKernel",
    "_cudaGetDevice",
    "_cudaSetDevice",
    "_cudaFuncSetAttribute",
    "_cudaKernelSetAttributeForDevice",
    "_cuKernelGetAttribute",
    "_cudaDeviceGetAttribute",
    "cuda_dialect_get_error_name",
    "cuda_dialect_init_library_once",
    "cuda_dialect_unload_library_once",
    "CuteDSLRT_TVMFFISetRaisedCudaError",
    "CuteDSLRT_TVMFFISetRaisedCudaLaunchError",
)
SOURCE = Path(__file__).with_name("stub.c")
FLAGS = ("-O1", "-shared", "-fPIC", "-Wl,-Bsymbolic")  # -Bsymbolic: the stub's own calls stay in the stub
LaunchCallback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
)


class LaunchConfig(ctypes.Structure):
    """cudaLaunchConfig_t, as the compiled host code lays it out."""

    _fields_ = (
        ("grid", ctypes.c_int32 * 3),
        ("block", ctypes.c_int32 * 3),
        ("smem_bytes", ctypes.c_int64),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("n_attributes", ctypes.c_int32),
    )


class LaunchAttribute(ctypes.Structure):
    """cudaLaunchAttribute: an id, and 64 bytes whose meaning depends on it."""

    _fields_ = (("id", ctypes.c_int32), ("padding", ctypes.c_int32), ("value", ctypes.c_int32 * 16))


def code() -> bytes:
    """The stub as a shared object: from the cache, else compiled, and kept there; a warning says if it cannot be.

    Raises:
        Unavailable: there is no C compiler, or it refused the source; the message says what to do.
    """
    try:
        return _kept_at().read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        built = _compiled()
    except OSError as error:
        warn_unusable(error)
        return _compiled()
    try:
        _keep(built, _kept_at())
    except OSError as error:
        warn_unusable(error)
    return built


def _kept_at() -> Path:
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:16]
    return cache_directory() / "sim" / f"stub-{key}.so"


def _keep(built: bytes, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        whole = Path(scratch) / target.name
        whole.write_bytes(built)
        os.replace(whole, target)  # atomic: whoever comes second replaces a file by its equal


def _compiled() -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        built = Path(scratch) / "stub.so"
        _compile(built)
        return built.read_bytes()


def _compile(built: Path) -> None:
    compiler = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise Unavailable(
            "cute_attn.sim needs a C compiler once, to build its launch stub, and found none of $CC, cc, gcc, clang: "
            "install one (apt install gcc, dnf install gcc, apk add gcc musl-dev) or name it in the CC variable"
        )
    command = [compiler, *FLAGS, "-o", str(built), str(SOURCE)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise Unavailable(f"cute_attn.sim could not build its launch stub with {' '.join(command)}:\n{result.stderr}")


_open = contextlib.ExitStack()
_opening = threading.Lock()  # a second copy of the stub would have launches of its own
atexit.register(_open.close)


def path() -> str:
    """Where this process can load the stub as long as it lives; always the same place. Raises as `code` does."""
    with _opening:
        return _path()


@functools.cache
def _path() -> str:
    return _open.enter_context(loadable(code()))


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded stub. Its symbols are global, so that retargeted shared objects find them."""
    loaded = ctypes.CDLL(path(), mode=ctypes.RTLD_GLOBAL)
    loaded.cute_attn_stub_on_launch.argtypes = [LaunchCallback]
    loaded.cute_attn_stub_on_launch.restype = None
    return loaded


def retargeted(code: bytes) -> bytes:
    """An object file or shared object whose undefined runtime symbols are the stub's ("_cadaGetDevice").

    The DSL loads its own runtime with global symbols, which would win over a stub of the same names. The stub's names
    have the same length, so that no offset in the file moves.
    """
    for symbol in SYMBOLS:
        code = code.replace(symbol.encode() + b"\0", renamed(symbol).encode() + b"\0")
    return code


def renamed(symbol: str) -> str:
    """The stub's name for a symbol of the runtime."""
    return symbol.replace("Cu", "Ca", 1) if symbol.startswith("Cu") else symbol.replace("cu", "ca", 1)
