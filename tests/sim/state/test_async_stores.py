"""`st.async`: what lands in a peer's shared memory, when, and what it reports."""

import numpy as np
import pytest
from snippet import run

from cute_attn.sim.errors import (
    CopyInFlight,
    Misaligned,
    OutOfBounds,
    Race,
    TransactionCount,
    UninitializedRead,
    UnsupportedInstruction,
)
from cute_attn.sim.skeleton.check import check
from cute_attn.sim.skeleton.program import skeleton_of
from cute_attn.sim.state.steps import COPY, Recorder, Warp

MODES = ["eager", "late", "random", "starve"]
every_mode = pytest.mark.parametrize("mode", MODES)
TYPES = [
    ("b32", 1, np.uint32), ("u32", 2, np.uint32), ("f32", 4, np.float32), ("s32", 1, np.int32),
    ("b64", 1, np.uint64), ("s64", 2, np.int64), ("f64", 2, np.float64), ("u64", 1, np.uint64),
]  # fmt: skip

# CTA r sends to CTA 1 - r, which waits for it; the mbarrier is at smem, data from smem + 64 on.
EXCHANGE = """
    mov.u32 %r9, smem; mov.u32 %r1, %cluster_ctarank; xor.b32 %r2, %r1, 1;
    setp.ne.u32 %p1, %t, 0; @%p1 bra READY;
    mbarrier.init.shared.b64 [%r9], 1; mbarrier.arrive.expect_tx.shared.b64 _, [%r9], {bytes};
    READY: barrier.cluster.arrive; barrier.cluster.wait;
    mapa.shared::cluster.u32 %r10, %r9, %r2; mad.lo.u32 %r11, %t, {size}, %r10; mad.lo.u32 %r12, %t, {size}, %r9;
    {send}
    {wait}
    {receive}
    barrier.cluster.arrive; barrier.cluster.wait;"""
MEET = "barrier.cluster.arrive; barrier.cluster.wait;"
SEND = "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%r11+64], %t, [%r10];"
WAIT = "AGAIN: mbarrier.try_wait.parity.shared.b64 %p2, [%r9], 0; @!%p2 bra AGAIN;"


def exchanged(
    kind, count, dtype, mode="eager", *, wait=WAIT, form="weak.", barrier="%r10", extra=0, shift=64, **options
):
    """What each of two CTAs of one warp got from the other, and what it should be."""
    item = np.dtype(dtype).itemsize
    size, prefix = item * count, {4: "%r", 8: "%d"}[item]
    names = [f"{prefix}{40 + i}" for i in range(count)]
    vector = f"v{count}." if count > 1 else ""
    listed = f"{{{', '.join(names)}}}" if count > 1 else names[0]
    data = (np.arange(2 * 32 * count) * 3 - 50).astype(dtype)
    out = np.zeros_like(data)
    load = f"mad.lo.u32 %r13, %r1, 32, %t; mad.wide.u32 %d9, %r13, {size}, %a0; mad.wide.u32 %d10, %r13, {size}, %a1;"
    load += "".join(f"ld.global.b{8 * item} {name}, [%d9+{item * i}];" for i, name in enumerate(names))
    send = f"{load} st.async.{form}shared::cluster.mbarrier::complete_tx::bytes.{vector}{kind} "
    send += f"[%r11+{shift}], {listed}, [{barrier}];"
    receive = "".join(
        f"ld.shared.b{8 * item} {name}, [%r12+{64 + item * i}]; st.global.b{8 * item} [%d10+{item * i}], {name};"
        for i, name in enumerate(names)
    )
    body = EXCHANGE.format(bytes=32 * size + extra, size=size, send=send, wait=wait, receive=receive)
    run(body, data, out, grid=2, cluster=2, smem=1024, mode=mode, **options)
    return out, np.roll(data, 32 * count)


@every_mode
@pytest.mark.parametrize(("kind", "count", "dtype"), TYPES)
def test_values_land_in_the_peer_before_its_phase_is_over(kind, count, dtype, mode):
    got, expected = exchanged(kind, count, dtype, mode)
    np.testing.assert_array_equal(got, expected)


def test_the_scope_may_be_said_and_weak_left_out():
    for form in ("", "weak.cluster."):
        got, expected = exchanged("b32", 1, np.uint32, form=form)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("mode", ["late", "starve"])
def test_reading_before_the_wait_is_found(mode):
    with pytest.raises((CopyInFlight, UninitializedRead)):
        exchanged("b32", 4, np.uint32, mode, wait="")


@every_mode
def test_every_lane_reports_its_bytes(mode):
    with pytest.raises(TransactionCount, match="transaction bytes"):
        exchanged("b32", 1, np.uint32, mode, extra=4)


@every_mode
def test_it_reports_to_an_mbarrier_beside_its_target(mode):
    with pytest.raises(OutOfBounds, match=r"a store to CTA . of the cluster reports to an mbarrier of CTA ."):
        exchanged("b32", 1, np.uint32, mode, barrier="%r9")


def test_a_vector_is_aligned_to_its_size():
    with pytest.raises(Misaligned, match="not a multiple of 8"):
        exchanged("b32", 2, np.uint32, shift=68)


@pytest.mark.parametrize("before", ["ld.shared.b32 %r3, [%r12+64];", "st.shared.b32 [%r12+64], %t;"])
def test_what_the_peer_did_there_and_nothing_orders_before_it_is_a_race(before):
    send = f"st.shared.b32 [%r12+64], 0; {MEET} setp.eq.u32 %p3, %r1, 0; @%p3 {before} BETWEEN {SEND}"
    body = EXCHANGE.format(bytes=128, size=4, send=send, wait=WAIT, receive="")
    run(body.replace("BETWEEN", MEET), np.zeros(1), grid=2, cluster=2, smem=1024, races=True)
    with pytest.raises(Race, match=r"^store of shared address \w+, and nothing orders it behind"):
        run(body.replace("BETWEEN", ""), np.zeros(1), grid=2, cluster=2, smem=1024, races=True)


def test_the_bytes_of_a_warp_are_a_step_of_its_skeleton():
    recorder = Recorder((2, 1, 1), 32)
    exchanged("b32", 4, np.uint32, recorder=recorder)
    skeleton = skeleton_of(recorder)
    sent = [s for s in skeleton.clusters[0][Warp((0, 0, 0), 0)] if s.what == COPY]
    assert [(s.number, s.thing.place) for s in sent] == [(32 * 16, (1, 0, 0))]
    assert check(skeleton).verified


@pytest.mark.parametrize(
    "lines",
    [
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b64 [%r1], {%d1, %d2, %d3, %d4}, [%r1];",
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%r1], %r2, [%r1];",
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b16 [%r1], %h2, [%r1];",
        "st.async.weak.shared::cluster.b32 [%r1], %r2, [%r1];",
        "st.async.release.gpu.global.b32 [%a0], %r2;",
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%r1], %r2;",
    ],
)
def test_other_forms_are_refused(lines):
    with pytest.raises(UnsupportedInstruction):
        run(lines, np.zeros(1, np.uint32))
