"""Operands of warpgroup matrix multiplies: descriptors, tiles in shared memory and registers, the product itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..formats import E4M3, E5M2

ELEMENT = {"bf16": 2, "f16": 2, "tf32": 4, "e4m3": 1, "e5m2": 1}  # bytes
STEP_BYTES = 32  # of k in one wgmma, whatever the type
PITCH = {0: 16, 1: 128, 2: 64, 3: 32}  # bytes of a row, by the swizzle field of a descriptor
SWIZZLE_MASK = {16: 0, 32: 0x10, 64: 0x30, 128: 0x70}  # which address bits are XORed with those three higher


@dataclass(frozen=True)
class MmaTile:
    """The fixed part of one wgmma.mma_async: shape, types, and the rows of its registers in their file."""

    n: int
    k: int
    types: tuple[str, str]  # of A and B
    majors: tuple[int, int]  # 0: K-major, 1: M- or N-major
    sign: int
    accumulator: tuple[int, ...]
    fragment: tuple[int, ...]  # of A; empty if A is in shared memory
    accumulator_lock: int  # its registers, as bits
    fragment_lock: int
    chain: int  # equal for those that add to the same accumulator in the same way

    @cached_property
    def accumulator_rows(self) -> Any:
        """The same as an index: a slice where they are neighbours."""
        first, *rest = self.accumulator
        neighbours = rest == list(range(first + 1, first + 1 + len(rest)))
        return slice(first, first + len(self.accumulator)) if neighbours else np.array(self.accumulator, np.intp)

    @cached_property
    def fragment_rows(self) -> np.ndarray:
        return np.array(self.fragment, np.intp)


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
