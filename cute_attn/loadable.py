"""Shared objects loaded from memory: it takes no directory that can be written or executed from, and leaves no file."""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["load_module", "loadable"]

_numbers = itertools.count()


def load_module(code: bytes) -> Any:
    """The functions of a shared object, as tvm_ffi has them."""
    import tvm_ffi

    with loadable(code) as path:
        return tvm_ffi.get_global_func("ffi.Module.load_from_file.so")(path, "so")


@contextlib.contextmanager
def loadable(code: bytes) -> Iterator[str]:
    """A path at which a shared object can be loaded: a file in memory, else a temporary one, gone afterwards.

    Raises OSError where this system lets neither be executed.
    """
    with contextlib.ExitStack() as stack:
        try:
            path = stack.enter_context(_in_memory(code))
        except (AttributeError, OSError):  # another system than Linux, or one that forbids it
            path = stack.enter_context(_in_a_file(code))
        yield path


@contextlib.contextmanager
def _in_memory(code: bytes) -> Iterator[str]:
    descriptor = os.memfd_create("cute_attn")
    with os.fdopen(descriptor, "wb") as file:
        file.write(code)
        file.flush()
        _check_executable(descriptor)
        # The loader takes equal paths for the same library, and numbers of files come again: no path may.
        unique = "".join("./" if bit == "1" else "/" for bit in f"{next(_numbers):b}")
        path = f"/proc/self/fd/{unique}{descriptor}"
        os.stat(path)
        yield path


@contextlib.contextmanager
def _in_a_file(code: bytes) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="cute_attn-") as scratch:
        path = Path(scratch) / "code.so"
        path.write_bytes(code)
        with path.open("rb") as file:
            try:
                _check_executable(file.fileno())
            except PermissionError:
                what = "files there cannot be executed, and none in memory; TMPDIR names another place"
                raise OSError(errno.EACCES, what, tempfile.gettempdir()) from None
        yield str(path)


def _check_executable(descriptor: int) -> None:
    """Raises OSError if the system would refuse to load code from a file that is open."""
    if os.name == "posix":
        mmap.mmap(descriptor, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC).close()
