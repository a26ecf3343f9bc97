"""The cvt instructions: between integers, between floats, to and from small formats, rounding and saturation."""

import numpy as np
import pytest
import torch
from snippet import bf16, compute

RANDOM = np.random.default_rng(11)
F = np.concatenate(
    [RANDOM.standard_normal(100) * 100, [0.0, -0.0, np.inf, -np.inf, np.nan, 0.5, 1.5, 2.5, -0.5, 3e9, -3e9, 1e20]]
)
F = np.resize(F, 128).astype(np.float32)


@pytest.mark.parametrize(
    ("rounding", "function"), [("rzi", np.trunc), ("rni", np.rint), ("rmi", np.floor), ("rpi", np.ceil)]
)
def test_floats_to_integers_saturate_and_nan_becomes_zero(rounding, function):
    y = compute(f"cvt.{rounding}.s32.f32 %y, %x0;", F, result=np.int32)
    expected = np.clip(
        np.nan_to_num(function(F.astype(np.float64)), nan=0, posinf=1e30, neginf=-1e30), -(2**31), 2**31 - 1
    )
    np.testing.assert_array_equal(y, expected.astype(np.int64))


def test_integers_are_cut_and_extended_by_their_sign():
    x = RANDOM.integers(-(2**31), 2**31, 128).astype(np.int32)
    np.testing.assert_array_equal(compute("cvt.s64.s32 %y, %x0;", x, result=np.int64), x)
    np.testing.assert_array_equal(compute("cvt.u64.u32 %y, %x0;", x, result=np.uint64), x.view(np.uint32))
    np.testing.assert_array_equal(compute("cvt.s32.s8 %y, %x0;", x, result=np.int32), x.astype(np.int8))
    np.testing.assert_array_equal(compute("cvt.u16.u32 %y, %x0;", x, result=np.uint16), x.astype(np.uint16))
    np.testing.assert_array_equal(compute("cvt.rn.f32.s32 %y, %x0;", x, result=np.float32), x.astype(np.float32))


def test_bfloat16_rounds_to_nearest_even():
    np.testing.assert_array_equal(
        compute("cvt.rn.bf16.f32 %y, %x0;", F, result=np.uint16)[~np.isnan(F)], bf16(F)[~np.isnan(F)]
    )
    y = compute("cvt.rn.bf16x2.f32 %y, %x0, %x1;", F, F[::-1].copy(), result=np.uint32)
    numbers = ~(np.isnan(F) | np.isnan(F[::-1]))
    np.testing.assert_array_equal(y[numbers], (bf16(F).astype(np.uint32) << 16 | bf16(F[::-1]))[numbers])
    assert (compute("cvt.rn.bf16.f32 %y, %x0;", F, result=np.uint16)[np.isnan(F)] == 0x7FFF).all()


def test_bfloat16_and_float16_back_to_float32():
    bits = RANDOM.integers(0, 2**16, 128).astype(np.uint16)
    y = compute("cvt.f32.bf16 %y, %x0;", bits, result=np.uint32)
    np.testing.assert_array_equal(y, bits.astype(np.uint32) << 16)
    y = compute("cvt.f32.f16 %y, %x0;", bits, result=np.float32)
    np.testing.assert_array_equal(y, bits.view(np.float16).astype(np.float32))


def test_packed_float16():
    y = compute("cvt.rn.f16x2.f32 %y, %x0, %x1;", F, -F, result=np.uint32)
    with np.errstate(over="ignore"):
        half = F.astype(np.float16)
    numbers = ~np.isnan(F)
    np.testing.assert_array_equal((y >> 16)[numbers], half.view(np.uint16)[numbers])
    np.testing.assert_array_equal((y & 0xFFFF)[numbers], (-half).view(np.uint16)[numbers])


@pytest.mark.parametrize(("kind", "dtype"), [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)])
def test_fp8_saturates_and_rounds_to_nearest_even(kind, dtype):
    x = np.concatenate([RANDOM.standard_normal(64) * 3, RANDOM.standard_normal(64) * 0.01]).astype(np.float32)
    y = compute(f"cvt.rn.satfinite.{kind}x2.f32 %y, %x0, %x1;", x, -x, result=np.uint16)
    expected = torch.from_numpy(x).to(dtype).view(torch.uint8).numpy()
    np.testing.assert_array_equal(y >> 8, expected)
    np.testing.assert_array_equal(y & 255, expected ^ 128)
    largest = {"e4m3": 448.0, "e5m2": 57344.0}[kind]
    y = compute(f"cvt.rn.satfinite.{kind}x2.f32 %y, %x0, %x0;", np.float32([1e9]), result=np.uint16)
    back = compute(f"cvt.rn.f16x2.{kind}x2 %y, %x0;", y, result=np.uint32)
    np.testing.assert_array_equal((back & 0xFFFF).astype(np.uint16).view(np.float16), largest)


def test_rounding_within_float32():
    y = compute("cvt.rmi.f32.f32 %y, %x0;", F, result=np.float32)
    np.testing.assert_array_equal(y, np.floor(F))
