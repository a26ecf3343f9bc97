"""Divergence and re-convergence, loops, early leave, warps that part."""

import numpy as np
import pytest
from snippet import compute, run

MODES = ["eager", "late", "random"]
THREAD = np.arange(128)


@pytest.mark.parametrize("mode", MODES)
def test_lanes_that_part_meet_again(mode):
    lines = """
    mov.b32 %y, 0;
    setp.lt.u32 %p1, %lane, 13;
    @%p1 bra LOW;
    add.u32 %y, %y, 5;
    bra.uni MEET;
    LOW: add.u32 %y, %y, 3;
    MEET: vote.sync.ballot.b32 %r1, %p1, -1;
    add.u32 %y, %y, %r1;"""
    y = compute(lines, THREAD.astype(np.uint32), result=np.uint32, mode=mode)
    np.testing.assert_array_equal(y, np.where(THREAD % 32 < 13, 3, 5) + 2**13 - 1)


@pytest.mark.parametrize("mode", MODES)
def test_branches_nest(mode):
    lines = """
    and.b32 %r1, %x0, 3; shr.u32 %r2, %x0, 2; and.b32 %r2, %r2, 1;
    setp.eq.u32 %p1, %r1, 0; setp.eq.u32 %p2, %r2, 0; mov.b32 %y, 1;
    @!%p1 bra OUTER;
    @!%p2 bra INNER;
    add.u32 %y, %y, 10;
    INNER: add.u32 %y, %y, 100;
    OUTER: add.u32 %y, %y, 1000;"""
    y = compute(lines, THREAD.astype(np.uint32), result=np.uint32, mode=mode)
    expected = 1001 + np.where(THREAD % 4 == 0, 100 + 10 * (THREAD // 4 % 2 == 0), 0)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("mode", MODES)
def test_every_lane_loops_as_often_as_it_should(mode):
    lines = """
    mov.b32 %y, 0; mov.b32 %r1, %x0;
    LOOP: add.u32 %y, %y, %r1; sub.u32 %r1, %r1, 1; setp.gt.s32 %p1, %r1, 0; @%p1 bra LOOP;
    shfl.sync.bfly.b32 %r2, %y, 1, 31, -1; add.u32 %y, %y, %r2;"""
    count = (THREAD * 7 % 11 + 1).astype(np.uint32)
    total = count * (count + 1) // 2
    np.testing.assert_array_equal(compute(lines, count, result=np.uint32, mode=mode), total + total[THREAD ^ 1])


@pytest.mark.parametrize("mode", MODES)
def test_lanes_may_leave_early(mode):
    out = np.zeros(128, np.uint32)
    body = """
    setp.gt.u32 %p1, %lane, 20;
    @%p1 bra GONE;
    mad.wide.u32 %o, %t, 4, %a0;
    activemask.b32 %r1;
    st.global.u32 [%o], %r1;
    ret;
    GONE: exit;"""
    run(body, out, block=128, mode=mode)
    np.testing.assert_array_equal(out, np.where(THREAD % 32 <= 20, 2**21 - 1, 0))


@pytest.mark.parametrize("mode", MODES)
def test_a_guarded_return_ends_only_its_lanes(mode):
    out = np.zeros(64, np.uint32)
    run(
        "setp.lt.u32 %p1, %t, 40; @%p1 ret; mad.wide.u32 %o, %t, 4, %a0; st.global.u32 [%o], %t;",
        out,
        block=64,
        mode=mode,
    )
    np.testing.assert_array_equal(out, np.where(np.arange(64) >= 40, np.arange(64), 0))


@pytest.mark.parametrize("mode", MODES)
def test_warps_with_different_roles_do_not_wait_for_each_other_at_the_join(mode):
    """Warp 0 waits for what warp 1 does after the place where their paths meet."""
    out = np.zeros(1, np.uint32)
    body = """
    setp.ne.u32 %p1, %warp, 0;
    @%p1 bra MEET;
    bar.sync 1, 64;
    MEET: setp.eq.u32 %p2, %warp, 0;
    @%p2 bra DONE;
    bar.arrive 1, 64;
    DONE: st.global.u32 [%a0], 1;"""
    run(body, out, block=64, mode=mode)
    assert out[0] == 1


@pytest.mark.parametrize("mode", MODES)
def test_one_lane_may_wait_for_another_of_its_warp(mode):
    """Lanes that part make progress on their own."""
    out = np.zeros(1, np.uint32)
    body = """
    setp.ne.u32 %p1, %lane, 0;
    @%p1 bra OTHERS;
    mov.u32 %r1, smem;
    mbarrier.init.shared.b64 [%r1], 1;
    OTHERS: bar.warp.sync -1;
    mov.u32 %r1, smem;
    setp.eq.u32 %p2, %lane, 3;
    @%p2 bra ARRIVE;
    WAIT: mbarrier.try_wait.parity.shared.b64 %p3, [%r1], 0; @!%p3 bra WAIT;
    bra.uni END;
    ARRIVE: mbarrier.arrive.shared.b64 _, [%r1];
    END: st.global.u32 [%a0], 1;"""
    run(body, out, smem=64, mode=mode)
    assert out[0] == 1


def test_special_registers():
    out = np.zeros((6, 2, 64), np.uint32)
    body = """
    mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mad.lo.u32 %r3, %r1, %r2, %t; mad.wide.u32 %o, %r3, 4, %a0;
    st.global.u32 [%o], %r1; st.global.u32 [%o+512], %t; mov.u32 %r4, %nctaid.x; st.global.u32 [%o+1024], %r4;
    mov.u32 %r5, %warpid; st.global.u32 [%o+1536], %r5; mov.u32 %r6, %lanemask_lt; st.global.u32 [%o+2048], %r6;
    mov.u32 %r7, %tid.y; st.global.u32 [%o+2560], %r7;"""
    run(body, out, block=64, grid=2)
    thread = np.arange(64)
    expected = np.zeros_like(out)
    for cta in range(2):
        rows = [np.full(64, cta), thread, np.full(64, 2), thread // 32, (1 << thread % 32) - 1, np.zeros(64)]
        expected[:, cta] = rows
    np.testing.assert_array_equal(out, expected)
