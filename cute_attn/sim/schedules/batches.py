"""Cuts a launch into batches of clusters that run by themselves, each in an order of events of its own.

What a batch does follows from its number and from the memory that it reads: not from the process that runs it, nor from
what ran there before. So batches may be spread over processes, and a seed that fails on one machine fails on all.
"""

from __future__ import annotations

from ..code.program import Program
from ..code.ptx import Instruction
from ..launch import Launch, Mode

Batch = list[tuple[int, int, int]]  # first CTAs of clusters, in the order of their start
RESIDENT: dict[Mode, int] = {"eager": 1, "late": 2, "random": 3, "starve": 2}  # clusters interleaved in any case


def cut(launch: Launch, program: Program, mode: Mode) -> list[Batch]:
    """The batches of a launch in the order of their run; a single one if its CTAs may wait for each other or add up.

    A late schedule runs the last clusters first: a CTA that reads or overwrites what another left, however far away,
    finds it the other way round than in an eager one.
    """
    (gx, gy, gz), (cx, cy, cz) = launch.grid, launch.cluster
    order = [(x, y, z) for z in range(0, gz, cz) for y in range(0, gy, cy) for x in range(0, gx, cx)]
    if not _independent(program):
        return [order]
    size = RESIDENT[mode]
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    return batches[::-1] if mode in ("late", "starve") else batches


def _independent(program: Program) -> bool:
    """Whether the kernel has no way to wait for another CTA, or to add to what another adds to."""
    return not any(_communicates(i) for i in program.kernel.instructions)


def _communicates(i: Instruction) -> bool:
    if any(m.startswith("shared") for m in i.modifiers) and i.name != "cp":
        return False
    polls = i.name == "ld" and not {"acquire", "relaxed", "volatile", "mmio"}.isdisjoint(i.modifiers)
    return i.name in ("atom", "red") or polls or (i.name == "cp" and "reduce" in i.modifiers)
