"""Named barriers, mbarriers and the barrier of a cluster: phases, counts, who is woken, and what goes wrong."""

import numpy as np
import pytest
from snippet import run

from cute_attn.sim.errors import Deadlock, OutOfBounds, OverArrival, TransactionCount

MODES = ["eager", "late", "random"]
every_mode = pytest.mark.parametrize("mode", MODES)
INIT = """
    mov.u32 %r9, smem;
    setp.ne.u32 %p9, %t, 0;
    @%p9 bra READY;
    mbarrier.init.shared.b64 [%r9], {0};
    mbarrier.init.shared.b64 [%r9+8], {1};
    fence.mbarrier_init.release.cluster;
    READY: bar.sync 0;
"""


def wait(address, parity, label):
    return f"{label}: mbarrier.try_wait.parity.shared.b64 %p8, [{address}], {parity}, 10000000; @!%p8 bra {label};"


@every_mode
def test_a_barrier_orders_what_warps_write_and_read(mode):
    out = np.zeros(128, np.uint32)
    body = """
    mov.u32 %r9, smem; mad.lo.u32 %r8, %t, 4, %r9; st.shared.u32 [%r8], %t; bar.sync 0;
    xor.b32 %r7, %t, 96; mad.lo.u32 %r6, %r7, 4, %r9; ld.shared.u32 %r5, [%r6];
    mad.wide.u32 %o, %t, 4, %a0; st.global.u32 [%o], %r5;"""
    run(body, out, block=128, smem=512, mode=mode)
    np.testing.assert_array_equal(out, np.arange(128) ^ 96)


@every_mode
def test_numbers_and_counts_of_named_barriers_come_at_run_time(mode):
    """Pairs of warps meet at barriers 1 + pair; in each pair the first only arrives."""
    out = np.zeros(128, np.uint32)
    body = """
    shr.u32 %r1, %warp, 1; add.u32 %r1, %r1, 1; and.b32 %r2, %warp, 1; setp.ne.u32 %p1, %r2, 0;
    mov.u32 %r9, smem; mov.u32 %r3, 64; mad.lo.u32 %r8, %t, 4, %r9;
    @%p1 bra SECOND;
    st.shared.u32 [%r8], %t; bar.arrive %r1, %r3; bra.uni END;
    SECOND: bar.sync %r1, %r3; ld.shared.u32 %r4, [%r8+-128]; mad.wide.u32 %o, %t, 4, %a0; st.global.u32 [%o], %r4;
    END:"""
    run(body, out, block=128, smem=512, mode=mode)
    thread = np.arange(128)
    np.testing.assert_array_equal(out, np.where(thread // 32 % 2, thread - 32, 0))


@every_mode
def test_mbarrier_phases_alternate(mode):
    """Warp 0 makes eight values, warp 1 takes them, through one slot with a full and an empty barrier."""
    out = np.zeros(8, np.uint32)
    body = f"""
    {INIT.format(1, 1)}
    mov.u32 %r1, 0; setp.ne.u32 %p1, %warp, 0; setp.ne.u32 %p2, %lane, 0; @%p2 bra END;
    @%p1 bra TAKE;
    MAKE: and.b32 %r2, %r1, 1; xor.b32 %r3, %r2, 1;
    {wait("%r9+8", "%r3", "EMPTY")}
    mad.lo.u32 %r4, %r1, %r1, 5; st.shared.u32 [%r9+16], %r4; mbarrier.arrive.shared.b64 %d1, [%r9];
    add.u32 %r1, %r1, 1; setp.lt.u32 %p3, %r1, 8; @%p3 bra MAKE; bra.uni END;
    TAKE: and.b32 %r2, %r1, 1;
    {wait("%r9", "%r2", "FULL")}
    ld.shared.u32 %r4, [%r9+16]; mbarrier.arrive.shared.b64 %d1, [%r9+8];
    mad.wide.u32 %o, %r1, 4, %a0; st.global.u32 [%o], %r4;
    add.u32 %r1, %r1, 1; setp.lt.u32 %p3, %r1, 8; @%p3 bra TAKE;
    END:"""
    run(body, out, block=64, smem=64, mode=mode)
    np.testing.assert_array_equal(out, np.arange(8) ** 2 + 5)


@every_mode
def test_waits_on_a_state_token(mode):
    out = np.zeros(1, np.uint32)
    body = f"""
    {INIT.format(64, 1)}
    mbarrier.arrive.shared.b64 %d1, [%r9];
    AGAIN: mbarrier.test_wait.shared.b64 %p1, [%r9], %d1; @!%p1 bra AGAIN;
    st.global.u32 [%a0], 1;"""
    run(body, out, block=64, smem=64, mode=mode)
    assert out[0] == 1


@every_mode
def test_a_look_outside_a_loop_does_not_wait(mode):
    """The look may say no, and the wait that follows it then waits."""
    out = np.zeros(2, np.uint32)
    body = f"""
    {INIT.format(1, 1)}
    setp.ne.u32 %p1, %warp, 0; @%p1 bra OTHER;
    mbarrier.try_wait.parity.shared.b64 %p2, [%r9], 0;
    selp.b32 %r1, 1, 0, %p2;
    elect.sync _|%p4, -1;
    @%p4 mbarrier.arrive.shared.b64 _, [%r9+8];
    @%p2 bra PASSED;
    {wait("%r9", 0, "FULL")}
    PASSED: st.global.u32 [%a0], 1; bra.uni END;
    OTHER: {wait("%r9+8", 0, "LOOKED")}
    setp.ne.u32 %p3, %lane, 0; @%p3 bra END; mbarrier.arrive.shared.b64 _, [%r9];
    END:"""
    run(body, out, block=64, smem=64, mode=mode)
    assert out[0] == 1


def test_a_deadlock_says_who_waits_on_what():
    body = INIT.format(2, 1) + wait("%r9", 0, "FULL")
    with pytest.raises(Deadlock) as caught:
        run(body, block=64, smem=64)
    assert "mbarrier 0x400: phase 0 (parity 0), 0 of 2 arrivals" in str(caught.value)
    assert "warps (0, 1) at PTX line" in str(caught.value)
    assert "try_wait" in caught.value.place.text


def test_a_barrier_with_too_few_threads_deadlocks():
    with pytest.raises(Deadlock, match="barrier 3: 64 of 96 threads"):
        run("bar.sync 3, 96;", block=64)


@every_mode
def test_a_barrier_of_the_whole_cta_does_not_wait_for_warps_that_ended(mode):
    out = np.zeros(64, np.uint32)
    body = """
    setp.eq.u32 %p1, %warp, 1; @%p1 ret; bar.sync 0; setp.eq.u32 %p1, %warp, 0; @%p1 ret; bar.sync 0;
    mad.wide.u32 %o, %lane, 4, %a0; st.global.u32 [%o], 1;"""
    run(body, out, block=128, mode=mode)
    np.testing.assert_array_equal(out, np.arange(64) < 32)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("bar.arrive 1, 96; bar.arrive 1, 96;", "96 are expected"),
        ("setp.eq.u32 %p1, %warp, 0; @%p1 bra A; bar.sync 1, 128; bra.uni B; A: bar.sync 1, 96; B:", "others expect"),
        ("bar.sync 1, 40;", "not a multiple of a warp"),
    ],
)
def test_wrong_counts_at_named_barriers(body, message):
    with pytest.raises(OverArrival, match=message):
        run(body, block=64)


def test_more_arrivals_than_a_phase_expects():
    body = INIT.format(3, 1) + "@%p9 bra END; mbarrier.arrive.shared.b64 _, [%r9], 4; END:"
    with pytest.raises(OverArrival, match="4 arrivals where 3 of 3"):
        run(body, smem=64)


def test_bytes_that_never_come_are_reported_at_the_wait_and_at_the_end():
    body = INIT.format(1, 1) + "@%p9 bra END; mbarrier.arrive.expect_tx.shared.b64 _, [%r9], 64; END:"
    with pytest.raises(TransactionCount, match="64 transaction bytes") as caught:
        run(body, smem=64)
    assert caught.value.subject == "mbarrier 0x400"
    with pytest.raises(TransactionCount, match="no copy will deliver"):
        run(body + wait("%r9", 0, "FULL"), smem=64)


def test_barriers_must_be_initialised_and_are_no_data():
    with pytest.raises(OutOfBounds, match="no mbarrier"):
        run("mov.u32 %r9, smem;" + wait("%r9+16", 0, "W"), smem=64)
    with pytest.raises(OutOfBounds, match="belongs to an mbarrier"):
        run(INIT.format(1, 1) + "st.shared.u32 [%r9+4], %t;", smem=64)


@every_mode
def test_ctas_of_a_cluster_write_into_each_other(mode):
    out = np.zeros(4, np.uint32)
    body = """
    mov.u32 %r1, %cluster_ctarank; xor.b32 %r2, %r1, 1; mov.u32 %r9, smem;
    barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.acquire.aligned;
    mapa.shared::cluster.u32 %r3, %r9, %r2; mov.u32 %r4, %ctaid.x; add.u32 %r4, %r4, 10;
    setp.ne.u32 %p1, %t, 0; @%p1 bra SENT; st.shared::cluster.u32 [%r3+16], %r4;
    SENT: barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;
    ld.shared.u32 %r5, [%r9+16]; mov.u32 %r6, %ctaid.x; mad.wide.u32 %o, %r6, 4, %a0; st.global.u32 [%o], %r5;"""
    run(body, out, grid=4, cluster=2, smem=64, mode=mode)
    np.testing.assert_array_equal(out, [11, 10, 13, 12])


@every_mode
def test_arrivals_at_a_barrier_of_a_peer(mode):
    out = np.zeros(2, np.uint32)
    body = f"""
    {INIT.format(2, 1)}
    barrier.cluster.arrive; barrier.cluster.wait;
    setp.ne.u32 %p1, %t, 0; @%p1 bra WAIT;
    mapa.shared::cluster.u32 %r3, %r9, 0; mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r3];
    mapa.shared::cluster.u32 %r3, %r9, 1; mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r3];
    WAIT: {wait("%r9", 0, "BOTH")}
    mov.u32 %r6, %ctaid.x; mad.wide.u32 %o, %r6, 4, %a0; st.global.u32 [%o], 1;
    barrier.cluster.arrive; barrier.cluster.wait;"""
    run(body, out, grid=2, cluster=2, smem=64, mode=mode)
    np.testing.assert_array_equal(out, 1)


@every_mode
def test_ctas_wait_for_each_other_through_global_flags(mode):
    """Each CTA waits for the one after it: the last must start before the first can end."""
    out, flags = np.zeros(5, np.uint32), np.zeros(8, np.uint32)
    body = """
    mov.u32 %r1, %ctaid.x; mad.wide.u32 %d1, %r1, 4, %a1; setp.eq.u32 %p1, %r1, 4; @%p1 bra LAST;
    SPIN: ld.acquire.gpu.global.u32 %r2, [%d1+4]; setp.eq.u32 %p2, %r2, 0; @%p2 bra SPIN; bra.uni GO;
    LAST: mov.u32 %r2, 1;
    GO: mad.wide.u32 %o, %r1, 4, %a0; add.u32 %r3, %r2, 1; setp.ne.u32 %p3, %t, 0; @%p3 bra END;
    st.global.u32 [%o], %r2; st.release.gpu.global.u32 [%d1], %r3; END:"""
    run(body, out, flags, grid=5, mode=mode)
    np.testing.assert_array_equal(out, [5, 4, 3, 2, 1])


@every_mode
def test_a_spin_on_compare_and_swap_lets_others_run(mode):
    out, flag = np.zeros(1, np.uint32), np.zeros(1, np.uint32)
    body = """
    mov.u32 %r1, %ctaid.x; setp.ne.u32 %p1, %r1, 0; setp.ne.u32 %p4, %t, 0; @%p4 bra END; @%p1 bra SET;
    SPIN: atom.global.cas.b32 %r2, [%a1], 2, 3; setp.ne.u32 %p2, %r2, 2; @%p2 bra SPIN;
    st.global.u32 [%a0], 1; bra.uni END;
    SET: atom.global.exch.b32 %r3, [%a1], 2; END:"""
    run(body, out, flag, grid=2, mode=mode)
    assert (out[0], flag[0]) == (1, 3)


def test_a_flag_that_nobody_sets_is_a_deadlock():
    flag = np.zeros(1, np.uint32)
    with pytest.raises(Deadlock, match="progress of others"):
        run("SPIN: ld.acquire.gpu.global.u32 %r2, [%a0]; setp.eq.u32 %p2, %r2, 0; @%p2 bra SPIN;", flag)


@every_mode
def test_instructions_without_effect_here(mode):
    sleeps = "griddepcontrol.wait; griddepcontrol.launch_dependents; nanosleep.u32 20;"
    run(sleeps + "setmaxnreg.inc.sync.aligned.u32 240; fence.acq_rel.gpu; membar.gl;", mode=mode)
