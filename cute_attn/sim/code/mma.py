"""mma.sync: products of 16x8 by a warp, all of whose operands are in registers."""

from __future__ import annotations

import numpy as np

from ..errors import UnsupportedInstruction
from ..state.matrices import decode
from .ptx import Operand, Vec
from .template import Reader, Template, Typed

_SHAPES = {  # of 32 bytes of k, and of 16
    **dict.fromkeys(("bf16", "f16"), ("m16n8k16", "m16n8k8")),
    "tf32": ("m16n8k8", "m16n8k4"),
    **dict.fromkeys(("e4m3", "e5m2"), ("m16n8k32", "m16n8k16")),
}


def build(r: Reader) -> Template | None:
    """The template of mma.sync, None for other instructions."""
    if r.instruction.name != "mma":
        return None
    r.need("sync")
    r.need("aligned")
    shape = r.need("m16n8k32", "m16n8k16", "m16n8k8", "m16n8k4")
    r.need("row")
    r.need("col")
    if len(r.modifiers) != 4 or r.modifiers[0] != "f32" or r.modifiers[3] != "f32":
        raise r.fail("these types")
    _, a, b, _ = r.modifiers
    if a not in _SHAPES or b not in _SHAPES or _SHAPES[a] != _SHAPES[b] or (a != b and "m16n8k32" not in _SHAPES[a]):
        raise r.fail("these types")
    if shape not in _SHAPES[a]:
        raise r.fail("this shape for these types")
    halves = 2 - _SHAPES[a].index(shape)  # of 16 bytes of k
    d, fragment_a, fragment_b, c = (_registers(r, o) for o in r.operands)
    if [len(x) for x in (d, fragment_a, fragment_b, c)] != [4, 2 * halves, halves, 4]:
        raise r.fail("this number of registers")
    sources = [Typed(o, "b32") for o in (*fragment_a, *fragment_b)] + [Typed(o, "f32") for o in c]
    places = ", ".join(f"{{{i}}}" for i in range(len(sources)))
    code = f"multiply_in_warps(c, g, V, {{site}}, ('{a}', '{b}'), {places})"
    return r.template(code, [Typed(o, "f32") for o in d], sources)


def _registers(r: Reader, operand: Operand) -> tuple[Operand, ...]:
    if not isinstance(operand, Vec):
        raise r.fail(f"operand {operand}")
    return operand.items


def multiply_in_warps(c, g, V, site, kinds: tuple[str, str], *operands: np.ndarray) -> tuple[np.ndarray, ...]:
    """D = A @ B + C by every warp; a register is [..., lanes].

    Lane l has rows l / 4 and l / 4 + 8 of A, column l / 4 of B, columns 2 (l % 4) and the next of C and D; along k it
    has 4 bytes of each 16, from 4 (l % 4) on.
    """
    if not V.whole:
        c.fail(UnsupportedInstruction, "mma.sync by a diverged warp", site, g)
    shape = np.broadcast_shapes(*(x.shape for x in operands), (V.count,))
    registers = np.stack([np.broadcast_to(x, shape).view(np.uint32) for x in operands], axis=-2)
    words = registers.reshape(*registers.shape[:-1], V.count // 32, 8, 4)  # [..., register, warp, 8, 4]
    halves = (len(operands) - 4) // 3
    a, b, accumulator = np.split(words, [2 * halves, 3 * halves], axis=-4)
    a = a.reshape(*a.shape[:-4], halves, 2, *a.shape[-3:])  # half of k, half of rows, warp, ...
    a = _decoded(np.moveaxis(a, (-3, -4, -2, -5, -1), (-5, -4, -3, -2, -1)), kinds[0])
    b = _decoded(np.moveaxis(b, -4, -2), kinds[1])  # [..., warp, column of B, half of k, column]
    a = a.reshape(*a.shape[:-4], 16, -1)
    b = b.reshape(*b.shape[:-3], 8, -1)
    product = a @ np.swapaxes(b, -1, -2)  # [..., warp, 16, 8]
    laid = product.reshape(*product.shape[:-2], 2, 8, 4, 2)  # [..., warp, half of rows, row, column, which of two]
    out = []
    for i in range(4):
        mine = laid[..., i // 2, :, :, i % 2] + accumulator[..., i, :, :, :].view(np.float32)
        out.append(mine.reshape(shape))
    return tuple(out)


def _decoded(words: np.ndarray, kind: str) -> np.ndarray:
    """Registers [..., columns] as numbers [..., columns * numbers in a register]."""
    return decode(np.ascontiguousarray(words).view(np.uint8), kind)
