"""The CUDA runtime of the DSL, which compiled kernels call: found among the libraries of that name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from ..errors import Unavailable

__all__ = ["runtime_library"]

NAME = "libcute_dsl_runtime.so"
_PROCESSORS = {0x3E: "x86-64", 0xB7: "AArch64"}


def runtime_library() -> Path:
    """The library for this processor. Its wheel also holds stubs, to link against, for others.

    Raises Unavailable, saying what was found, if there is none.
    """
    package = importlib.util.find_spec("nvidia_cutlass_dsl")
    roots = [Path(p) for p in (package.submodule_search_locations or [])] if package else []
    found = [path for root in roots for path in sorted(root.glob(f"**/{NAME}")) if "stubs" not in path.parts]
    here = _processor(Path(sys.executable))
    for path in found:
        if _processor(path) == here:
            return path
    others = ", ".join(sorted({_named(_processor(path)) for path in found}))
    here_only = f", there is one for {others}, and this is {_named(here)}" if others else ""
    raise Unavailable(f"running kernels needs {NAME}, which nvidia-cutlass-dsl brings{here_only}")


def _processor(path: Path) -> tuple[int, int, int]:
    """Word size, order of bytes and machine, from the header of an ELF file; zeros for another file."""
    with path.open("rb") as file:
        header = file.read(20)
    if len(header) < 20 or not header.startswith(b"\x7fELF"):
        return 0, 0, 0
    return header[4], header[5], int.from_bytes(header[18:20], "little" if header[5] == 1 else "big")


def _named(processor: tuple[int, int, int]) -> str:
    return _PROCESSORS.get(processor[2], f"ELF machine {processor[2]}" if any(processor) else "no ELF file")
