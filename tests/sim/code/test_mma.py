"""mma.sync against NumPy, with every type and shape that is known; its operands come as ldmatrix brings them, too."""

import numpy as np
import pytest
import torch
from snippet import bf16, run

from cute_attn.sim.errors import UnsupportedInstruction

RANDOM = np.random.default_rng(5)
ENCODE = {
    "bf16": bf16,
    "f16": lambda x: x.astype(np.float16).view(np.uint16),
    "e4m3": lambda x: torch.from_numpy(x).to(torch.float8_e4m3fn).view(torch.uint8).numpy(),
    "e5m2": lambda x: torch.from_numpy(x).to(torch.float8_e5m2).view(torch.uint8).numpy(),
    "tf32": lambda x: x.view(np.uint32) & np.uint32(0xFFFFE000),
}
DECODE = {
    "bf16": lambda b: (b.astype(np.uint32) << 16).view(np.float32),
    "f16": lambda b: b.view(np.float16).astype(np.float32),
    "e4m3": lambda b: torch.from_numpy(b).view(torch.float8_e4m3fn).float().numpy(),
    "e5m2": lambda b: torch.from_numpy(b).view(torch.float8_e5m2).float().numpy(),
    "tf32": lambda b: b.view(np.float32),
}
SHAPES = [("bf16", 16), ("bf16", 8), ("f16", 16), ("f16", 8), ("tf32", 8), ("tf32", 4), ("e4m3", 32), ("e5m2", 16)]


def operands(kinds, k):
    a, b = (RANDOM.standard_normal((rows, k)).astype(np.float32) for rows in (16, 8))
    return ENCODE[kinds[0]](a), ENCODE[kinds[1]](b), RANDOM.standard_normal((16, 8)).astype(np.float32)


def fragment(bits):
    """[rows, k] as registers [half of k * half of rows, lane]: lane l has 4 bytes of each 16 of row l / 4."""
    words = np.ascontiguousarray(bits).view(np.uint32)
    rows, half = words.shape[0] // 8, words.shape[1] // 4
    return words.reshape(rows, 8, half, 4).transpose(2, 0, 1, 3).reshape(half * rows, 32)


def of_lanes(matrix):
    """[16, 8] as the four registers of every lane."""
    return matrix.reshape(2, 8, 4, 2).transpose(0, 3, 1, 2).reshape(4, 32)


def product(kinds, k, a, b, c, warps=1, line=None):
    """What a warp leaves in D, [16, 8]; every warp does the same."""
    inputs = np.concatenate([fragment(a), fragment(b), of_lanes(c).view(np.uint32)])
    registers = [f"%r{100 + i}" for i in range(len(inputs))]
    loads = "".join(f"ld.global.u32 {r}, [%d1+{128 * i}];" for i, r in enumerate(registers))
    n_a, n_b = len(fragment(a)), len(fragment(b))
    named = registers[:n_a], registers[n_a : n_a + n_b], registers[n_a + n_b :]
    listed = ", ".join("{" + ", ".join(x) + "}" for x in named)
    line = line or f"mma.sync.aligned.m16n8k{k}.row.col.f32.{kinds[0]}.{kinds[1]}.f32"
    out = np.zeros((warps, 4, 32), np.float32)
    run(
        f"""mad.wide.u32 %d1, %lane, 4, %a1; {loads} {line} {{%r200, %r201, %r202, %r203}}, {listed};
        mad.lo.u32 %r1, %warp, 128, %lane; mad.wide.u32 %o, %r1, 4, %a0;"""
        + "".join(f"st.global.u32 [%o+{128 * i}], %r{200 + i};" for i in range(4)),
        out, inputs, block=32 * warps,
    )  # fmt: skip
    return out.reshape(warps, 2, 2, 8, 4).transpose(0, 1, 3, 4, 2).reshape(warps, 16, 8)


@pytest.mark.parametrize(("kind", "k"), SHAPES)
@pytest.mark.parametrize("warps", [1, 3])
def test_a_product_is_that_of_numpy(kind, k, warps):
    a, b, c = operands((kind, kind), k)
    expected = DECODE[kind](a) @ DECODE[kind](b).T + c
    for d in product((kind, kind), k, a, b, c, warps):
        np.testing.assert_allclose(d, expected, rtol=1e-5, atol=1e-5)


def test_fp8_formats_may_be_mixed():
    kinds = ("e4m3", "e5m2")
    a, b, c = operands(kinds, 32)
    expected = DECODE["e4m3"](a) @ DECODE["e5m2"](b).T + c
    np.testing.assert_allclose(product(kinds, 32, a, b, c)[0], expected, rtol=1e-5, atol=1e-5)


def test_products_in_a_row_add_up():
    a, b, c = operands(("bf16", "bf16"), 16)
    line = """mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%r106, %r107, %r108, %r109}, {%r100, %r101, %r102,
    %r103}, {%r104, %r105}, {%r106, %r107, %r108, %r109}; mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"""
    expected = 2 * (DECODE["bf16"](a) @ DECODE["bf16"](b).T) + c
    np.testing.assert_allclose(product(("bf16", "bf16"), 16, a, b, c, line=line)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("mma.sync.aligned.m16n8k16.row.row.f32.bf16.bf16.f32", "none of col"),
        ("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16", "these types"),
        ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.f16.f32", "these types"),
        ("mma.sync.aligned.m16n8k16.row.col.satfinite.f32.bf16.bf16.f32", "these types"),
        ("mma.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32", "this shape for these types"),
        ("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32", "this number of registers"),
        ("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32", "none of m16n8k32"),
        ("mma.sp.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "these types"),
    ],
)
def test_what_is_not_known_is_refused(line, message):
    a, b, c = operands(("bf16", "bf16"), 16)
    with pytest.raises(UnsupportedInstruction, match=message):
        product(("bf16", "bf16"), 16, a, b, c, line=line)


def test_a_part_of_a_warp_is_refused():
    a, b, c = operands(("bf16", "bf16"), 16)
    line = "setp.lt.u32 %p1, %lane, 16; @%p1 bra OUT; bra.uni GO; OUT: ret; GO: mma.sync.aligned.m16n8k16.row.col"
    with pytest.raises(UnsupportedInstruction, match="diverged warp"):
        product(("bf16", "bf16"), 16, a, b, c, line=f"{line}.f32.bf16.bf16.f32")
