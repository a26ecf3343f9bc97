"""How many registers a kernel that moves registers between its warps is launched with."""

from __future__ import annotations

from .ptx import Imm, Kernel

REGISTERS = 1 << 16  # of a multiprocessor
UNIT = 8  # registers of a thread are handed out in multiples
MOST = 256  # of a thread


def registers_at_entry(kernel: Kernel) -> int | None:
    """Registers of each thread, as ptxas takes them from the directives of the entry.

    None if `setmaxnreg` does not occur, or is ignored, as ptxas does where the directives leave the number open.
    """
    moved = [
        i.operands[0].bits for i in kernel.instructions if i.name == "setmaxnreg" and isinstance(i.operands[0], Imm)
    ]
    limits = kernel.limits
    if not moved:
        return None
    if "maxnreg" in limits:
        most = limits["maxnreg"]
    elif "threads" in limits and "minnctapersm" in limits:
        warps = -(-limits["threads"] // 32) * limits["minnctapersm"]
        most = REGISTERS // (128 * -(-warps // 4)) // UNIT * UNIT
    else:
        return None
    return UNIT * -(-min(most, max(moved), MOST) // UNIT)
