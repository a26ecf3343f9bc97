"""Integer, floating-point and logic instructions against what the PTX manual says of them."""

from fractions import Fraction

import numpy as np
import pytest
from snippet import compute

from cute_attn.sim.errors import UnsupportedInstruction

RANDOM = np.random.default_rng(7)
A = RANDOM.integers(-(2**31), 2**31, 128).astype(np.int32)
B = np.where(RANDOM.random(128) < 0.3, RANDOM.integers(-9, 9, 128), RANDOM.integers(-(2**31), 2**31, 128)).astype(
    np.int32
)
F, G, H = (RANDOM.standard_normal(128).astype(np.float32) * 8 for _ in range(3))
SPECIAL = np.array([0.0, -0.0, 1.0, -1.5, np.inf, -np.inf, np.nan, 3e38, 1e-40, -1e-40], np.float32)


def wrap(values, dtype):
    bits = np.dtype(dtype).itemsize * 8
    return np.array([int(v) & (1 << bits) - 1 for v in values], f"u{bits // 8}").view(dtype)


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("add.s32", lambda a, b: a + b),
        ("sub.s32", lambda a, b: a - b),
        ("mul.lo.s32", lambda a, b: a * b),
        ("mul.hi.s32", lambda a, b: a * b >> 32),
        ("min.s32", min),
        ("max.s32", max),
        ("min.relu.s32", lambda a, b: max(min(a, b), 0)),
        ("max.relu.s32", lambda a, b: max(a, b, 0)),
        ("and.b32", lambda a, b: a & b),
        ("or.b32", lambda a, b: a | b),
        ("xor.b32", lambda a, b: a ^ b),
        ("div.s32", lambda a, b: int(abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1) if b else -1),
        ("rem.s32", lambda a, b: abs(a) % abs(b) * (-1 if a < 0 else 1) if b else a),
    ],
)
def test_signed_integers(instruction, expected):
    y = compute(f"{instruction} %y, %x0, %x1;", A, B, result=np.int32)
    np.testing.assert_array_equal(y, wrap([expected(int(a), int(b)) for a, b in zip(A, B, strict=True)], np.int32))


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("mul.hi.u32", lambda a, b: a * b >> 32),
        ("div.u32", lambda a, b: a // b if b else 2**32 - 1),
        ("rem.u32", lambda a, b: a % b if b else a),
        ("min.u32", min),
        ("shl.b32", lambda a, b: a << b if b < 32 else 0),
        ("shr.u32", lambda a, b: a >> b if b < 32 else 0),
    ],
)
def test_unsigned_integers_and_shifts_that_clamp(instruction, expected):
    a = A.view(np.uint32)
    b = np.where(np.arange(128) % 4 == 0, B.view(np.uint32), B.view(np.uint32) % 40)
    y = compute(f"{instruction} %y, %x0, %x1;", a, b, result=np.uint32)
    np.testing.assert_array_equal(y, wrap([expected(int(p), int(q)) for p, q in zip(a, b, strict=True)], np.uint32))


def test_signed_right_shifts_fill_with_the_sign():
    counts = np.arange(128, dtype=np.uint32) % 40
    y = compute("shr.s32 %y, %x0, %x1;", A, counts, result=np.int32)
    np.testing.assert_array_equal(y, [int(a) >> min(int(c), 31) for a, c in zip(A, counts, strict=True)])


@pytest.mark.parametrize("instruction", ["mul.wide.s32", "mad.wide.s32"])
def test_wide_products_keep_all_bits(instruction):
    c = RANDOM.integers(-(2**62), 2**62, 128)
    extra = ", %x2" if instruction.startswith("mad") else ""
    y = compute(f"{instruction} %y, %x0, %x1{extra};", A, B, c, result=np.int64)
    np.testing.assert_array_equal(y, A.astype(np.int64) * B + (c if extra else 0))


def test_high_halves_of_64_bit_products():
    a, b = (RANDOM.integers(-(2**63), 2**63 - 1, 128) for _ in range(2))
    y = compute("mul.hi.s64 %y, %x0, %x1;", a, b, result=np.int64)
    np.testing.assert_array_equal(y, [int(p) * int(q) >> 64 for p, q in zip(a, b, strict=True)])
    u, v = a.view(np.uint64), b.view(np.uint64)
    y = compute("mul.hi.u64 %y, %x0, %x1;", u, v, result=np.uint64)
    np.testing.assert_array_equal(y, wrap([int(p) * int(q) >> 64 for p, q in zip(u, v, strict=True)], np.uint64))


@pytest.mark.parametrize(("kind", "dtype"), [("u16", np.uint16), ("s16", np.int16)])
def test_high_halves_of_16_bit_products(kind, dtype):
    body = f"cvt.u16.u32 %h0, %x0; cvt.u16.u32 %h1, %x1; mul.hi.{kind} %h2, %h0, %h1; cvt.s32.{kind} %y, %h2;"
    y = compute(body, A, B, result=np.int32)
    a, b = (x.astype(np.uint16).view(dtype) for x in (A, B))
    np.testing.assert_array_equal(y, [int(p) * int(q) >> 16 for p, q in zip(a, b, strict=True)])


@pytest.mark.parametrize("instruction", ["shl.b64", "shr.u64", "shr.s64"])
def test_64_bit_shifts(instruction):
    a, counts = RANDOM.integers(-(2**63), 2**63 - 1, 128), np.arange(128, dtype=np.uint32) % 70
    y = compute(f"{instruction} %y, %x0, %x1;", a, counts, result=np.int64)
    one = {
        "shl.b64": lambda x, c: x << c,
        "shr.u64": lambda x, c: (x & 2**64 - 1) >> c,
        "shr.s64": lambda x, c: x >> c,
    }[instruction]
    np.testing.assert_array_equal(y, wrap([one(int(x), int(c)) for x, c in zip(a, counts, strict=True)], np.int64))


def bits(x):
    return f"{int(x) & 0xFFFFFFFF:032b}"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("popc.b32 %y, %x0;", lambda a: bits(a).count("1")),
        ("clz.b32 %y, %x0;", lambda a: (bits(a) + "1").index("1")),
        ("brev.b32 %y, %x0;", lambda a: int(bits(a)[::-1], 2)),
        ("bfind.u32 %y, %x0;", lambda a: 31 - bits(a).index("1") if a else 2**32 - 1),
        ("bfe.u32 %y, %x0, 5, 7;", lambda a: a >> 5 & 127),
        ("bfe.s32 %y, %x0, 5, 7;", lambda a: (a >> 5 & 127) - (128 if a >> 11 & 1 else 0)),
        ("bfi.b32 %y, %x0, -1, 4, 8;", lambda a: 0xFFFFF00F | (a & 255) << 4),
        ("prmt.b32 %y, %x0, 0, 0x4012;", lambda a: (a & 0xFF) << 16 | (a >> 8 & 255) << 8 | (a >> 16 & 255)),
        ("lop3.b32 %y, %x0, 0x0ff0, 0x3333, 0xe8;", lambda a: a & 0x0FF0 | a & 0x3333 | 0x0FF0 & 0x3333),
        ("shf.l.wrap.b32 %y, %x0, %x0, 7;", lambda a: a << 7 | a >> 25),
        ("shf.r.clamp.b32 %y, 0, %x0, 40;", lambda a: a),
        ("not.b32 %y, %x0;", lambda a: ~a),
    ],
)
def test_bit_fields(lines, expected):
    a = np.concatenate([[0, 1, 2**31, 2**32 - 1], A.view(np.uint32)[4:]]).astype(np.uint32)
    y = compute(lines, a, result=np.uint32)
    np.testing.assert_array_equal(y, wrap([expected(int(x)) for x in a], np.uint32))


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("add.f32", np.add),
        ("sub.f32", np.subtract),
        ("mul.f32", np.multiply),
        ("div.rn.f32", np.divide),
        ("min.f32", np.fmin),
        ("max.f32", np.fmax),
        ("max.NaN.f32", np.maximum),
    ],
)
def test_float_operations_with_special_values(instruction, expected):
    a, b = np.repeat(SPECIAL, 10), np.tile(SPECIAL, 10)
    y = compute(f"{instruction} %y, %x0, %x1;", a, b, result=np.float32)[:100]
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(y, expected(a, b))


def test_fma_rounds_once():
    y = compute("fma.rn.f32 %y, %x0, %x1, %x2;", F, G, -(F * G), result=np.float32)
    exact = F.astype(np.float64) * G - (F * G)
    np.testing.assert_array_equal(y, exact.astype(np.float32))
    assert (y != 0).any()  # separate rounding would cancel to zero


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("ex2.approx.f32", np.exp2),
        ("sqrt.rn.f32", lambda x: np.sqrt(np.abs(x))),
        ("rcp.approx.f32", lambda x: 1 / x),
        ("rsqrt.approx.f32", lambda x: 1 / np.sqrt(np.abs(x))),
        ("lg2.approx.f32", lambda x: np.log2(np.abs(x))),
        ("tanh.approx.f32", np.tanh),
        ("sin.approx.f32", np.sin),
        ("neg.f32", np.negative),
        ("abs.f32", np.abs),
    ],
)
def test_functions_of_one_number(instruction, expected):
    x = np.abs(F) if any(n in instruction for n in ("sqrt", "lg2")) else F
    y = compute(f"{instruction} %y, %x0;", x, result=np.float32)
    assert np.all(np.abs(y - expected(x.astype(np.float64))) <= 1e-6 * np.abs(expected(x.astype(np.float64))) + 1e-7)


def test_ftz_flushes_subnormal_inputs_and_results():
    x = np.array([-149.0, -127.0, -126.0, 0.0, -np.inf, np.inf], np.float32)
    y = compute("ex2.approx.ftz.f32 %y, %x0;", x, result=np.float32)[:6]
    np.testing.assert_array_equal(y, [0, 0, 2.0**-126, 1, 0, np.inf])
    y = compute("add.ftz.f32 %y, %x0, %x1;", np.float32([1e-40]), np.float32([2e-40]), result=np.float32)
    np.testing.assert_array_equal(y, 0)


@pytest.mark.parametrize(
    "relation", ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"]
)
def test_float_comparisons_with_nan(relation):
    a, b = np.repeat(SPECIAL, 10), np.tile(SPECIAL, 10)
    y = compute(f"setp.{relation}.f32 %p1, %x0, %x1; selp.b32 %y, 1, 0, %p1;", a, b, result=np.uint32)[:100]
    unordered = np.isnan(a) | np.isnan(b)
    table = {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}
    if relation in ("num", "nan"):
        expected = unordered if relation == "nan" else ~unordered
    elif relation.endswith("u"):
        expected = table[relation[:-1]] | unordered
    else:
        expected = table[relation] & ~unordered
    np.testing.assert_array_equal(y.astype(bool), expected)


def test_comparisons_give_a_predicate_its_complement_and_combinations():
    lines = """setp.lt.s32 %p1|%p2, %x0, %x1;
    setp.gt.and.s32 %p3, %x0, 0, %p1;
    selp.b32 %r1, 1, 0, %p1; selp.b32 %r2, 2, 0, %p2; selp.b32 %r3, 4, 0, %p3;
    or.b32 %y, %r1, %r2; or.b32 %y, %y, %r3;"""
    y = compute(lines, A, B, result=np.int32)
    np.testing.assert_array_equal(y, np.where(A < B, 1 + 4 * (A > 0), 2))


def test_guards_leave_other_lanes_alone():
    lines = "setp.gt.s32 %p1, %x0, 0; mov.b32 %y, 7; @%p1 add.s32 %y, %x0, 1; @!%p1 sub.s32 %y, %y, 1;"
    y = compute(lines, A, result=np.int32)
    np.testing.assert_array_equal(y, np.where(A > 0, wrap(A.astype(np.int64) + 1, np.int32), 6))


def test_words_are_packed_and_unpacked():
    lines = """mov.b64 %d1, {%x0, %x1}; mov.b64 {%r1, %r2}, %d1;
    mov.b32 {%h1, %h2}, %r2; mov.b32 %r3, {%h2, %h1}; xor.b32 %y, %r1, %r3;"""
    y = compute(lines, A, B, result=np.uint32)
    b = B.view(np.uint32)
    np.testing.assert_array_equal(y, A.view(np.uint32) ^ (b << 16 | b >> 16))


def test_fma_towards_zero_never_passes_the_exact_number():
    tiny = np.float32(2.0**-60)
    a = np.concatenate([F[:64], np.full(64, 1 + 2.0**-12, np.float32)])
    b = np.concatenate([G[:64], np.full(64, 1 - 2.0**-12, np.float32)])
    c = np.concatenate([H[:64], np.tile([tiny, -tiny, np.float32(1), np.float32(-3)], 16)]).astype(np.float32)
    y = compute("fma.rz.f32 %y, %x0, %x1, %x2;", a, b, c, result=np.float32)
    for got, *of in zip(y, a, b, c, strict=True):
        x, z, w = (Fraction(float(n)) for n in of)
        exact = x * z + w
        beyond = np.nextafter(got, np.copysign(np.float32(np.inf), np.float32(exact)))
        assert abs(Fraction(float(got))) <= abs(exact) < abs(Fraction(float(beyond)))


@pytest.mark.parametrize("instruction", ["neg.f32", "neg.s32", "abs.f32", "abs.s32", "not.b32"])
def test_numbers_of_every_fourth_lane_are_those_of_the_lane(instruction):
    x = np.arange(-64, 64).astype(np.float32 if "f32" in instruction else np.int32)
    everywhere = compute(f"{instruction} %y, %x0;", x, result=x.dtype)
    lines = f"and.b32 %r0, %t, 3; setp.eq.u32 %p0, %r0, 3; @!%p0 bra L; {instruction} %y, %x0; L:"
    np.testing.assert_array_equal(compute(lines, x, result=x.dtype)[3::4], everywhere[3::4])


def test_packed_bfloat16_arithmetic_rounds_each_half():
    words = RANDOM.integers(0x3F003F00, 0x3FFF3FFF, 128).astype(np.uint32) & 0x3FFF3FFF
    y = compute("fma.rn.bf16x2 %y, %x0, %x0, %x0;", words, result=np.uint32)
    for shift in (0, 16):
        x = ((words >> shift & 0xFFFF) << 16).view(np.float32).astype(np.float64)
        got = ((y >> shift & 0xFFFF) << 16).view(np.float32)
        assert np.all(np.abs(got - (x * x + x)) <= 2.0**-8 * (x * x + x))


def test_unknown_instructions_and_modifiers_name_the_line():
    lines = "frobnicate.b32 %y, %x0;", "add.sat.s32 %y, %x0, %x0;", "min.relu.u32 %y, %x0, %x0;"
    for line in (*lines, "add.relu.s32 %y, %x0, %x0;", "mul.rz.f32 %y, %x0, %x0;"):
        with pytest.raises(UnsupportedInstruction, match=line.split()[0].split(".")[0]) as caught:
            compute(line, A, result=np.int32)
        assert caught.value.place.line is not None
        assert line in caught.value.place.text


def test_single_float16_and_bfloat16_numbers():
    """Of max, abs and comparisons, which say what they are, not what their bits would be as integers."""
    f = np.linspace(-70, 70, 128).astype(np.float16)
    g = f[::-1] * np.float16(0.3)
    y = compute("max.f16 %y, %x0, %x1;", f.view(np.uint16), g.view(np.uint16), result=np.uint16)
    np.testing.assert_array_equal(y.view(np.float16), np.maximum(f, g))
    y = compute(
        ".reg .b32 %z;\nabs.f16 %y, %x0;\ncvt.f32.f16 %z, %y;\ncvt.rn.f16.f32 %y, %z;",
        f.view(np.uint16),
        result=np.uint16,
    )
    np.testing.assert_array_equal(y.view(np.float16), np.abs(f))
    for kind, x, z in (("f16", f, g), ("bf16", f.astype(np.float32), g.astype(np.float32))):
        bits = [a.view(np.uint16) if kind == "f16" else (a.view(np.uint32) >> 16).astype(np.uint16) for a in (x, z)]
        exact = [
            a if kind == "f16" else (b.astype(np.uint32) << 16).view(np.float32)
            for a, b in zip((x, z), bits, strict=True)
        ]
        y = compute(f".reg .pred %q;\nsetp.lt.{kind} %q, %x0, %x1;\nselp.u32 %y, 1, 0, %q;", *bits, result=np.uint32)
        np.testing.assert_array_equal(y == 1, exact[0] < exact[1])
