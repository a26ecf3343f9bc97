"""What a kernel costs, read off its machine code: registers, spills, and the issue slots of its loops."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..jit.entry import Entry
from . import sass

__all__ = ["KernelReport", "LoopReport", "inspect", "keep"]


@dataclass(frozen=True)
class LoopReport:
    """One pass of a loop that holds tensor-core products.

    tensor_cycles: cycles that its products keep the tensor cores of a multiprocessor busy, for one warpgroup.
    common: instructions that a warp issues in every pass, the uniform datapath's left out.
    conditional: those behind a branch, such as the repair of a softmax.
    by_pipe: the common ones by pipe.
    mufu_before_pv_wait: exponentials and other MUFU of the common path issued before the wait that retires all
        products: they overlap with the tensor cores.
    """

    tensor_cycles: int
    common: int
    conditional: int
    by_pipe: dict[str, int]
    mufu_before_pv_wait: int

    @property
    def slots_per_cycle(self) -> float:
        return self.common / self.tensor_cycles


@dataclass(frozen=True)
class KernelReport:
    """A kernel's static profile. `warnings` are the assembler's; registers are those at entry. Of the loops that over
    partial tiles, if there is one, comes before that over full ones, whichever the kernel walks first."""

    registers: int
    spill_bytes: int
    smem_bytes: int
    warnings: tuple[str, ...]
    loops: tuple[LoopReport, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def inspect(entry: Entry) -> KernelReport:
    """The profile of a compiled kernel. Raises Unavailable without a disassembler."""
    functions = sass.parse(sass.disassemble(entry.cubin))
    loops = [_loop_report(loop) for blocks in functions for loop in sass.loops(blocks)]
    return KernelReport(
        registers=entry.manifest["registers"],
        spill_bytes=entry.manifest["spill_bytes"],
        smem_bytes=entry.manifest["shared_memory_bytes"],
        warnings=tuple(entry.manifest["warnings"]),
        loops=tuple(sorted(loops, key=lambda loop: loop.slots_per_cycle, reverse=True)),
    )


def keep(entry: Entry, directory: Path) -> list[Path]:
    """Writes the kernel's `.ptx` and `.cubin` into a directory; returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^a-zA-Z0-9_]+", "-", str(entry.spec)).strip("-")
    paths = [directory / f"{stem}.ptx", directory / f"{stem}.cubin"]
    paths[0].write_text(entry.ptx)
    paths[1].write_bytes(entry.cubin)
    return paths


def _loop_report(loop: sass.NaturalLoop) -> LoopReport:
    pipes = Counter(i.pipe for i in loop.instructions())
    rare = Counter(i.pipe for i in loop.instructions(common=False))
    for counts in (pipes, rare):
        counts.pop("uniform", None)
    return LoopReport(
        tensor_cycles=sum(_cycles(i) for i in loop.instructions()),
        common=pipes.total(),
        conditional=rare.total(),
        by_pipe=dict(sorted(pipes.items())),
        mufu_before_pv_wait=_mufu_before_wait(loop),
    )


def _cycles(instruction: sass.Instruction) -> int:
    """A 64xNx16 product of 16-bit operands takes N / 2 cycles."""
    shape = re.search(r"HGMMA\.64x(\d+)x16", instruction.opcode)
    return int(shape[1]) // 2 if shape else 0


def _mufu_before_wait(loop: sass.NaturalLoop) -> int:
    total = since = 0
    for i in loop.instructions():
        if i.pipe == "hgmma":
            since = 0
        elif i.pipe == "mufu":
            since += 1
        elif i.opcode.startswith("WARPGROUP.DEPBAR") and re.search(r"gsb0, 0x0$", i.operands):
            total, since = total + since, 0
    return total
