"""How finely a kernel touches memory: what is watched for races need be no finer."""

from __future__ import annotations

from collections.abc import Sequence

from ..formats import WIDTH
from .ptx import Imm, Instruction

COARSEST = 16  # bytes; copies touch no part of that but at the edge of a tensor
_OTHERS = {"global": ("shared", "param", "local"), "shared": ("global", "param", "local", "const")}


def unit_of(instructions: Sequence[Instruction], space: str) -> int:
    """The bytes of the smallest access of lanes to global or to shared memory, at most COARSEST."""
    return min((_bytes(i, _OTHERS[space]) for i in instructions), default=COARSEST)


def _bytes(i: Instruction, others: tuple[str, ...]) -> int:
    if i.name == "cp" and "bulk" not in i.modifiers:  # cp.async has its bytes as an operand
        return min((o.bits for o in i.operands[2:3] if isinstance(o, Imm)), default=COARSEST)
    if i.name not in ("ld", "ldu", "st", "atom", "red") or any(m.startswith(others) for m in i.modifiers):
        return COARSEST
    kind = next((m for m in i.modifiers if m in WIDTH), "b8")
    count = next((int(m[1:]) for m in i.modifiers if m in ("v2", "v4", "v8")), 1)
    return min(WIDTH[kind] // 8 * count, COARSEST)
