"""The CUDA runtime of the DSL, which compiled kernels call: found among the libraries of that name."""

from __future__ import annotations

import platform
from pathlib import Path

from ..errors import Unavailable
from ..packages import folders_of

__all__ = ["machine_of", "runtime_library"]

NAME = "libcute_dsl_runtime.so"
_MACHINES = {"x86_64": 0x3E, "aarch64": 0xB7}  # as the system and as ELF names them


def runtime_library() -> Path:
    """The library for this processor. Its wheel also holds stubs, to link against, for others.

    Raises Unavailable, saying what was found, if there is none.
    """
    found = [path for root in folders_of("nvidia_cutlass_dsl") for path in sorted(root.glob(f"**/{NAME}"))]
    found = [path for path in found if "stubs" not in path.parts]
    here = _MACHINES.get(platform.machine(), 0)
    for path in found:
        if _machine(path) == here:
            return path
    others = ", ".join(sorted({machine_of(path) for path in found}))
    but = f"; there is one for {others}, and this is {platform.machine()}" if others else ""
    raise Unavailable(f"running kernels needs {NAME}, which nvidia-cutlass-dsl brings{but}")


def machine_of(path: Path) -> str:
    """The name of the processor that an ELF file is for."""
    number = _machine(path)
    return next((name for name, known in _MACHINES.items() if known == number), f"ELF machine {number}")


def _machine(path: Path) -> int:
    """For which machine an ELF file is; 0 for another file."""
    with path.open("rb") as file:
        header = file.read(20)
    is_elf = len(header) == 20 and header.startswith(b"\x7fELF")
    return int.from_bytes(header[18:], "little" if header[5] == 1 else "big") if is_elf else 0
