"""Warpgroup matrix multiply: both operand sources, both major orders, every swizzle, type and width, and its rules."""

import numpy as np
import pytest
import torch
from snippet import bf16, from_bf16, run

from cute_attn.sim.errors import (
    AccumulatorInFlight,
    CopyInFlight,
    MissingProxyFence,
    SharedMemoryExceeded,
    UnsupportedDescriptor,
    UnsupportedInstruction,
)

RANDOM = np.random.default_rng(13)
every_mode = pytest.mark.parametrize("mode", ["eager", "late", "random"])
ENCODE = {
    "bf16": bf16,
    "f16": lambda x: np.ascontiguousarray(x, np.float16).view(np.uint16),
    "e4m3": lambda x: torch.from_numpy(x).to(torch.float8_e4m3fn).view(torch.uint8).numpy(),
    "e5m2": lambda x: torch.from_numpy(x).to(torch.float8_e5m2).view(torch.uint8).numpy(),
    "tf32": lambda x: x.view(np.uint32) & np.uint32(0xFFFFE000),
}
DECODE = {
    "bf16": from_bf16,
    "f16": lambda b: b.view(np.float16).astype(np.float32),
    "e4m3": lambda b: torch.from_numpy(b).view(torch.float8_e4m3fn).float().numpy(),
    "e5m2": lambda b: torch.from_numpy(b).view(torch.float8_e5m2).float().numpy(),
    "tf32": lambda b: b.view(np.float32),
}
FENCE, COMMIT, WAIT = (f"wgmma.{x}.sync.aligned" for x in ("fence", "commit_group", "wait_group"))
SWIZZLE = {0: (16, 0, 0), 128: (128, 1, 0x70), 64: (64, 2, 0x30), 32: (32, 3, 0x10)}  # pitch, field, address bits


def laid_out(bits, major, span):
    """Bytes of an operand [rows, k] in shared memory (from a multiple of 1024), and a descriptor's offsets.

    Tiles of 8 rows by one pitch (K-major), or one pitch of rows by 8 k (MN-major), one after another.
    """
    pitch, _, mask = SWIZZLE[span]
    rows, k = bits.shape
    size = bits.itemsize
    r, c = np.meshgrid(np.arange(rows), np.arange(k), indexing="ij")
    per_row = pitch // size
    if major == 0:
        leading, stride = rows * pitch, 8 * pitch  # next pitch of k; next 8 rows
        offset = r % 8 * pitch + r // 8 * stride + c % per_row * size + c // per_row * leading
    else:
        across, along = k * pitch, 8 * pitch  # next pitch of rows; next 8 k
        offset = r % per_row * size + r // per_row * across + c % 8 * pitch + c // 8 * along
        leading, stride = (across, along) if span else (along, across)
    offset = offset ^ (offset >> 3 & mask)
    raw = np.zeros(rows * k * size, np.uint8)
    raw.view(bits.dtype)[offset.reshape(-1) // size] = bits.reshape(-1)
    return raw, leading, stride


def descriptor(address, leading, stride, span):
    return address >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | SWIZZLE[span][1] << 62


def multiply(
    a_bits,
    b_bits,
    *,
    kinds=("bf16", "bf16"),
    majors=(0, 0),
    spans=(128, 128),
    from_registers=False,
    mode="eager",
    seed=0,
    accumulate=0,
    scale=1,
    lines="{MMA}",
    extra_smem=0,
    reports=None,
):
    """D [64, n] of one wgmma with the accumulator started at 1."""
    n, k = b_bits.shape
    raw_a, leading_a, stride_a = laid_out(a_bits, majors[0], spans[0])
    raw_b, leading_b, stride_b = laid_out(b_bits, majors[1], spans[1])
    start_b = 1024 + -(-raw_a.size // 1024) * 1024
    shared = np.zeros(start_b - 1024 + raw_b.size, np.uint8)
    shared[: raw_a.size] = raw_a
    shared[start_b - 1024 :] = raw_b
    registers = [f"%r{100 + i}" for i in range(n // 2)]
    load = (
        ["mad.wide.u32 %d5, %t, 16, %a2; ld.global.v4.b32 {%r50, %r51, %r52, %r53}, [%d5];"] if from_registers else []
    )
    first = "{%r50, %r51, %r52, %r53}" if from_registers else "%d3"
    transposes = "" if k != 16 else f", {majors[1]}" if from_registers else f", {majors[0]}, {majors[1]}"
    mma = f"""wgmma.mma_async.sync.aligned.m64n{n}k{k}.f32.{kinds[0]}.{kinds[1]} {{{", ".join(registers)}}},
    {first}, %d4, %p5, {scale}, 1{transposes};"""
    stores = [f"st.global.f32 [%o+{4 * 128 * i}], {r};" for i, r in enumerate(registers)]
    body = f"""
    mov.u32 %r1, %t; mov.u32 %r9, smem;
    F: mad.lo.u32 %r2, %r1, 4, %r9; mad.wide.u32 %o, %r1, 4, %a1; ld.global.u32 %r3, [%o]; st.shared.u32 [%r2], %r3;
    add.u32 %r1, %r1, 128; setp.lt.u32 %p1, %r1, {shared.size // 4}; @%p1 bra F;
    fence.proxy.async.shared::cta; bar.sync 0;
    {"".join(f"mov.b32 {r}, 0f3F800000;" for r in registers)} {"".join(load)}
    mov.b64 %d3, {descriptor(1024, leading_a, stride_a, spans[0])};
    mov.b64 %d4, {descriptor(start_b, leading_b, stride_b, spans[1])};
    mov.b32 %r4, {accumulate}; setp.ne.b32 %p5, %r4, 0;
    {lines.replace("{MMA}", f"{FENCE}; MMA {COMMIT}; {WAIT} 0;").replace("MMA", mma)}
    mad.wide.u32 %o, %t, 4, %a0; {"".join(stores)}"""
    out = np.zeros((n // 2, 128), np.float32)
    fragment = np.ascontiguousarray(fragments_of(a_bits)) if from_registers else np.zeros(1, np.uint32)
    report = run(body, out, shared, fragment, block=128, smem=shared.size + extra_smem, mode=mode, seed=seed)
    if reports is not None:
        reports.append(report)
    d = np.empty((64, n), np.float32)
    register, thread = np.meshgrid(np.arange(n // 2), np.arange(128), indexing="ij")
    row = thread // 32 * 16 + register // 2 % 2 * 8 + thread % 32 // 4
    d[row, register // 4 * 8 + thread % 4 * 2 + register % 2] = out
    return d


def fragments_of(bits):
    """A [64, k] as each thread's four registers, [128, 4]."""
    words = np.ascontiguousarray(bits).view(np.uint32)  # [64, 8]
    thread, register = np.meshgrid(np.arange(128), np.arange(4), indexing="ij")
    return words[thread // 32 * 16 + register % 2 * 8 + thread % 32 // 4, register // 2 * 4 + thread % 4]


def operands(kinds, n, k):
    values = (RANDOM.standard_normal((64, k)).astype(np.float32), RANDOM.standard_normal((n, k)).astype(np.float32))
    return [ENCODE[kind](v) for kind, v in zip(kinds, values, strict=True)]


def check(d, a, b, kinds, *, plus=0.0, sign=1.0):
    exact = sign * DECODE[kinds[0]](a).astype(np.float64) @ DECODE[kinds[1]](b).T.astype(np.float64) + plus
    assert np.all(np.abs(d - exact) <= 1e-5 * (1 + np.abs(exact)))


@pytest.mark.parametrize("span", [0, 32, 64, 128])
@pytest.mark.parametrize("majors", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_both_major_orders_with_every_swizzle(majors, span):
    # MN-major tiles are one pitch of rows wide: 64 rows of A and 128 of B are whole pitches for each swizzle
    kinds = ("bf16", "bf16")
    a, b = operands(kinds, 128, 16)
    spans = tuple(span if major or span in (0, 32) else 32 for major in majors)  # a K-major step of 16 fills 32 bytes
    check(multiply(a, b, majors=majors, spans=spans), a, b, kinds)


@pytest.mark.parametrize("span", [64, 128])
def test_k_major_operands_in_rows_wider_than_a_step(span):
    """The second step of a row of 64 or 128 bytes: the descriptor starts 32 bytes into the tile."""
    kinds, per_row = ("bf16", "bf16"), span // 2
    a, b = operands(kinds, 64, per_row)
    raw, leading, stride = laid_out(a, 0, span)
    raw_b, _, _ = laid_out(b, 0, span)
    shared = np.concatenate([raw, raw_b])
    out = np.zeros((32, 128), np.float32)
    registers = ", ".join(f"%r{100 + i}" for i in range(32))
    body = f"""
    mov.u32 %r1, %t; mov.u32 %r9, smem;
    F: mad.lo.u32 %r2, %r1, 4, %r9; mad.wide.u32 %o, %r1, 4, %a1; ld.global.u32 %r3, [%o]; st.shared.u32 [%r2], %r3;
    add.u32 %r1, %r1, 128; setp.lt.u32 %p1, %r1, {shared.size // 4}; @%p1 bra F;
    fence.proxy.async.shared::cta; bar.sync 0; setp.ne.u32 %p5, %r9, %r9; setp.eq.u32 %p6, %r9, %r9;
    mov.b64 %d3, {descriptor(1024, leading, stride, span)};
    mov.b64 %d4, {descriptor(1024 + raw.size, leading, stride, span)};
    wgmma.fence.sync.aligned;"""
    for step in range(per_row // 16):
        body += f"""wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {{{registers}}},
        %d3, %d4, %p{5 + bool(step)}, 1, 1, 0, 0;
        add.u64 %d3, %d3, 2; add.u64 %d4, %d4, 2;"""
    body += "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0; mad.wide.u32 %o, %t, 4, %a0;"
    body += "".join(f"st.global.b32 [%o+{512 * i}], %r{100 + i};" for i in range(32))
    run(body, out, shared, block=128, smem=shared.size)
    register, thread = np.meshgrid(np.arange(32), np.arange(128), indexing="ij")
    d = np.empty((64, 64), np.float32)
    row = thread // 32 * 16 + register // 2 % 2 * 8 + thread % 32 // 4
    d[row, register // 4 * 8 + thread % 4 * 2 + register % 2] = out
    check(d, a, b, kinds)


@pytest.mark.parametrize("n", range(8, 257, 8))
def test_widths_from_8_to_256(n):
    kinds = ("bf16", "bf16")
    a, b = operands(kinds, n, 16)
    check(multiply(a, b, spans=(32, 32)), a, b, kinds)


@pytest.mark.parametrize(
    "kinds", [("f16", "f16"), ("e4m3", "e4m3"), ("e4m3", "e5m2"), ("e5m2", "e4m3"), ("tf32", "tf32")]
)
def test_every_type(kinds):
    a, b = operands(kinds, 32, {"f16": 16, "tf32": 8}.get(kinds[0], 32))
    check(multiply(a, b, kinds=kinds, spans=(32, 32)), a, b, kinds)


@every_mode
@pytest.mark.parametrize("kinds", [("bf16", "bf16"), ("f16", "f16"), ("e4m3", "e4m3"), ("e5m2", "e4m3")])
def test_a_from_registers(kinds, mode):
    a, b = operands(kinds, 64, 16 if kinds[0] in ("bf16", "f16") else 32)
    check(multiply(a, b, kinds=kinds, spans=(32, 32), from_registers=True, mode=mode), a, b, kinds)


@every_mode
def test_accumulation_and_negation(mode):
    kinds = ("bf16", "bf16")
    a, b = operands(kinds, 16, 16)
    check(multiply(a, b, spans=(32, 32), accumulate=1, mode=mode), a, b, kinds, plus=1.0)
    check(multiply(a, b, spans=(32, 32), accumulate=1, scale=-1, mode=mode), a, b, kinds, plus=1.0, sign=-1.0)


@every_mode
@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (f"{FENCE}; MMA {COMMIT}; add.f32 %r100, %r100, %r100; {WAIT} 0;", "%r100 is touched"),
        (f"{FENCE}; MMA {COMMIT}; mov.b32 %r7, %r103; {WAIT} 0;", "%r103 is touched"),
        (f"{FENCE}; MMA {COMMIT}; {WAIT} 1; mov.b32 %r7, %r103; {WAIT} 0;", "%r103 is touched"),
        (f"{FENCE}; MMA {WAIT} 0; {COMMIT};", "touched|never waited"),
        (f"MMA {COMMIT}; {WAIT} 0;", "before any wgmma.fence"),
        (f"{FENCE}; mov.b32 %r100, %t; MMA {COMMIT}; {WAIT} 0;", "since the last wgmma.fence"),
        (f"{FENCE}; mov.b32 %r100, 0; mov.b32 %r101, %t; MMA {COMMIT}; {WAIT} 0;", "since the last wgmma.fence"),
        (
            f"{FENCE}; mov.b32 %r100, 0; add.f32 %r100, %r100, %r100; MMA {COMMIT}; {WAIT} 0;",
            "since the last wgmma.fence",
        ),
        (f"{FENCE}; MMA {COMMIT}; {WAIT} 0; mov.b32 %r7, %r103; MMA {COMMIT}; {WAIT} 0;", "read since the last"),
        (f"{FENCE}; mov.b32 %r7, %r103; MMA {COMMIT}; {WAIT} 0;", "read since the last"),
        (f"{FENCE}; @%p1 mov.b32 %r100, 0; MMA {COMMIT}; {WAIT} 0;", "since the last wgmma.fence"),
        (f"{FENCE}; MMA {COMMIT}; ret; {WAIT} 0;", "never waited"),
    ],
)
def test_accumulators_belong_to_the_wgmma_until_it_is_waited_for(lines, message, mode):
    a, b = operands(("bf16", "bf16"), 16, 16)
    with pytest.raises(AccumulatorInFlight, match=message):
        multiply(a, b, spans=(32, 32), lines=lines, mode=mode)


@every_mode
def test_behind_a_fence_an_accumulator_that_was_read_is_overwritten_and_fragments_may_be_read_anywhere(mode):
    kinds = ("bf16", "bf16")
    a, b = operands(kinds, 16, 16)
    lines = f"{FENCE}; MMA {COMMIT}; {WAIT} 0; mov.b32 %r7, %r103; {FENCE}; MMA {COMMIT}; {WAIT} 0;"
    check(multiply(a, b, spans=(32, 32), lines=lines, mode=mode), a, b, kinds)
    lines = f"{FENCE}; MMA {COMMIT}; {WAIT} 0; mov.b32 %r7, %r51; MMA {COMMIT}; {WAIT} 0;"
    check(multiply(a, b, spans=(32, 32), from_registers=True, lines=lines, mode=mode), a, b, kinds)


@every_mode
def test_a_fragment_that_is_set_to_constants_behind_the_fence_is_an_error(mode):
    a, b = operands(("bf16", "bf16"), 16, 16)
    lines = f"{FENCE}; mov.b32 %r50, 0; MMA {COMMIT}; {WAIT} 0;"
    with pytest.raises(AccumulatorInFlight, match="since the last"):
        multiply(a, b, spans=(32, 32), from_registers=True, lines=lines, mode=mode)


@every_mode
@pytest.mark.parametrize("source", ["0f40000000", "%r40"])
def test_an_accumulator_that_is_set_to_constants_behind_the_fence_is_a_warning(source, mode):
    kinds = ("bf16", "bf16")
    a, b = operands(kinds, 16, 16)
    moves = "".join(f"mov.b32 %r{100 + i}, {source};" for i in range(8))
    lines = f"mov.b32 %r40, 0f40000000; {FENCE}; {moves} MMA {COMMIT}; {WAIT} 0;"
    reports = []
    d = multiply(a, b, spans=(32, 32), accumulate=1, lines=lines, mode=mode, reports=reports)
    check(d, a, b, kinds, plus=2.0)
    assert "set to constants since the last wgmma.fence" in reports[0].warnings[0]
    assert len(reports[0].warnings) == 1


def test_a_register_that_a_product_changes_is_no_constant():
    a, b = operands(("bf16", "bf16"), 16, 16)
    lines = f"{FENCE}; MMA {COMMIT}; {WAIT} 0; {FENCE}; mov.b32 %r101, %r100; MMA {COMMIT}; {WAIT} 0;"
    with pytest.raises(AccumulatorInFlight, match="since the last"):
        multiply(a, b, spans=(32, 32), lines=lines)


IN_TWO_GROUPS = f"{FENCE}; MMA {COMMIT}; setp.eq.u32 %p5, %r9, %r9; MMA {COMMIT}; {WAIT} 0;"


@pytest.mark.parametrize("from_registers", [False, True])
def test_groups_on_one_accumulator_run_in_order(from_registers):
    """The first does not accumulate, so it would overwrite what a later one left."""
    kinds = ("bf16", "bf16")
    a, b = operands(kinds, 16, 16)
    for mode, seed in [("eager", 0), ("late", 0), *(("random", seed) for seed in range(60))]:
        d = multiply(a, b, spans=(32, 32), from_registers=from_registers, lines=IN_TWO_GROUPS, mode=mode, seed=seed)
        check(d / 2, a, b, kinds)


@every_mode
@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            "{%r104, %r105, %r106, %r107, %r100, %r101, %r102, %r103}, %d3, %d4",
            "accumulator registers with one of another",
        ),
        ("{%r200, %r201, %r202, %r203, %r204, %r205, %r206, %r207}, {%r100, %r101, %r102, %r103}, %d4", "reads, as A"),
        ("{%r50, %r51, %r52, %r53, %r204, %r205, %r206, %r207}, {%r60, %r61, %r62, %r63}, %d4", "reads as A"),
    ],
)
def test_other_products_must_not_share_registers_with_one_in_flight(second, message, mode):
    a, b = operands(("bf16", "bf16"), 16, 16)
    from_registers = "%r50" in second
    transposes = "0" if second.count("{") > 1 else "0, 0"
    other = f"wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {second}, %p5, 1, 1, {transposes};"
    lines = f"{FENCE}; MMA {COMMIT}; {other} {COMMIT}; {WAIT} 0;"
    with pytest.raises(AccumulatorInFlight, match=message):
        multiply(a, b, spans=(32, 32), from_registers=from_registers, lines=lines, mode=mode)


@every_mode
def test_operands_must_not_be_overwritten_before_the_wait(mode):
    a, b = operands(("bf16", "bf16"), 16, 16)
    lines = f"{FENCE}; MMA {COMMIT}; st.shared.u32 [%r9], %t; {WAIT} 0;"
    with pytest.raises(CopyInFlight, match="still reads"):
        multiply(a, b, spans=(32, 32), lines=lines, mode=mode)


def test_operands_written_by_ordinary_stores_need_a_proxy_fence():
    a, b = operands(("bf16", "bf16"), 16, 16)
    with pytest.raises(MissingProxyFence, match="ordinary stores of warp 3"):
        multiply(a, b, spans=(32, 32), lines="st.shared.u32 [%r9], 0; bar.sync 0; {MMA}")


def test_descriptors_are_checked():
    a, b = operands(("bf16", "bf16"), 16, 16)
    with pytest.raises(UnsupportedDescriptor, match="bits outside"):
        multiply(a, b, spans=(32, 32), lines=f"or.b64 %d3, %d3, {1 << 49}; {{MMA}}")
    with pytest.raises(UnsupportedDescriptor, match="differs between the threads"):
        multiply(a, b, spans=(32, 32), lines="cvt.u64.u32 %d9, %warp; add.u64 %d3, %d3, %d9; {MMA}")
    with pytest.raises(SharedMemoryExceeded, match="shared memory is"):
        multiply(a, b, spans=(32, 32), lines="add.u64 %d4, %d4, 16; {MMA}")


def test_shapes_and_types_that_do_not_exist():
    a, b = operands(("bf16", "bf16"), 16, 16)
    with pytest.raises(UnsupportedInstruction):
        multiply(a, b, kinds=("bf16", "f64"), spans=(32, 32))
