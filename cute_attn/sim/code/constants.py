"""Which moves put a constant into a register: ptxas can repeat those wherever it needs them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .ptx import Imm, Reg
from .template import Template, registers_written


def constant_registers(templates: Sequence[Template]) -> set[Reg]:
    """Registers that hold constants wherever they are written."""
    written = {r for t in templates if t.multiply for r in t.multiply.accumulator}
    found: set[Reg] = set()
    while True:
        other = {r for t in templates if not moves_constant(t, found) for r in registers_written(t)} | written
        more = {r for t in templates for r in registers_written(t)} - other
        if more == found:
            return found
        found = more


def moves_constant(t: Template, constants: Collection[Reg]) -> bool:
    """Whether an instruction moves a constant, or what is in one of these registers, in all lanes that run."""
    if t.instruction.name != "mov" or t.instruction.guard or len(t.sources) != 1:
        return False
    operand = t.sources[0].operand
    return isinstance(operand, Imm) or operand in constants
