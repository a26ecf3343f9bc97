"""Asynchronous copies: cp.async, bulk and tensor copies, swizzles, boxes that stick out, reductions, multicast."""

import numpy as np
import pytest
from snippet import bf16, from_bf16, run, tensor_map

from cute_attn.sim.errors import (
    CopyInFlight,
    MissingProxyFence,
    OutOfBounds,
    RedundantReduction,
    TransactionCount,
    UninitializedRead,
    UnsupportedDescriptor,
)

RANDOM = np.random.default_rng(9)
every_mode = pytest.mark.parametrize("mode", ["eager", "late", "random"])
# %r9: shared memory; %r9: an mbarrier of one arrival; %r8 = %r9 + 1024: the data; %p9: not thread 0
SETUP = """
    mov.u32 %r9, smem; add.u32 %r8, %r9, 1024; setp.ne.u32 %p9, %t, 0;
    @%p9 bra READY; mbarrier.init.shared.b64 [%r9], 1; fence.mbarrier_init.release.cluster; READY: bar.sync 0;
"""
WAIT = "W: mbarrier.try_wait.parity.shared.b64 %p8, [%r9], 0; @!%p8 bra W;"
LOAD = "cp.async.bulk.tensor.{0}d.shared::cta.global.tile.mbarrier::complete_tx::bytes"
STORE = "cp.async.bulk.tensor.{0}d.global.shared::cta.tile.bulk_group"
# shared memory [%r8, + {0} bytes) to global memory %a0, a word a thread at a time
COPY_OUT = """
    mov.u32 %r1, %t;
    C: mad.lo.u32 %r2, %r1, 4, %r8; ld.shared.u32 %r3, [%r2]; mad.wide.u32 %o, %r1, 4, %a0; st.global.u32 [%o], %r3;
    add.u32 %r1, %r1, 32; setp.lt.u32 %p1, %r1, {0}; @%p1 bra C;
"""


def load(map_bytes, rank, coordinates, size, mode, **options):
    """The shared memory, `size` bytes of it, after one tensor load."""
    out = np.zeros(size // 4, np.uint32)
    coordinates = ", ".join(f"%r{20 + i}" for i in range(rank))
    body = f"""{SETUP}
    {"".join(f"mov.u32 %r{20 + i}, {c};" for i, c in enumerate(options.pop("at")))}
    mov.b64 %d1, p1; @%p9 bra ISSUED;
    mbarrier.arrive.expect_tx.shared.b64 _, [%r9], {size};
    {LOAD.format(rank)} [%r8], [%d1, {{{coordinates}}}], [%r9];
    ISSUED: {WAIT} {COPY_OUT.format(size // 4)}"""
    run(body, out, map_bytes, *options.pop("keep"), smem=1024 + size, mode=mode)
    return out.view(np.uint8)


def swizzle(raw, span):
    """Dense bytes as they lie in shared memory that begins at a multiple of 1024."""
    address = np.arange(0, raw.size, 16)
    moved = address ^ (address >> 3 & {0: 0, 32: 0x10, 64: 0x30, 128: 0x70}[span])
    stored = np.empty((raw.size // 16, 16), np.uint8)
    stored[moved // 16] = raw.reshape(-1, 16)
    return stored.reshape(-1)


@every_mode
@pytest.mark.parametrize("span", [0, 32, 64, 128])
def test_tensor_loads_with_every_swizzle(span, mode):
    array = RANDOM.integers(0, 2**16, (40, 128)).astype(np.uint16)
    columns = (span or 64) // 2
    got = load(
        tensor_map(array, (16, columns), swizzle=span), 2, 2, 16 * columns * 2, mode, at=(columns, 8), keep=[array]
    )
    dense = np.ascontiguousarray(array[8:24, columns : 2 * columns]).view(np.uint8).reshape(-1)
    np.testing.assert_array_equal(got, swizzle(dense, span))


@pytest.mark.parametrize(("column", "row"), [(-3, -2), (26, 35), (100, 0), (-64, -64)])
def test_elements_outside_the_tensor_are_zero(column, row):
    array = RANDOM.random((40, 32)).astype(np.float32)
    got = load(tensor_map(array, (8, 16)), 2, 2, 8 * 16 * 4, "eager", at=(column, row), keep=[array])
    padded = np.zeros((200, 200), np.float32)
    padded[80:120, 80:112] = array
    expected = padded[80 + row : 88 + row, 80 + column : 96 + column]
    np.testing.assert_array_equal(got.view(np.float32).reshape(8, 16), expected)


@pytest.mark.parametrize("rank", [1, 3, 4, 5])
def test_boxes_of_every_rank(rank):
    full = RANDOM.random((3, 4, 5, 6, 16)[5 - rank :] if rank > 1 else (64,)).astype(np.float32)
    box = (2, 2, 3, 2, 8)[5 - rank :] if rank > 1 else (32,)
    at = tuple(1 if i else 4 for i in range(rank))
    got = load(tensor_map(full, box), rank, rank, int(np.prod(box)) * 4, "eager", at=at, keep=[full])
    where = tuple(slice(a, a + b) for a, b in zip(at[::-1], box, strict=True))
    np.testing.assert_array_equal(got.view(np.float32).reshape(box), full[where])


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2)])
def test_boxes_of_tensors_with_gaps_and_in_any_order_of_axes(axes):
    whole = RANDOM.random((6, 10, 24)).astype(np.float32)
    tensor = whole[1:, ::2, 4:20].transpose(axes)
    box = (3, 2, 8)
    got = load(tensor_map(tensor, box), 3, 3, 192, "eager", at=(4, 1, 2), keep=[whole])
    np.testing.assert_array_equal(got.view(np.float32).reshape(box), tensor[2:5, 1:3, 4:12])


def stored(array, box, at, span, line, mode, source, fence=True, before="", after=""):
    """Fills shared memory with `source`, then issues `line` from one thread and waits for it."""
    words = source.size * source.itemsize // 4
    body = f"""{SETUP}
    mov.b64 %d1, p0; mov.u32 %r1, %t; mov.u32 %r20, {at[0]}; mov.u32 %r21, {at[1]};
    F: mad.lo.u32 %r2, %r1, 4, %r8; mad.wide.u32 %o, %r1, 4, %a2; ld.global.u32 %r3, [%o]; st.shared.u32 [%r2], %r3;
    add.u32 %r1, %r1, 32; setp.lt.u32 %p1, %r1, {words}; @%p1 bra F;
    {"fence.proxy.async.shared::cta;" if fence else ""} bar.sync 0; {before} @%p9 bra END;
    {line} cp.async.bulk.commit_group; {after or "cp.async.bulk.wait_group 0;"}
    END:"""
    run(body, tensor_map(array, box, swizzle=span), array, source, smem=1024 + 4 * words, mode=mode)


@every_mode
@pytest.mark.parametrize("span", [0, 32, 64, 128])
def test_tensor_stores_with_every_swizzle_drop_what_lies_outside(span, mode):
    columns = (span or 128) // 2
    array, before = (np.full((20, columns), 7, np.uint16) for _ in range(2))
    tile = RANDOM.integers(0, 2**16, (8, columns)).astype(np.uint16)
    source = swizzle(tile.view(np.uint8).reshape(-1), span).view(np.uint32)
    line = STORE.format(2) + " [%d1, {%r20, %r21}], [%r8];"
    stored(array, (8, columns), (0, 15), span, line, mode, source)
    before[15:20] = tile[:5]
    np.testing.assert_array_equal(array, before)


@every_mode
@pytest.mark.parametrize("kind", ["float32", "uint16"])
def test_tensor_reductions_add(kind, mode):
    array = RANDOM.random((16, 32)).astype(np.float32)
    tile = RANDOM.random((8, 32)).astype(np.float32)
    expected = array.copy()
    line = "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%d1, {%r20, %r21}], [%r8];"
    if kind == "uint16":  # bfloat16
        target = bf16(array)
        stored(target, (8, 32), (0, 4), 0, line, mode, bf16(tile).view(np.uint32))
        expected = from_bf16(bf16(array))
        expected[4:12] = from_bf16(bf16(expected[4:12] + from_bf16(bf16(tile))))
        np.testing.assert_array_equal(from_bf16(target), expected)
    else:
        stored(array, (8, 32), (0, 4), 0, line, mode, tile)
        expected[4:12] += tile
        np.testing.assert_array_equal(array, expected)


def test_a_missing_proxy_fence_names_the_address_and_the_writer():
    array = np.zeros((16, 32), np.float32)
    line = STORE.format(2) + " [%d1, {%r20, %r21}], [%r8];"
    with pytest.raises(MissingProxyFence, match="ordinary stores of warp 0") as caught:
        stored(array, (8, 32), (0, 0), 0, line, "eager", np.zeros((8, 32), np.float32), fence=False)
    assert caught.value.subject == "shared 0x800"


def test_a_reduction_by_every_lane_is_an_error_a_store_is_made_once_a_warp():
    array, tile = np.zeros((16, 32), np.float32), np.ones((8, 32), np.float32)
    body = f"""{SETUP} mov.b64 %d1, p0; mad.lo.u32 %r2, %t, 32, %r8; mov.u32 %r3, 0; mov.u32 %r20, 0;
    st.shared.v4.b32 [%r2], {{%r3, %r3, %r3, %r3}}; st.shared.v4.b32 [%r2+16], {{%r3, %r3, %r3, %r3}};
    fence.proxy.async.shared::cta; bar.sync 0;
    ISSUE cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;"""
    arguments = tensor_map(array, (8, 32)), array, tile
    store = body.replace("ISSUE", STORE.format(2) + " [%d1, {%r20, %r20}], [%r8];")
    assert run(store, *arguments, smem=2048).warnings == ()
    (warning,) = run(store, *arguments, block=64, smem=4096).warnings
    assert "several warps issue the same bulk store" in warning
    line = "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%d1, {%r20, %r20}], [%r8];"
    with pytest.raises(RedundantReduction, match="lanes 0 and 1"):
        run(body.replace("ISSUE", line), *arguments, smem=2048)


@every_mode
def test_the_same_reduction_by_two_warps_is_an_error(mode):
    out, source = np.zeros(64, np.float32), np.ones(64, np.float32)
    body = (
        BULK.format(256, WAIT).split("mov.u32 %r1, %t;")[0]
        + """
    setp.ne.u32 %p7, %lane, 0; @%p7 bra END;
    cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%a0], [%r8], 256;
    cp.async.bulk.commit_group; cp.async.bulk.wait_group 0; END:"""
    )
    with pytest.raises(RedundantReduction, match=r"warps [01] and [01]"):
        run(body, out, source, smem=2048, mode=mode, block=64)


def test_the_source_of_a_store_must_not_be_written_while_it_is_read():
    array = np.zeros((16, 32), np.float32)
    line = STORE.format(2) + " [%d1, {%r20, %r21}], [%r8];"
    with pytest.raises(CopyInFlight, match="still reads"):
        stored(array, (8, 32), (0, 0), 0, line, "eager", np.ones((8, 32), np.float32), after="st.shared.u32 [%r8], %t;")
    with pytest.raises(CopyInFlight, match="the CTA ends while"):
        stored(array, (8, 32), (0, 0), 0, line, "eager", np.ones((8, 32), np.float32), after="mov.u32 %r1, 0;")


BULK = f"""{SETUP} @%p9 bra ISSUED;
    mbarrier.arrive.expect_tx.shared.b64 _, [%r9], {{0}};
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r8], [%a1], 256, [%r9];
    ISSUED: {{1}} {COPY_OUT.format(64)}"""


@every_mode
def test_bulk_loads(mode):
    out, source = np.zeros(64, np.uint32), RANDOM.integers(0, 2**32, 64, dtype=np.uint32)
    run(BULK.format(256, WAIT), out, source, smem=2048, mode=mode)
    np.testing.assert_array_equal(out, source)


def test_reading_before_the_wait_is_found_in_a_late_schedule():
    out, source = np.zeros(64, np.uint32), RANDOM.integers(0, 2**32, 64, dtype=np.uint32)
    with pytest.raises(CopyInFlight, match="copy in flight writes") as caught:
        run(BULK.format(256, ""), out, source, smem=2048, mode="late")
    assert "mbarrier 0x400" in str(caught.value)


@every_mode
@pytest.mark.parametrize("expected", [128, 512])
def test_wrong_expected_bytes(expected, mode):
    out, source = np.zeros(64, np.uint32), np.zeros(64, np.uint32)
    with pytest.raises(TransactionCount, match="mbarrier 0x400"):
        run(BULK.format(expected, WAIT), out, source, smem=2048, mode=mode)


def test_bulk_copies_are_checked_at_both_ends():
    out = np.zeros(64, np.uint32)
    with pytest.raises(OutOfBounds, match="no buffer"):
        run(BULK.format(256, WAIT), out, np.zeros(60, np.uint32), smem=2048)
    line = "cp.async.bulk.global.shared::cta.bulk_group [%a0], [%r8], 256; cp.async.bulk.commit_group;"
    body = f"{SETUP} @%p9 bra END; {line} END:"
    with pytest.raises(UninitializedRead, match="nobody wrote"):
        run(body, out, smem=2048)


@every_mode
def test_bulk_reductions_add_floats(mode):
    out, source = np.ones(64, np.float32), RANDOM.random(64).astype(np.float32)
    body = (
        BULK.format(256, WAIT).split("mov.u32 %r1, %t;")[0]
        + """
    @%p9 bra END; cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%a0], [%r8], 256;
    cp.async.bulk.commit_group; cp.async.bulk.wait_group.read 0; END:"""
    )
    report = run(body, out, source, smem=2048, mode=mode, grid=2)
    np.testing.assert_allclose(out, 1 + 2 * source, rtol=1e-6)
    assert report.reduced == {"argument 0"}
    assert run(body, np.zeros_like(out), source, smem=2048, mode=mode).reduced == frozenset()


@every_mode
def test_bulk_reductions_of_one_cta_are_in_no_order_either(mode):
    out, source = np.zeros(64, np.float32), RANDOM.random(64).astype(np.float32)
    add = "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%a0], [{}], 16; cp.async.bulk.commit_group;"
    body = BULK.format(256, WAIT).split("mov.u32 %r1, %t;")[0]
    body += f"@%p9 bra END; {add.format('%r8')} {add.format('%r8+16')} cp.async.bulk.wait_group.read 0; END:"
    assert run(body, out, source, smem=2048, mode=mode).reduced == {"argument 0"}


@pytest.mark.parametrize(
    ("operation", "combine"),
    [
        ("add.u32", np.add),
        ("add.s32", np.add),
        ("add.u64", np.add),
        ("min.s32", np.minimum),
        ("max.u32", np.maximum),
        ("and.b32", np.bitwise_and),
        ("or.b32", np.bitwise_or),
        ("xor.b32", np.bitwise_xor),
        ("add.noftz.f16", np.add),
        ("add.noftz.bf16", None),
    ],
)
def test_bulk_reductions_of_every_kind(operation, combine):
    kind = operation.split(".")[-1]
    dtype = {"s32": np.int32, "u64": np.uint64, "f16": np.float16, "bf16": np.uint16}.get(kind, np.uint32)
    body = (
        BULK.format(256, WAIT).split("mov.u32 %r1, %t;")[0]
        + f"""
    @%p9 bra END; cp.reduce.async.bulk.global.shared::cta.bulk_group.{operation} [%a0], [%r8], 256;
    cp.async.bulk.commit_group; cp.async.bulk.wait_group 0; END:"""
    )
    if kind == "bf16":
        out, source = (bf16(RANDOM.standard_normal(128)) for _ in range(2))
        expected = bf16(from_bf16(out) + from_bf16(source))
    elif kind == "f16":
        out, source = (RANDOM.standard_normal(128).astype(dtype) for _ in range(2))
        expected = combine(out, source)
    else:
        out, source = (np.frombuffer(RANDOM.bytes(256), dtype).copy() for _ in range(2))
        expected = combine(out, source)
    run(body, out, source, smem=2048)
    np.testing.assert_array_equal(out, expected)


def test_reductions_without_a_meaning_are_refused():
    line = BULK.format(256, WAIT) + "cp.reduce.async.bulk.global.shared::cta.bulk_group.inc.u32 [%a0], [%r8], 256;"
    with pytest.raises(UnsupportedDescriptor, match="inc"):
        run(line, np.zeros(64, np.uint32), np.zeros(64, np.uint32), smem=2048)


@every_mode
def test_multicast_reaches_every_cta_of_its_mask(mode):
    out, source = np.zeros((4, 64), np.uint32), RANDOM.integers(0, 2**32, (64, 4), dtype=np.uint32)
    cluster_load = LOAD.format(2).replace("shared::cta", "shared::cluster")
    body = f"""{SETUP} mov.b64 %d1, p2; mov.u32 %r20, 0; mov.u16 %h1, 5; mov.u32 %r5, %cluster_ctarank;
    setp.eq.u32 %p5, %r5, 1; setp.eq.u32 %p6, %r5, 3; or.pred %p5, %p5, %p6;
    @%p9 bra EXPECTED; @%p5 bra EXPECTED; mbarrier.arrive.expect_tx.shared.b64 _, [%r9], 1024;
    EXPECTED: barrier.cluster.arrive; barrier.cluster.wait;
    setp.ne.u32 %p6, %r5, 0; or.pred %p6, %p6, %p9; @%p6 bra ISSUED;
    {cluster_load}.multicast::cluster [%r8], [%d1, {{%r20, %r20}}], [%r9], %h1;
    ISSUED: @%p5 bra END; {WAIT}
    mad.wide.u32 %d2, %r5, 256, %a0; mov.u64 %a0, %d2; {COPY_OUT.format(64)}
    END: barrier.cluster.arrive; barrier.cluster.wait;"""
    run(body, out, source, tensor_map(source, (64, 4)), grid=4, cluster=4, smem=2048, mode=mode)
    flat = source.reshape(-1)[:64]
    np.testing.assert_array_equal(out, [flat, 0 * flat, flat, 0 * flat])


@every_mode
def test_classic_asynchronous_copies_fill_with_zeros(mode):
    out, source = np.zeros(128, np.uint32), RANDOM.integers(1, 2**32, 128, dtype=np.uint32)
    body = f"""{SETUP} mad.lo.u32 %r2, %t, 16, %r8; mad.wide.u32 %d2, %t, 16, %a1;
    and.b32 %r3, %t, 1; shl.b32 %r3, %r3, 4;
    cp.async.cg.shared.global [%r2], [%d2], 16, %r3; cp.async.commit_group; cp.async.wait_group 0; bar.sync 0;
    {COPY_OUT.format(128)}"""
    run(body, out, source, smem=2048, mode=mode)
    np.testing.assert_array_equal(out.reshape(32, 4), source.reshape(32, 4) * (np.arange(32) % 2)[:, None])
    if mode == "late":
        with pytest.raises(CopyInFlight):
            run(body.replace("cp.async.wait_group 0;", ""), out, source, smem=2048, mode=mode)


RELAY = f"""{SETUP} mad.lo.u32 %r2, %t, 4, %r8; mad.wide.u32 %d2, %t, 4, %a1;
    cp.async.ca.shared.global [%r2], [%d2], 4; bar.sync 1; cp.async.wait_all; {{}}
    xor.b32 %r2, %r2, 128; ld.shared.u32 %r3, [%r2]; mad.wide.u32 %o, %t, 4, %a0; st.global.u32 [%o], %r3;"""


def test_waiting_for_ones_own_classic_copies_says_nothing_of_those_of_another_warp():
    """Each of two warps reads what the other copied."""
    out, source = np.zeros(64, np.uint32), RANDOM.integers(0, 2**32, 64, dtype=np.uint32)
    for mode, seed in (("eager", 0), ("late", 0), ("random", 0), ("starve", 0), ("starve", 1)):
        run(RELAY.format("bar.sync 0;"), out, source, block=64, smem=2048, mode=mode, seed=seed)
        np.testing.assert_array_equal(out, np.roll(source, 32))
        if mode == "starve":
            with pytest.raises(CopyInFlight):
                run(RELAY.format(""), out, source, block=64, smem=2048, mode=mode, seed=seed)


def test_a_source_that_has_been_read_is_not_yet_written_elsewhere():
    """`.read` lets the source be overwritten; the target may be old until all of it is waited for."""
    for wait, expected in (("wait_group.read 0", 0), ("wait_group 0", 7)):
        out, seen = np.zeros(4, np.uint32), np.zeros(4, np.uint32)
        body = f"""{SETUP} mov.u32 %r1, 7; st.shared.v4.u32 [%r8], {{%r1, %r1, %r1, %r1}}; fence.proxy.async;
        cp.async.bulk.global.shared::cta.bulk_group [%a0], [%r8], 16; cp.async.bulk.commit_group;
        cp.async.bulk.{wait}; ld.global.u32 %r2, [%a0]; st.global.u32 [%a1], %r2;
        cp.async.bulk.wait_group 0;"""
        run(body, out, seen, block=1, smem=2048, mode="late")
        assert (int(seen[0]), out.tolist()) == (expected, [7] * 4)


def test_tensor_maps_with_unknown_bits_are_refused():
    array = np.zeros((16, 32), np.float32)
    for word, bit in ((2, 12), (7, 0), (15, 3)):
        raw = bytearray(tensor_map(array, (8, 32)))
        raw[4 * word + bit // 8] |= 1 << bit % 8
        with pytest.raises(UnsupportedDescriptor, match="unknown bits"):
            load(bytes(raw), 2, 2, 1024, "eager", at=(0, 0), keep=[array])
