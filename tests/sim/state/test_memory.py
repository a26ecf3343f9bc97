"""Loads, stores and atomics in every address space, and what is wrong about some of them."""

import numpy as np
import pytest
from snippet import run, tensor_map

from cute_attn.sim.errors import Misaligned, OutOfBounds, SharedMemoryExceeded, UninitializedRead

RANDOM = np.random.default_rng(5)
SLOT = "mov.u32 %r9, smem; mad.lo.u32 %r8, %t, 16, %r9;"  # %r8: 16 bytes of shared memory a thread


@pytest.mark.parametrize("vector", ["v2.b32", "v4.b32", "b64", "v2.b64", "b16", "v4.b16", "v8.b32"])
def test_vectors_travel_through_global_memory(vector):
    count, bits = int(vector[1]) if vector[0] == "v" else 1, int(vector.split("b")[1])
    size = count * bits // 8
    source = RANDOM.integers(0, 256, 32 * size, dtype=np.uint8)
    out = np.zeros_like(source)
    registers = ", ".join(f"%{ {16: 'h', 32: 'r', 64: 'd'}[bits] }{10 + i}" for i in range(count))
    registers = f"{{{registers}}}" if count > 1 else registers
    body = f"""
    mad.wide.u32 %d1, %t, {size}, %a1; ld.global.{vector} {registers}, [%d1];
    mad.wide.u32 %d2, %t, {size}, %a0; st.global.{vector} [%d2], {registers};"""
    run(body, out, source)
    np.testing.assert_array_equal(out, source)


def test_narrow_loads_extend_by_their_type():
    source = RANDOM.integers(0, 256, 64, dtype=np.uint8)
    out = np.zeros((32, 2), np.uint32)
    body = """
    mad.wide.u32 %d1, %t, 2, %a1; ld.global.s8 %r1, [%d1]; ld.global.u8 %r2, [%d1+1];
    mad.wide.u32 %d2, %t, 8, %a0; st.global.v2.b32 [%d2], {%r1, %r2};"""
    run(body, out, source)
    np.testing.assert_array_equal(out[:, 0].view(np.int32), source[::2].view(np.int8))
    np.testing.assert_array_equal(out[:, 1], source[1::2])


@pytest.mark.parametrize("space", ["shared", "generic", "static"])
def test_threads_pass_values_through_shared_memory(space):
    out = np.zeros(64, np.uint32)
    address = "mov.u32 %r9, smem;" if space != "static" else "mov.u32 %r9, table;"
    body = f"{address} mad.lo.u32 %r8, %t, 4, %r9; xor.b32 %r7, %t, 37; mad.lo.u32 %r6, %r7, 4, %r9;"
    if space == "generic":
        body += "cvt.u64.u32 %d1, %r8; cvta.shared.u64 %d1, %d1; st.u32 [%d1], %t; bar.sync 0;"
        body += "cvt.u64.u32 %d1, %r6; cvta.shared.u64 %d1, %d1; ld.u32 %r5, [%d1];"
    else:
        body += "st.shared.u32 [%r8], %t; bar.sync 0; ld.shared.u32 %r5, [%r6];"
    body += "mad.wide.u32 %o, %t, 4, %a0; st.global.u32 [%o], %r5;"
    run(body, out, block=64, smem=256 if space != "static" else 0, shared=".shared .align 16 .b8 table[256];")
    np.testing.assert_array_equal(out, np.arange(64) ^ 37)


@pytest.mark.parametrize("line", ["st.shared.u32 [%r2+8192], %t;", "cp.async.ca.shared.global [%r2+8192], [%a1], 4;"])
def test_a_register_and_an_offset_make_an_address_of_the_register_s_bits(line):
    """The register holds an address below zero."""
    out, source = np.zeros(32, np.uint32), np.full(1, 5, np.uint32)
    body = f"""mov.u32 %r9, smem; mad.lo.u32 %r1, %t, 4, %r9; sub.u32 %r2, %r1, 8192; {line} cp.async.wait_all;
    ld.shared.u32 %r3, [%r2+8192]; ld.shared.u32 %r4, [%r1]; add.u32 %r3, %r3, %r4; mad.wide.u32 %o, %t, 4, %a0;
    st.global.u32 [%o], %r3;"""
    run(body, out, source, smem=128)
    np.testing.assert_array_equal(out, 2 * np.arange(32) if line.startswith("st") else 10)


def test_local_memory_is_each_threads_own():
    out = np.zeros(64, np.uint32)
    body = """
    mov.u64 %d1, depot; cvta.local.u64 %d2, %d1;
    st.local.u32 [%d1+4], %t; ld.u32 %r1, [%d2+4];
    mad.wide.u32 %o, %t, 4, %a0; st.global.u32 [%o], %r1;"""
    run(body, out, block=64, declarations=".local .align 8 .b8 depot[16];")
    np.testing.assert_array_equal(out, np.arange(64))


def test_guarded_loads_do_not_touch_memory_in_lanes_that_are_off():
    out, source = np.zeros(32, np.uint32), np.arange(8, dtype=np.uint32)
    body = """
    mov.b32 %r1, 77; setp.lt.u32 %p1, %t, 8; mad.wide.u32 %d1, %t, 4, %a1; @%p1 ld.global.u32 %r1, [%d1];
    mad.wide.u32 %o, %t, 4, %a0; st.global.u32 [%o], %r1;"""
    run(body, out, source)
    np.testing.assert_array_equal(out, np.where(np.arange(32) < 8, np.arange(32), 77))


def test_parameters_by_value_and_by_address():
    out = np.zeros(2, np.uint32)
    body = "ld.param.v2.b32 {%r1, %r2}, [p1+4]; mov.b64 %d1, p1; ld.param.b32 %r3, [%d1+12];"
    body += "st.global.v2.b32 [%a0], {%r2, %r3};"
    run(body, out, np.arange(10, 14, dtype=np.uint32).tobytes(), block=1)
    np.testing.assert_array_equal(out, [12, 13])


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("ld.global.u32 %r1, [%a0+128];", OutOfBounds, "past the end of argument 0"),
        ("ld.global.u32 %r1, [%a0+-4];", OutOfBounds, "no buffer"),
        ("st.global.u32 [%a0+126], %t;", Misaligned, "multiple of 4"),
        ("ld.global.v4.u32 {%r1,%r2,%r3,%r4}, [%a0+8];", Misaligned, "multiple of 16"),
        ("ld.shared.u32 %r1, [smem+512];", SharedMemoryExceeded, "beyond the shared memory asked for"),
        ("st.shared.u32 [smem+2], %t;", Misaligned, "multiple of 4"),
        ("ld.shared.u32 %r1, [8];", OutOfBounds, "outside this CTA's shared memory"),
        ("ld.shared.u32 %r1, [smem+64];", UninitializedRead, "nobody wrote"),
        ("st.shared.u16 [smem+64], 1; ld.shared.u32 %r1, [smem+64];", UninitializedRead, "nobody wrote"),
    ],
)
def test_bad_accesses_are_named_with_line_and_warp(line, error, message):
    out = np.zeros(32, np.uint32)
    with pytest.raises(error, match=message) as caught:
        run(line, out, smem=512)
    place = caught.value.place
    assert place.kernel == "kernel"
    assert place.warps == (0,)
    assert place.cta == (0, 0, 0)
    assert place.text
    assert caught.value.subject


def test_outputs_that_nobody_wrote_may_be_marked():
    out = np.zeros(32, np.uint32)
    body = "mad.wide.u32 %o, %t, 4, %a0; {} ld.global.u32 %r1, [%o];"
    run(body.format("st.global.u32 [%o], %t;"), out, unwritten=[0])
    with pytest.raises(UninitializedRead, match="argument 0"):
        run(body.format(""), out, unwritten=[0])


def test_what_a_tensor_store_wrote_may_be_read():
    out = np.zeros((8, 8), np.uint32)
    body = """
    mov.u32 %r9, smem; mov.u32 %r1, 7; mad.lo.u32 %r8, %t, 8, %r9; st.shared.v2.u32 [%r8], {%r1, %t};
    fence.proxy.async.shared::cta; bar.sync 0; mov.b64 %d1, p1; mov.u32 %r2, 0; setp.ne.u32 %p1, %t, 0; @%p1 bra STORED;
    cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%d1, {%r2, %r2}], [%r9];
    cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;
    STORED: bar.sync 0; mad.wide.u32 %o, %t, 8, %a0; ld.global.u32 %r3, [%o+4]; st.global.u32 [%o], %r3;"""
    run(body, out, tensor_map(out, (8, 8)), smem=256, unwritten=[0])
    np.testing.assert_array_equal(out.reshape(32, 2), np.arange(32)[:, None].repeat(2, 1))


@pytest.mark.parametrize("space", ["global", "shared"])
def test_atomic_sums_of_equal_addresses_add_up(space):
    out = np.zeros(4, np.uint32)
    target = "[%o]" if space == "global" else "[%r8]"
    body = f"""
    and.b32 %r1, %t, 3; mad.wide.u32 %o, %r1, 4, %a0; mov.u32 %r9, smem; mad.lo.u32 %r8, %r1, 4, %r9;
    st.shared.u32 [%r8], 0; bar.sync 0;
    red.{space}.add.u32 {target}, %t; bar.sync 0;"""
    if space == "shared":
        body += "ld.shared.u32 %r2, [%r8]; st.global.u32 [%o], %r2;"
    run(body, out, block=64, smem=16)
    np.testing.assert_array_equal(out, [np.arange(i, 64, 4).sum() for i in range(4)])


def test_atomics_return_the_old_value_once_each():
    out, counter = np.zeros(64, np.uint32), np.zeros(1, np.uint32)
    run(
        "atom.global.add.u32 %r1, [%a1], 1; mad.wide.u32 %o, %t, 4, %a0; st.global.u32 [%o], %r1;",
        out,
        counter,
        block=64,
    )
    np.testing.assert_array_equal(np.sort(out), np.arange(64))
    assert counter[0] == 64


@pytest.mark.parametrize(
    ("operation", "expected"),
    [("min.s32", -16), ("max.s32", 15), ("and.b32", 0), ("or.b32", -1), ("exch.b32", None), ("inc.u32", None)],
)
def test_other_atomic_operations(operation, expected):
    out = np.array([3], np.int32)
    run(f"sub.s32 %r1, %t, 16; atom.global.{operation} %r2, [%a0], %r1;", out)
    assert expected is None or out[0] == expected


def test_compare_and_swap_succeeds_once():
    out = np.zeros(1, np.uint32)
    winners = np.zeros(1, np.uint32)
    body = "add.u32 %r1, %t, 1; atom.global.cas.b32 %r2, [%a0], 0, %r1;"
    body += "setp.eq.u32 %p1, %r2, 0; @%p1 red.global.add.u32 [%a1], 1;"
    run(body, out, winners, block=64)
    assert winners[0] == 1
    assert out[0] != 0


@pytest.mark.parametrize("form", ["v4.f32", "f32", "noftz.bf16x2"])
def test_several_float_reductions_of_an_element_are_reported(form):
    """By several CTAs, or by the lanes of one instruction: nobody knows in which order they come."""
    out = np.zeros(4, np.float32)
    if form == "noftz.bf16x2":
        body = "setp.eq.u32 %p1, %t, 0; @%p1 red.global.add.noftz.bf16x2 [%a0], 0x3f803f80;"
    elif form == "f32":
        body = "red.global.add.f32 [%a0], 0f3F800000;"
    else:
        body = "mov.b32 %r1, 0f3F800000; red.global.add.v4.f32 [%a0], {%r1, %r1, %r1, %r1};"
    report = run(body, out, grid=3)
    assert report.reduced == {"argument 0"}
    assert bool(run(body, out, grid=1).reduced) == (form != "noftz.bf16x2")
    expected = {"v4.f32": [128] * 4, "f32": [128, 0, 0, 0]}.get(form)
    if expected:
        np.testing.assert_array_equal(out, expected)
    else:
        assert out.view(np.uint32)[0] == 0x40804080


def test_one_float_reduction_of_each_element_is_in_no_order():
    body = "mad.wide.u32 %o, %t, 4, %a0; red.global.add.f32 [%o], 0f3F800000;"
    assert run(body, np.zeros(32, np.float32)).reduced == frozenset()
    assert run(body + body, np.zeros(32, np.float32)).reduced == {"argument 0"}


def test_matrices_travel_between_fragments_and_rows():
    """stmatrix then ldmatrix with .trans on one side transposes every 8x8 matrix."""
    source = RANDOM.integers(0, 2**16, (4, 8, 8)).astype(np.uint16)
    out = np.zeros_like(source)
    body = """
    shl.b32 %r1, %lane, 2; mov.u32 %r9, smem; mad.lo.u32 %r8, %lane, 16, %r9;
    mad.wide.u32 %d1, %r1, 1, %a1;
    ld.global.b32 %r11, [%d1]; ld.global.b32 %r12, [%d1+128];
    ld.global.b32 %r13, [%d1+256]; ld.global.b32 %r14, [%d1+384];
    stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r8], {%r11, %r12, %r13, %r14};
    ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%r21, %r22, %r23, %r24}, [%r8];
    mad.wide.u32 %d2, %r1, 1, %a0;
    st.global.b32 [%d2], %r21; st.global.b32 [%d2+128], %r22;
    st.global.b32 [%d2+256], %r23; st.global.b32 [%d2+384], %r24;"""
    run(body, out, source, smem=512)
    np.testing.assert_array_equal(out, source.transpose(0, 2, 1))


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("instruction", ["ldmatrix", "stmatrix"])
def test_matrix_accesses_of_every_count_take_rows_from_the_addresses_of_their_lanes(instruction, transposed, count):
    """Lane 8 m + r names row r of matrix m; register m of lane l holds row l / 4, columns 2 (l % 4) and the next."""
    source = RANDOM.integers(0, 2**16, (count, 8, 8)).astype(np.uint16)
    out = np.zeros_like(source)
    registers = [f"%r{10 + m}" for m in range(count)]
    words = "mov.u32 %r9, smem; mad.lo.u32 %r8, %lane, 16, %r9; mad.lo.u32 %r7, %lane, 4, %r9;"
    words += "mad.wide.u32 %d1, %lane, 4, %a1; mad.wide.u32 %d2, %lane, 4, %a0;"
    load = "".join(f"ld.global.b32 {r}, [%d1+{128 * m}];" for m, r in enumerate(registers))
    store = "".join(f"st.global.b32 [%d2+{128 * m}], {r};" for m, r in enumerate(registers))
    into = "".join(f"st.shared.b32 [%r7+{128 * m}], {r};" for m, r in enumerate(registers)) + "bar.sync 0;"
    out_of = "bar.sync 0;" + "".join(f"ld.shared.b32 {r}, [%r7+{128 * m}];" for m, r in enumerate(registers))
    form = f"{instruction}.sync.aligned.m8n8.x{count}{'.trans' if transposed else ''}.shared.b16"
    vector = f"{{{', '.join(registers)}}}"
    line = f"{form} {vector}, [%r8];" if instruction == "ldmatrix" else f"{form} [%r8], {vector};"
    body = words + load + (into + line if instruction == "ldmatrix" else line + out_of) + store
    run(body, out, source, smem=128 * count)
    np.testing.assert_array_equal(out, source.transpose(0, 2, 1) if transposed else source)


def test_stmatrix_transposed_writes_columns():
    source = RANDOM.integers(0, 2**16, (8, 8)).astype(np.uint16)
    out = np.zeros_like(source)
    body = """
    mov.u32 %r9, smem; mad.lo.u32 %r8, %lane, 16, %r9; mad.wide.u32 %d1, %lane, 4, %a1; ld.global.b32 %r1, [%d1];
    stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%r8], {%r1};
    bar.sync 0; mad.lo.u32 %r7, %lane, 4, %r9; ld.shared.b32 %r2, [%r7];
    mad.wide.u32 %d2, %lane, 4, %a0; st.global.b32 [%d2], %r2;"""
    run(body, out, source, smem=512)
    np.testing.assert_array_equal(out, source.T)


@pytest.mark.parametrize("offset", [8, -8, 4])
def test_what_is_no_part_of_a_parameter_is_not_loaded(offset):
    with pytest.raises(OutOfBounds, match=r"of parameter p0, which has 8"):
        run(f"ld.param.u64 %d1, [p0+{offset}];", np.zeros(4, np.uint64))
