"""The types of PTX: how many bits each has, and the numbers of those that NumPy lacks."""

from __future__ import annotations

import numpy as np

WORD = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}  # by bytes
SHIFT = {1: 0, 2: 1, 4: 2, 8: 3, 16: 4}

WIDTH = {
    **{"pred": 1, "b8": 8, "u8": 8, "s8": 8, "b16": 16, "u16": 16, "s16": 16, "f16": 16, "bf16": 16},
    **{"b32": 32, "u32": 32, "s32": 32, "f32": 32, "f16x2": 32, "bf16x2": 32},
    **{"b64": 64, "u64": 64, "s64": 64, "f64": 64},
}

# The bits of a number travel as unsigned integers.


def bf16_bits(x: np.ndarray) -> np.ndarray:
    """float32 to bfloat16, round to nearest even; the bits come in the low half of uint32."""
    bits = x.view(np.uint32)
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    nan = np.isnan(x)
    if nan.any():
        rounded[nan] = 0x7FFF
    return rounded


def bf16_values(bits: np.ndarray) -> np.ndarray:
    """The bits of bfloat16 numbers, in any unsigned type, to float32."""
    return np.left_shift(bits, np.uint32(16), dtype=np.uint32).view(np.float32)


def _fp8_table(exponent_bits: int, mantissa_bits: int, bias: int, *, finite: bool) -> np.ndarray:
    codes = np.arange(256)
    sign = np.where(codes & 128, -1.0, 1.0)
    exponent = (codes & 127) >> mantissa_bits
    mantissa = codes & ((1 << mantissa_bits) - 1)
    normal = (1 + mantissa / 2**mantissa_bits) * 2.0 ** (exponent - bias)
    value = np.where(exponent == 0, mantissa / 2**mantissa_bits * 2.0 ** (1 - bias), normal)
    top = (1 << exponent_bits) - 1
    if finite:
        value[(codes & 127) == 127] = np.nan
    else:
        value[(exponent == top) & (mantissa == 0)] = np.inf
        value[(exponent == top) & (mantissa != 0)] = np.nan
    return (sign * value).astype(np.float32)


E4M3 = _fp8_table(4, 3, 7, finite=True)
E5M2 = _fp8_table(5, 2, 15, finite=False)
