"""wgmma.mma_async as a template: what of it is fixed, and the call that queues it."""

from __future__ import annotations

import re

from .multiply import Multiply
from .ptx import Imm, Reg, Vec
from .template import Reader, Template, Typed

_K = {"bf16": 16, "f16": 16, "tf32": 8, "e4m3": 32, "e5m2": 32}


def build(r: Reader) -> Template | None:
    """The template of wgmma.mma_async, None for other instructions."""
    if r.instruction.name != "wgmma" or "mma_async" not in r.modifiers:
        return None
    r.need("mma_async")
    r.need("sync")
    r.need("aligned")
    shape = re.fullmatch(r"m64n(\d+)k(\d+)", next((m for m in r.modifiers if m.startswith("m64")), ""))
    if shape is None:
        raise r.fail("the shape")
    r.modifiers.remove(shape.group())
    n, k = int(shape.group(1)), int(shape.group(2))
    if r.modifiers[:1] != ["f32"] or len(r.modifiers) != 3 or any(t not in _K for t in r.modifiers[1:]):
        raise r.fail("these types")
    _, a, b = r.modifiers
    if _K[a] != k or _K[b] != k or not 8 <= n <= 256 or n % 8:
        raise r.fail("this shape for these types")
    scales = [o.bits for o in r.operands[4:] if isinstance(o, Imm)]
    if len(scales) != len(r.operands) - 4 or len(scales) < 2 or any(abs(s) != 1 for s in scales[:2]):
        raise r.fail("these scales")
    from_registers = isinstance(r.operands[1], Vec)
    majors = [*([0] if from_registers else []), *scales[2:]] if k == 16 else [0, 0]
    if len(majors) != 2 or any(m not in (0, 1) for m in majors):
        raise r.fail("these major orders")
    accumulator, fragment = _registers(r, 0), _registers(r, 1) if from_registers else ()
    if len(accumulator) != n // 2 or (from_registers and len(fragment) != 4):
        raise r.fail("this number of registers")
    descriptors = [Typed(r.operands[2], "b64")] if from_registers else [Typed(o, "b64") for o in r.operands[1:3]]
    first = "None, {0}, {1}" if from_registers else "{0}, {1}, {2}"
    sources = [*descriptors, Typed(r.operands[3], "pred")]
    template = r.template(f"products.wgmma(c, {{site}}, g, {first})", [], sources, ordered=True)
    template.statement = True
    template.multiply = Multiply(n, k, (a, b), (majors[0], majors[1]), scales[0] * scales[1], accumulator, fragment)
    return template


def _registers(r: Reader, index: int) -> tuple[Reg, ...]:
    operand = r.operands[index]
    items = operand.items if isinstance(operand, Vec) else ()
    if not items or not all(isinstance(o, Reg) and o.kind == "r" for o in items):
        raise r.fail("operands that are no 32-bit registers")
    return tuple(o for o in items if isinstance(o, Reg))
