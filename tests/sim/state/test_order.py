"""Ordinary stores and what the async proxy does behind them: which fences and barriers order the one for the other."""

import numpy as np
import pytest
from snippet import run

from cute_attn.sim.errors import MissingBarrier, MissingProxyFence

every_mode = pytest.mark.parametrize("mode", ["eager", "late", "random"])
FENCE, SYNC = "fence.proxy.async.shared::cta;", "bar.sync 0;"
# Every thread stores 16 bytes of ones; the first lane of warp 0 copies all 2 KiB to global memory.
STORE = """
    mov.u32 %r9, smem; mad.lo.u32 %r8, %t, 16, %r9; mov.u32 %r1, 1; setp.ne.u32 %p1, %t, 0; setp.ne.u32 %p2, %warp, 0;
    @%p1 bra READY; mbarrier.init.shared.b64 [%r9+4096], 128; READY: bar.sync 0;
    st.shared.v4.u32 [%r8], {%r1, %r1, %r1, %r1};
"""
COPY = """
    @%p1 bra END; cp.async.bulk.global.shared::cta.bulk_group [%a0], [%r9], 2048; cp.async.bulk.commit_group;
    cp.async.bulk.wait_group 0; END:
"""
FULL = "W: mbarrier.try_wait.parity{}.shared.b64 %p8, [%r9+4096], 0; @!%p8 bra W;"
ARRIVE = "mbarrier.arrive{}.shared.b64 _, [%r9+4096];"
PAIRS = "shr.u32 %r2, %warp, 1; add.u32 %r2, %r2, 1; bar.sync %r2, 64;"
# warps 3 and 2 meet, then 2 and 1, then 1 and 0
CHAIN = """
    setp.lt.u32 %p4, %warp, 2; @%p4 bra A; bar.sync 1, 64; A: setp.eq.u32 %p4, %warp, 1; setp.eq.u32 %p5, %warp, 2;
    or.pred %p6, %p4, %p5; @!%p6 bra B; bar.sync 2, 64; B: setp.gt.u32 %p4, %warp, 1; @%p4 bra C; bar.sync 3, 64; C:
"""
# the other warps count themselves in shared memory, warp 0 looks until all are there
COUNT = """
    @!%p2 bra LOOK; elect.sync _|%p4, -1; @%p4 red.shared.add.u32 [%r9+4104], 1; bra.uni SEEN;
    LOOK: ld.volatile.shared.u32 %r3, [%r9+4104]; setp.lt.u32 %p4, %r3, 3; @%p4 bra LOOK; SEEN:
"""
ZERO = "@%p1 bra ZEROED; st.shared.u32 [%r9+4104], 0; ZEROED: bar.sync 0;"


def copied(between, mode, **options):
    out = np.zeros(512, np.uint32)
    run(STORE + between + COPY, out, block=128, smem=8192, mode=mode, **options)
    return out


@every_mode
@pytest.mark.parametrize(
    "between",
    [
        FENCE + SYNC,
        "fence.proxy.async;" + SYNC,
        "fence.proxy.async.shared::cluster;" + SYNC,
        SYNC + FENCE,  # by the thread that copies: on the way from every store to the copy
        FENCE + ARRIVE.format("") + FULL.format(""),
        FENCE + ARRIVE.format(".release.cta") + FULL.format(".acquire.cta"),
        FENCE + CHAIN,
        FENCE + PAIRS + SYNC,
        FENCE + ZERO + COUNT,
        FENCE + "barrier.cluster.arrive; barrier.cluster.wait;",
    ],
)
def test_a_fence_and_a_barrier_on_the_way_order_stores_before_a_copy(between, mode):
    assert (copied(between, mode) == 1).all()


@every_mode
@pytest.mark.parametrize(
    "between",
    [
        SYNC,
        "fence.proxy.async.global;" + SYNC,
        "fence.proxy.alias;" + SYNC,
        "fence.acq_rel.cta;" + SYNC,
        "membar.gl;" + SYNC,
        "setp.eq.u32 %p4, %warp, 3; @%p4 bra SKIP;" + FENCE + "SKIP:" + SYNC,
        SYNC + "@!%p2 bra SKIP;" + FENCE + "SKIP:",  # by all but those that copy
    ],
)
def test_another_fence_or_none_does_not(between, mode):
    with pytest.raises(MissingProxyFence, match=r"asynchronous read of shared address .* with no fence.proxy.async"):
        copied(between, mode)


@every_mode
@pytest.mark.parametrize(
    "between",
    [
        FENCE,
        FENCE + PAIRS,
        FENCE + "bar.warp.sync -1;",
        FENCE + ARRIVE.format(".relaxed.cta") + FULL.format(""),
        FENCE + ARRIVE.format("") + FULL.format(".relaxed.cta"),
        FENCE + "barrier.cluster.arrive.relaxed; barrier.cluster.wait;",
        "bar.arrive 1, 256; bar.arrive 1, 256;" + FENCE,
    ],
)
def test_without_a_barrier_for_both_warps_a_copy_may_come_first(between, mode):
    with pytest.raises(MissingBarrier, match=r"written by ordinary stores of warp \d: no barrier orders warp 0 behind"):
        copied(between, mode)


@every_mode
def test_a_fence_behind_the_arrival_comes_too_late(mode):
    """Warps 1 to 3 say that they stored, and fence only then."""
    late = f"@!%p2 bra FIRST; bar.arrive 1, 128; {FENCE} bra.uni SAID; FIRST: bar.sync 1, 128; SAID:"
    with pytest.raises(MissingProxyFence, match=r"ordinary stores of warp [0123]"):
        copied(late, mode)


@every_mode
@pytest.mark.parametrize("space", ["", ".shared::cluster", ".shared::cta"])
def test_stores_into_the_memory_of_a_peer_need_a_fence_of_the_cluster_s(space, mode):
    body = f"""
    mov.u32 %r9, smem; mov.u32 %r1, %cluster_ctarank; xor.b32 %r2, %r1, 1; mapa.shared::cluster.u32 %r3, %r9, %r2;
    barrier.cluster.arrive; barrier.cluster.wait; mad.lo.u32 %r4, %t, 16, %r3; mov.u32 %r5, %ctaid.x;
    st.shared::cluster.v4.u32 [%r4], {{%r5, %r5, %r5, %r5}}; fence.proxy.async{space};
    barrier.cluster.arrive; barrier.cluster.wait;
    setp.ne.u32 %p1, %t, 0; @%p1 bra END; mad.wide.u32 %d1, %r5, 512, %a0;
    cp.async.bulk.global.shared::cta.bulk_group [%d1], [%r9], 512; cp.async.bulk.commit_group;
    cp.async.bulk.wait_group 0; END:"""
    out = np.zeros((2, 128), np.uint32)
    if space == ".shared::cta":
        with pytest.raises(MissingProxyFence, match=r"ordinary stores of warp 0 of CTA [01] of the cluster"):
            run(body, out, grid=2, cluster=2, smem=512, mode=mode)
    else:
        run(body, out, grid=2, cluster=2, smem=512, mode=mode)
        assert (out == [[1], [0]]).all()


@every_mode
@pytest.mark.parametrize("barrier", [SYNC, ""])
def test_a_load_over_what_another_warp_stored_needs_a_barrier_too(barrier, mode):
    source = np.zeros(512, np.uint32)
    body = f"""{STORE} {FENCE} {barrier} setp.ne.u32 %p7, %warp, 1; @%p7 bra END; elect.sync _|%p4, -1; @!%p4 bra END;
    mbarrier.init.shared.b64 [%r9+4104], 1; mbarrier.arrive.expect_tx.shared.b64 _, [%r9+4104], 2048;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r9], [%a0], 2048, [%r9+4104];
    W: mbarrier.try_wait.parity.shared.b64 %p8, [%r9+4104], 0; @!%p8 bra W; END:"""
    if barrier:
        run(body, source, block=128, smem=8192, mode=mode)
    else:
        with pytest.raises(MissingBarrier, match=r"asynchronous write .* 0x400, .* warp 0: no barrier"):
            run(body, source, block=128, smem=8192, mode=mode)


# Every warp stores its 16 rows of A, 32 bytes each, and as much of B, 2 KiB behind; then its part of one of them again.
ROWS = """
    mov.u32 %r9, smem; mad.lo.u32 %r8, %t, 16, %r9; mov.u32 %r1, 0x3f803f80; mov.b64 %d3, {a}; mov.b64 %d4, {b};
    st.shared.v4.u32 [%r8], {{%r1, %r1, %r1, %r1}}; st.shared.v4.u32 [%r8+2048], {{%r1, %r1, %r1, %r1}};
    {fence} bar.sync 0;
    st.shared.v4.u32 [%r8+{target}], {{%r1, %r1, %r1, %r1}}; {fence} {barrier}
    setp.eq.u32 %p5, %r9, 0; wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {{{accumulator}}}, %d3, %d4, %p5, 1, 1, {major}, 0;
    wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0; mad.wide.u32 %o, %t, 4, %a0;
    st.global.b32 [%o], %r100;"""


def product(target, barrier, mode, seed=0, major=0):
    """What the first register of every thread holds of the product of ones."""
    swizzle_32 = 3 << 62 | 16 << 32 | 1 << 16  # groups of eight rows 256 bytes apart
    mn_major = 16 << 32 | 8 << 16  # blocks of 8 rows by 8 of k: the next rows 256 bytes on, the next of k 128
    out = np.zeros(128, np.float32)
    text = ROWS.format(
        a=1024 >> 4 | (mn_major if major else swizzle_32), b=3072 >> 4 | swizzle_32, fence=FENCE,
        target=target, barrier=barrier, accumulator=", ".join(f"%r{100 + i}" for i in range(32)), major=major,
    )  # fmt: skip
    run(text, out, block=128, smem=4096, mode=mode, seed=seed)
    return out


SCHEDULES = [("eager", 0), ("late", 0), *(("random", seed) for seed in range(5))]


def test_every_warp_multiplies_with_all_of_b_so_that_a_barrier_must_come_before():
    for mode, seed in SCHEDULES:
        assert (product(2048, SYNC, mode, seed) == 16).all()
        with pytest.raises(
            MissingBarrier, match=r"of shared address 0xc00, written .* warp 0: no barrier orders warp 1"
        ):
            product(2048, "", mode, seed)


@pytest.mark.parametrize("major", [0, 1])
def test_of_a_every_warp_reads_its_own_rows_alone_and_needs_no_barrier_for_them(major):
    for mode, seed in SCHEDULES:
        assert (product(0, "", mode, seed, major) == 16).all()


@every_mode
def test_a_missing_fence_that_is_to_be_warned_of_hides_no_missing_barrier(mode):
    assert (copied(SYNC, mode, warned=[MissingProxyFence]) == 1).all()
    with pytest.raises(MissingBarrier):
        copied("", mode, warned=[MissingProxyFence])
    only_barriers = copied(FENCE, mode, warned=[MissingBarrier])
    assert only_barriers.any()
    with pytest.raises(MissingProxyFence):
        copied("", mode, warned=[MissingBarrier])
