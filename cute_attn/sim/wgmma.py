"""Warpgroup matrix multiply: matrix descriptors, operand tiles in shared memory and registers, the product itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .functions import E4M3, E5M2
from .ptx import Imm, Reg, Vec
from .template import Reader, Template, Typed

if TYPE_CHECKING:
    from .program import Program
    from .segment import Rows

_K = {"bf16": 16, "f16": 16, "tf32": 8, "e4m3": 32, "e5m2": 32}
ELEMENT = {"bf16": 2, "f16": 2, "tf32": 4, "e4m3": 1, "e5m2": 1}  # bytes
STEP_BYTES = 32  # of k in one wgmma, whatever the type
PITCH = {0: 16, 1: 128, 2: 64, 3: 32}  # bytes of a row, by the swizzle field of a descriptor
SWIZZLE_MASK = {16: 0, 32: 0x10, 64: 0x30, 128: 0x70}  # which address bits are XORed with those three higher


@dataclass
class Tile:
    """The fixed part of one wgmma.mma_async: shape, types, registers."""

    n: int
    k: int
    types: tuple[str, str]  # of A and B
    majors: tuple[int, int]  # 0: K-major, 1: M- or N-major
    sign: int
    accumulator: tuple[Reg, ...]
    fragment: tuple[Reg, ...]  # of A; empty if A is in shared memory
    accumulator_rows: Any = None
    fragment_rows: Any = None
    accumulator_lock: int = 0
    fragment_lock: int = 0
    chain: int = 0  # equal for tiles of equal kind

    def settle(self, rows: Rows, locks: dict[Reg, int]) -> None:
        """Rows are known now: slices where they are neighbours."""
        self.accumulator_rows = _rows([rows.of(r) for r in self.accumulator])
        self.fragment_rows = np.array([rows.of(r) for r in self.fragment], np.intp)
        for register in self.accumulator:
            self.accumulator_lock |= locks[register]
        for register in self.fragment:
            self.fragment_lock |= locks[register]

    @property
    def kind(self) -> tuple[Any, ...]:
        """Equal for those that add to the same accumulator in the same way."""
        return (self.n, self.k, self.types, self.majors, self.sign, self.accumulator, bool(self.fragment))


def _rows(rows: list[int]) -> Any:
    neighbours = all(b - a == 1 for a, b in pairwise(rows))
    return slice(rows[0], rows[-1] + 1) if neighbours else np.array(rows, np.intp)


def build(program: Program, r: Reader) -> Template | None:
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
    site = program.sites[id(r.instruction)]
    program.tiles[site] = Tile(n, k, (a, b), (majors[0], majors[1]), scales[0] * scales[1], accumulator, fragment)
    descriptors = [Typed(r.operands[2], "b64")] if from_registers else [Typed(o, "b64") for o in r.operands[1:3]]
    first = "None, {0}, {1}" if from_registers else "{0}, {1}, {2}"
    sources = [*descriptors, Typed(r.operands[3], "pred")]
    template = r.template(f"c.wgmma({{site}}, g, {first})", [], sources, ordered=True)
    template.statement, template.fragment, template.accumulator = True, fragment, accumulator
    return template


def _registers(r: Reader, index: int) -> tuple[Reg, ...]:
    operand = r.operands[index]
    items = operand.items if isinstance(operand, Vec) else ()
    if not items or not all(isinstance(o, Reg) and o.kind == "r" for o in items):
        raise r.fail("operands that are no 32-bit registers")
    return tuple(o for o in items if isinstance(o, Reg))


class BadDescriptor(ValueError):
    """Bits of a matrix descriptor that are not known."""


@lru_cache(maxsize=4096)
def granules(descriptors: tuple[int, ...], rows: int, major: int, kind: str) -> np.ndarray:
    """Which 16-byte granules of shared memory hold an operand of several k-steps.

    K-major: [rows, k granules]; M- or N-major: [k, row granules].
    """
    parts = [_offsets(d, rows, major, ELEMENT[kind]) for d in descriptors]
    index = np.concatenate(parts, axis=1 if major == 0 else 0)
    index.setflags(write=False)
    return index


def _offsets(descriptor: int, rows: int, major: int, size: int) -> np.ndarray:
    start, leading, stride = ((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    swizzle = descriptor >> 62
    if descriptor & ~(0x3FFF | 0x3FFF << 16 | 0x3FFF << 32 | 3 << 62):
        raise BadDescriptor(f"matrix descriptor {descriptor:#018x} has bits outside start, offsets and swizzle")
    pitch = PITCH[swizzle]
    if major == 0:
        r = np.arange(rows)[:, None]
        k = np.arange(0, STEP_BYTES, 16)[None, :]
        offset = (r % 8) * pitch + (r // 8) * stride + (k if swizzle else (k // 16) * leading)
    else:
        k = np.arange(STEP_BYTES // size)[:, None]
        m = np.arange(0, rows, 16 // size)[None, :]
        per_row = pitch // size
        across, along = (leading, stride) if swizzle else (stride, leading)
        offset = (m % per_row) * size + (m // per_row) * across + (k % 8) * pitch + (k // 8) * along
    address = start + offset
    address = address ^ ((address >> 3) & SWIZZLE_MASK[pitch])
    return address >> 4


class Footprint(NamedTuple):
    """The granules of shared memory that an operand touches: from `first` to before `last`, and how to select them."""

    first: int
    last: int
    selectors: tuple[Any, ...]  # slices if they are few runs, else one array of numbers


@lru_cache(maxsize=8192)
def footprint(descriptors: tuple[int, ...], rows: int, major: int, kind: str, warp: int | None = None) -> Footprint:
    """What an operand touches; of A, what one warp does, which reads its 16 rows of the 64 alone."""
    index = granules(descriptors, rows, major, kind)
    if warp is not None:
        per_warp = 16 if major == 0 else 16 * ELEMENT[kind] // 16
        own = slice(per_warp * warp, per_warp * (warp + 1))
        index = index[own] if major == 0 else index[:, own]
    flat = np.unique(index)
    breaks = np.flatnonzero(np.diff(flat) != 1)
    firsts = flat[np.concatenate(([0], breaks + 1))].tolist()
    lasts = (flat[np.concatenate((breaks, [len(flat) - 1]))] + 1).tolist()
    slices = tuple(slice(f, n) for f, n in zip(firsts, lasts, strict=True))
    return Footprint(firsts[0], lasts[-1], slices if len(slices) <= 4 else (flat,))


def decode(raw: np.ndarray, kind: str) -> np.ndarray:
    """Bits of a small type to float32. `raw` is contiguous; its last axis is bytes in memory order."""
    if kind == "bf16":
        wide = raw.view(np.uint16).astype(np.uint32)
        wide <<= np.uint32(16)
        return wide.view(np.float32)
    if kind == "f16":
        return raw.view(np.float16).astype(np.float32)
    if kind == "tf32":
        return (raw.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    return (E4M3 if kind == "e4m3" else E5M2)[raw.view(np.uint8)]


def fragment_matrix(registers: np.ndarray, kind: str) -> np.ndarray:
    """A of shape [64, k * steps] from registers [4 * steps, 128]."""
    steps = registers.shape[0] // 4
    per_register = {"bf16": 2, "f16": 2, "tf32": 1, "e4m3": 4, "e5m2": 4}[kind]
    # register: (column half, row half) of step; lane: (warp, row of 8, column of 4)
    words = registers.reshape(steps, 2, 2, 4, 8, 4).transpose(3, 2, 4, 0, 1, 5)
    values = decode(np.ascontiguousarray(words).view(np.uint8), kind)
    return values.reshape(64, steps * 8 * per_register)


def add_product(accumulator: np.ndarray, product: np.ndarray, *, fresh: bool) -> None:
    """Puts [64, n] into, or adds it to, accumulator registers [n / 2, 128] (float32, in place)."""
    n = product.shape[1]
    laid = product.reshape(4, 2, 8, n // 8, 4, 2).transpose(3, 1, 5, 0, 2, 4)
    target = accumulator.reshape(n // 8, 2, 2, 4, 8, 4)
    if fresh:
        target[...] = laid
    else:
        target += laid
