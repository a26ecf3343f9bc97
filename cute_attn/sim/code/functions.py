"""What PTX instructions compute where NumPy has no ufunc of the same meaning: functions that translated code calls."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..formats import E4M3, E5M2, bf16_bits, bf16_values

SMALLEST_NORMAL = np.float32(2.0**-126)


def ftz(x: np.ndarray) -> np.ndarray:
    """Subnormal float32 numbers become zeros of the same sign."""
    return np.where(np.abs(x) < SMALLEST_NORMAL, np.copysign(np.float32(0), x), x)


def saturate(x: np.ndarray) -> np.ndarray:
    """Clamps to [0, 1]; NaN becomes 0."""
    return np.fmin(np.fmax(x, np.float32(0)), np.float32(1))


def negative(x: np.ndarray) -> np.ndarray:
    """np.negative reads wrong numbers of 32 bits where it reads and writes every fourth, as in lanes 3, 7, 11, ..."""
    return np.subtract(x.dtype.type(-0.0), x)


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """float32 a * b + c: the product is exact in float64; its sum is rounded there once before float32."""
    x = np.multiply(a, b, dtype=np.float64)
    return np.add(x, c, dtype=np.float64).astype(np.float32)


def fma_rz(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """float32 a * b + c towards 0: what the sum in float64 leaves out says on which side of the float32 it lies."""
    x, y = np.multiply(a, b, dtype=np.float64), np.asarray(c, np.float64)
    total = x + y
    part = total - x
    left = (x - (total - part)) + (y - part)  # exact: Knuth's
    nearest = total.astype(np.float32)
    beyond = (np.abs(nearest) > np.abs(total)) | (
        (nearest == total) & (np.signbit(left) != np.signbit(total)) & (left != 0)
    )
    return np.where(beyond, np.nextafter(nearest, np.float32(0)), nearest)


def ex2_ftz(x: np.ndarray) -> np.ndarray:
    y = np.exp2(x)
    y *= y >= SMALLEST_NORMAL
    return y


def lg2_ftz(x: np.ndarray) -> np.ndarray:
    return np.log2(ftz(x))


def reciprocal(x: np.ndarray) -> np.ndarray:
    return np.divide(np.float32(1), x)


def rsqrt(x: np.ndarray) -> np.ndarray:
    return (1.0 / np.sqrt(np.asarray(x, np.float64))).astype(np.float32)


# Comparisons of floating-point numbers that NumPy spells otherwise


def ordered_ne(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a < b) | (a > b)


def unordered_eq(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ~((a < b) | (a > b))


def unordered_lt(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ~(a >= b)


def unordered_le(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ~(a > b)


def unordered_gt(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ~(a <= b)


def unordered_ge(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ~(a < b)


def both_numbers(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a == a) & (b == b)


def either_nan(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a != a) | (b != b)


# Integers


def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rounds toward zero; a divisor of zero gives all ones, as the hardware's code does."""
    a, b = np.broadcast_arrays(a, b)
    zero = b == 0
    safe = np.where(zero, b.dtype.type(1), b)
    if a.dtype.kind == "u":
        quotient = a // safe
    else:
        quotient = a // safe
        quotient += ((a % safe) != 0) & ((a < 0) != (safe < 0))
    return np.where(zero, a.dtype.type(-1) if a.dtype.kind == "i" else ~a.dtype.type(0), quotient)


def remainder(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sign of the dividend; a divisor of zero gives the dividend."""
    a, b = np.broadcast_arrays(a, b)
    zero = b == 0
    safe = np.where(zero, b.dtype.type(1), b)
    return np.where(zero, a, np.fmod(a, safe))


def mul_hi_16(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (np.multiply(a, b, dtype=np.int64) >> 16).astype(a.dtype)


def mul_hi_32(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    wide = np.int64 if a.dtype.kind == "i" else np.uint64
    return (np.multiply(a, b, dtype=wide) >> wide(32)).astype(np.int32 if wide is np.int64 else np.uint32)


def mul_hi_64(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """High half of the product of 64-bit integers, through 32-bit pieces."""
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    ua, ub = a.view(np.uint64), np.asarray(b).view(np.uint64)
    a0, a1, b0, b1 = ua & low, ua >> shift, ub & low, ub >> shift
    middle = a1 * b0 + (a0 * b0 >> shift)
    high = a1 * b1 + (middle >> shift) + ((a0 * b1 + (middle & low)) >> shift)
    if a.dtype.kind == "i":
        high = high - np.where(a < 0, ub, np.uint64(0)) - np.where(np.asarray(b) < 0, ua, np.uint64(0))
        return high.view(np.int64)
    return high


def popc(x: np.ndarray) -> np.ndarray:
    bits = np.unpackbits(np.ascontiguousarray(x)[..., None].view(np.uint8), axis=-1)
    return bits.sum(axis=-1, dtype=np.uint32)


def brev(x: np.ndarray) -> np.ndarray:
    """Bits in reverse order."""
    bits = np.unpackbits(np.ascontiguousarray(x)[..., None].view(np.uint8), axis=-1, bitorder="little")
    return np.packbits(bits[..., ::-1], axis=-1, bitorder="little").view(x.dtype)[..., 0]


def clz(x: np.ndarray) -> np.ndarray:
    """Leading zeros; the width for 0."""
    bits = np.unpackbits(np.ascontiguousarray(x)[..., None].view(np.uint8), axis=-1, bitorder="little")[..., ::-1]
    return np.where(bits.any(axis=-1), bits.argmax(axis=-1), bits.shape[-1]).astype(np.uint32)


def bfind(x: np.ndarray) -> np.ndarray:
    """Position of the most significant bit that differs from the sign; all ones if there is none."""
    if x.dtype.kind == "i":
        x = np.where(x < 0, ~x, x)
    width = x.itemsize * 8
    zeros = clz(x)
    return np.where(zeros == width, np.uint32(0xFFFFFFFF), np.uint32(width - 1) - zeros)


def bfe(x: np.ndarray, position: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Bit field extract: `length` bits from `position` (8 bits of each are looked at), sign-extended if signed."""
    width = x.itemsize * 8
    unsigned = x.view(np.dtype(f"u{x.itemsize}")).astype(np.uint64)
    position = (np.asarray(position) & 255).astype(np.uint64)
    length = (np.asarray(length) & 255).astype(np.uint64)
    signed = x.dtype.kind == "i"
    fill = (unsigned >> np.uint64(width - 1)) & np.uint64(1) if signed else np.uint64(0)
    kept = np.minimum(length, np.maximum(np.uint64(width), position) - position)
    field = np.right_shift(unsigned, position) & (np.left_shift(np.uint64(1), kept) - np.uint64(1))
    if signed:
        inside = position + length - np.uint64(1) < np.uint64(width)
        last = np.where(inside, np.right_shift(unsigned, position + length - np.uint64(1)) & np.uint64(1), fill)
        field = field | np.where(last == 1, ~(np.left_shift(np.uint64(1), kept) - np.uint64(1)), np.uint64(0))
    field = np.where(length == 0, np.uint64(0), field)
    return field.astype(np.dtype(f"u{x.itemsize}")).view(x.dtype)


def bfi(source: np.ndarray, into: np.ndarray, position: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Bit field insert."""
    position, length = np.asarray(position) & 255, np.asarray(length) & 255
    kind = into.dtype.type
    ones = np.left_shift(kind(1), length.astype(into.dtype)) - kind(1)
    mask = np.left_shift(ones, position.astype(into.dtype))
    return (into & ~mask) | (np.left_shift(source, position.astype(into.dtype)) & mask)


def funnel_left(low: np.ndarray, high: np.ndarray, count: np.ndarray) -> np.ndarray:
    both = (high.astype(np.uint64) << np.uint64(32)) | low
    return (np.left_shift(both, count.astype(np.uint64)) >> np.uint64(32)).astype(np.uint32)


def funnel_right(low: np.ndarray, high: np.ndarray, count: np.ndarray) -> np.ndarray:
    both = (np.asarray(high, np.uint64) << np.uint64(32)) | low
    return np.right_shift(both, count.astype(np.uint64)).astype(np.uint32)


def permute_bytes(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
    """prmt in its default mode: each nibble of `selector` picks a byte of {b, a}; its top bit replicates the sign."""
    both = (np.asarray(b, np.uint64) << np.uint64(32)) | a
    result = np.zeros(np.broadcast(a, b, selector).shape, np.uint64)
    for byte in range(4):
        nibble = (np.asarray(selector, np.uint64) >> np.uint64(4 * byte)) & np.uint64(15)
        value = (both >> ((nibble & np.uint64(7)) * np.uint64(8))) & np.uint64(255)
        signs = np.where(value & np.uint64(128), np.uint64(255), np.uint64(0))
        result |= np.where(nibble & np.uint64(8), signs, value) << np.uint64(8 * byte)
    return result.astype(np.uint32)


def lop3(a: np.ndarray, b: np.ndarray, c: np.ndarray, table: int) -> np.ndarray:
    """Any bitwise function of three inputs, by its truth table."""
    result = np.zeros(np.broadcast(a, b, c).shape, np.uint32)
    for index in range(8):
        if table >> index & 1:
            result |= (a if index & 4 else ~a) & (b if index & 2 else ~b) & (c if index & 1 else ~c)
    return result


# Small floating-point formats. The bits of a number travel as unsigned integers.


def f16_bits(x: np.ndarray) -> np.ndarray:
    """float32 to float16, round to nearest even; the bits come in the low half of uint32."""
    return x.astype(np.float16).view(np.uint16).astype(np.uint32)


def f16_values(bits: np.ndarray) -> np.ndarray:
    return bits.astype(np.uint16).view(np.float16).astype(np.float32)


def pair(bits_high: np.ndarray, bits_low: np.ndarray) -> np.ndarray:
    """Two 16-bit halves in one uint32."""
    return np.left_shift(bits_high, np.uint32(16)) | bits_low


def pack_bf16(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    return pair(bf16_bits(high), bf16_bits(low))


def pack_f16(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    return pair(f16_bits(high), f16_bits(low))


def fp8_bits(x: np.ndarray, table: np.ndarray) -> np.ndarray:
    """float32 to an 8-bit format, round to nearest even, saturating to its largest finite number."""
    positive = table[:128][np.isfinite(table[:128])]
    size = np.minimum(np.abs(x), positive[-1])
    above = np.clip(np.searchsorted(positive, size), 1, len(positive) - 1)
    low, high = positive[above - 1], positive[above]
    middle = (low.astype(np.float64) + high) / 2
    up = (size > middle) | ((size == middle) & (above % 2 == 0))
    code = np.where(up, above, above - 1)
    code = np.where(np.isnan(x), 0x7F, code | np.where(np.signbit(x), 128, 0))
    return code.astype(np.uint32)


def pack_e4m3(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    return ((fp8_bits(high, E4M3) << np.uint32(8)) | fp8_bits(low, E4M3)).astype(np.uint16)


def pack_e5m2(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    return ((fp8_bits(high, E5M2) << np.uint32(8)) | fp8_bits(low, E5M2)).astype(np.uint16)


def halves_of_e4m3(bits: np.ndarray) -> np.ndarray:
    """e4m3x2 to f16x2."""
    return pair(f16_bits(E4M3[bits >> 8]), f16_bits(E4M3[bits & 255]))


def halves_of_e5m2(bits: np.ndarray) -> np.ndarray:
    """e5m2x2 to f16x2."""
    return pair(f16_bits(E5M2[bits >> 8]), f16_bits(E5M2[bits & 255]))


def to_integer(x: np.ndarray, rounding: str, kind: str) -> np.ndarray:
    """Float to integer, saturating; NaN becomes 0 (all ones high bit for 64 bits is not modelled)."""
    rounded = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}[rounding](x.astype(np.float64))
    info = np.iinfo(kind)
    clipped = np.clip(np.nan_to_num(rounded, nan=0.0, posinf=np.inf, neginf=-np.inf), float(info.min), float(info.max))
    result = np.where(clipped >= float(info.max), info.max, 0).astype(kind)
    inside = clipped < float(info.max)
    result[inside] = clipped[inside].astype(kind)
    return result


_X2: dict[str, tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]] = {
    "bf16": (bf16_values, bf16_bits),
    "f16": (f16_values, f16_bits),
}


def packed_math(function: str, kind: str, *operands: np.ndarray) -> np.ndarray:
    """A float32 function on both halves of packed bf16 or f16 numbers, rounded back (exact for one operation)."""
    decode, encode = _X2[kind]
    low = _SCALAR[function](*(decode(x & np.uint32(0xFFFF)) for x in operands))
    high = _SCALAR[function](*(decode(x >> np.uint32(16)) for x in operands))
    return pair(encode(high), encode(low))


def half_math(function: str, kind: str, *operands: np.ndarray) -> np.ndarray:
    """A float32 function on numbers in 16-bit registers: bf16 as bits, f16 as what NumPy has for them."""
    if kind == "f16":
        return _SCALAR[function](*(x.astype(np.float32) for x in operands)).astype(np.float16)
    decode, encode = _X2[kind]
    return encode(_SCALAR[function](*(decode(x) for x in operands))).astype(np.uint16)


def _relu_fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return np.fmax(fma(a, b, c), np.float32(0))


_SCALAR: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "fma": fma,
    "fma_relu": _relu_fma,
    "min": np.fmin,
    "max": np.fmax,
    "min_nan": np.minimum,
    "max_nan": np.maximum,
    "neg": np.negative,
    "abs": np.abs,
    "ex2": np.exp2,
    "tanh": np.tanh,
}
