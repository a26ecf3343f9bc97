"""Several processes leave what one leaves, bit by bit, whatever the kernel does; where CTAs meet, they run in turn."""

import mmap
import os

import numpy as np
import pytest
from snippet import run

from cute_attn.sim import side_by_side
from cute_attn.sim.errors import OutOfBounds

# Each CTA squares 32 numbers, stores them by a bulk copy that every lane issues (a warning; CTA 5 and those behind at
# other lines), and the first of them, as 16 bits, by an ordinary store.
SQUARES = """
    mov.u32 %r1, %ctaid.x; mad.lo.u32 %r2, %r1, 32, %t; mad.wide.u32 %o, %r2, 4, %a1; ld.global.f32 %r3, [%o];
    mul.f32 %r3, %r3, %r3; mov.u32 %r9, smem; mad.lo.u32 %r8, %t, 4, %r9; st.shared.f32 [%r8], %r3;
    fence.proxy.async.shared::cta; bar.warp.sync -1;
    mad.wide.u32 %d2, %r1, 128, %a0; setp.ge.u32 %p1, %r1, 5; @%p1 bra LATER;
    cp.async.bulk.global.shared::cta.bulk_group [%d2], [%r9], 128; bra.uni DONE;
    LATER: setp.ge.u32 %p1, %r1, 6; @%p1 bra LAST;
    cp.async.bulk.global.shared::cta.bulk_group [%d2], [%r9], 128; bra.uni DONE;
    LAST: cp.async.bulk.global.shared::cta.bulk_group [%d2], [%r9], 128;
    DONE: cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;
    setp.ne.u32 %p2, %t, 0; @%p2 bra END; mad.wide.u32 %d3, %r1, 2, %a2; cvt.u16.u32 %h1, %r3; st.global.b16 [%d3], %h1;
    END:"""
INDEX = "mov.u32 %r1, %ctaid.x; mad.wide.u32 %o, %r1, 4, %a0;"
CTAS = 11


@pytest.fixture
def forks(monkeypatch):
    """Processes always pay; how many were started."""
    started = []
    fork = os.fork
    monkeypatch.setattr(side_by_side, "FORKING", 0.0)
    monkeypatch.setattr(side_by_side, "COMPARING", 0.0)
    monkeypatch.setattr(os, "fork", lambda: started.append(1) or fork())
    return started


@pytest.mark.parametrize("workers", [2, 3])
def test_results_and_reports_are_put_together_as_those_of_one_process(monkeypatch, forks, workers):
    merged, merge = [], side_by_side._merge
    monkeypatch.setattr(side_by_side, "_merge", lambda *outcomes: merged.append(1) or merge(*outcomes))
    source = np.random.default_rng().random((CTAS, 32)).astype(np.float32)
    left = []
    for n in (1, workers):
        out, halves = np.full((CTAS, 32), np.nan, np.float32), np.zeros(CTAS + 1, np.uint16)
        report = run(SQUARES, out, source, halves, grid=CTAS, smem=128, workers=n)
        left.append((out.tobytes(), halves.tobytes(), report))
    assert left[0] == left[1]
    assert len(report.warnings) == 3
    assert report.statistics["ctas"] == CTAS
    np.testing.assert_array_equal(out, source * source)
    assert len(forks) == workers
    assert merged == [1]


def test_bytes_that_another_process_wrote_count_as_written(monkeypatch, forks):
    shadows = []
    out = np.zeros(CTAS, np.uint32)
    buffer = side_by_side.Buffer
    monkeypatch.setattr("snippet.Buffer", lambda *fields: shadows.append(buffer(*fields)) or shadows[-1])
    run(INDEX + "st.global.u32 [%o], %r1;", out, grid=CTAS, unwritten=[0], workers=2)
    np.testing.assert_array_equal(out, np.arange(CTAS))
    assert not shadows[0].unwritten.any()
    assert len(forks) == 2


def test_clusters_stay_together(forks):
    body = """
        mov.u32 %r1, %ctaid.x; mov.u32 %r2, %cluster_ctarank; xor.b32 %r3, %r2, 1; mov.u32 %r9, smem;
        mapa.shared::cluster.u32 %r4, %r9, %r3; st.shared::cluster.u32 [%r4], %r1;
        barrier.cluster.arrive; barrier.cluster.wait;
        ld.shared.u32 %r5, [%r9]; mad.wide.u32 %o, %r1, 4, %a0; st.global.u32 [%o], %r5;"""
    out = np.zeros(12, np.uint32)
    run(body, out, grid=12, cluster=2, smem=16, workers=2)
    np.testing.assert_array_equal(out, np.arange(12) ^ 1)
    assert len(forks) == 2


def test_an_error_in_one_of_them_is_the_error_of_one_process(forks):
    body = (
        INDEX
        + "setp.ge.u32 %p1, %r1, 7; @%p1 bra WRONG; st.global.u32 [%o], %r1; ret; WRONG: st.global.u32 [%o+64], %r1;"
    )
    left = []
    for workers in (1, 2):
        out = np.zeros(CTAS, np.uint32)
        with pytest.raises(OutOfBounds) as caught:
            run(body, out, grid=CTAS, workers=workers)
        left.append((out.tolist(), str(caught.value).replace(f"{out.ctypes.data + 92:#x}", "there")))
    assert left[0] == left[1]
    assert caught.value.place.cta == (7, 0, 0)
    assert len(forks) == 2


def test_what_one_reads_of_another_is_as_in_one_process(forks):
    """A race on a GPU. Here CTAs run in turn, so each finds what the one before it left, on any number of cores."""
    out = np.zeros(CTAS + 1, np.uint32)
    run(INDEX + "ld.global.u32 %r2, [%o]; add.u32 %r2, %r2, 3; st.global.u32 [%o+4], %r2;", out, grid=CTAS, workers=2)
    np.testing.assert_array_equal(out, 3 * np.arange(CTAS + 1))
    assert len(forks) == 2


@pytest.mark.parametrize("reader", [0, 1])
def test_what_one_only_reads_of_another_counts_too(forks, reader):
    """Every other CTA writes, those between read what the one before them wrote."""
    out, copy = np.zeros(CTAS, np.uint32), np.zeros(CTAS, np.uint32)
    body = f"""{INDEX} and.b32 %r2, %r1, 1; setp.eq.u32 %p1, %r2, {reader}; @%p1 bra READ; st.global.u32 [%o], %r1; ret;
    READ: setp.eq.u32 %p2, %r1, 0; @%p2 ret; ld.global.u32 %r3, [%o+-4]; mad.wide.u32 %d1, %r1, 4, %a1;
    st.global.u32 [%d1], %r3;"""
    run(body, out, copy, grid=CTAS, workers=2)
    reads = (np.arange(CTAS) % 2 == reader) & (np.arange(CTAS) > 0)
    np.testing.assert_array_equal(copy, np.where(reads, np.arange(CTAS) - 1, 0))
    assert len(forks) == 2


def test_the_last_of_several_writers_wins_as_in_one_process(forks):
    out = np.zeros(1, np.uint32)
    run("mov.u32 %r1, %ctaid.x; st.global.u32 [%a0], %r1;", out, grid=CTAS, workers=2)
    assert out[0] == CTAS - 1
    assert len(forks) == 2


def test_memory_that_processes_share_is_not_touched_before_all_is_well(forks):
    """Each CTA adds to the same sum, without atomics: had the processes done so already, it would count double."""
    out = np.frombuffer(mmap.mmap(-1, 4096), np.uint32)
    run("mov.u32 %r1, %ctaid.x; ld.global.u32 %r2, [%a0]; add.u32 %r2, %r2, %r1; st.global.u32 [%a0], %r2;",
        out, grid=CTAS, workers=2)  # fmt: skip
    assert out[0] == CTAS * (CTAS - 1) / 2
    assert len(forks) == 2


def test_a_process_that_dies_costs_time_only(monkeypatch, forks):
    monkeypatch.setattr(side_by_side, "_work", lambda *arguments: os._exit(1))
    out = np.zeros(CTAS, np.uint32)
    run(INDEX + "st.global.u32 [%o], %r1;", out, grid=CTAS, workers=2)
    np.testing.assert_array_equal(out, np.arange(CTAS))


@pytest.mark.parametrize(
    "meeting",
    [
        "red.global.add.u32 [%a0], 1;",
        "atom.add.u32 %r2, [%a0], 1;",
        "ld.acquire.gpu.global.u32 %r2, [%a0]; st.global.u32 [%o+4], %r2;",
        "ld.volatile.global.u32 %r2, [%a0]; st.global.u32 [%o+4], %r2;",
        "mov.u32 %r9, smem; mad.lo.u32 %r8, %t, 4, %r9; st.shared.u32 [%r8], 1;"
        "fence.proxy.async.shared::cta; elect.sync _|%p1, -1; @!%p1 bra END;"
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [%a0], [%r9], 16;"
        "cp.async.bulk.commit_group; cp.async.bulk.wait_group 0; END:",
    ],
)
@pytest.mark.parametrize("mode", ["eager", "late", "random"])
def test_kernels_whose_ctas_may_wait_for_each_other_or_add_up_run_in_turn(forks, meeting, mode):
    run(INDEX + meeting, np.zeros(CTAS + 4, np.uint32), grid=CTAS, smem=128, mode=mode, workers=2)
    assert forks == []


def test_atomics_in_shared_memory_are_a_cta_s_own(forks):
    out = np.zeros(CTAS, np.uint32)
    body = INDEX + "mov.u32 %r9, smem; st.shared.u32 [%r9], %r1; bar.sync 0; red.shared.add.u32 [%r9], 1; bar.sync 0;"
    run(body + "ld.shared.u32 %r2, [%r9]; st.global.u32 [%o], %r2;", out, grid=CTAS, smem=16, workers=2)
    np.testing.assert_array_equal(out, np.arange(CTAS) + 32)
    assert len(forks) == 2


# Warps take tickets in shared memory: the order in which they come, and the CTA's number, are left behind.
TICKETS = """
    mov.u32 %r1, %ctaid.x; mov.u32 %r9, smem; setp.ne.u32 %p1, %t, 0; @%p1 bra WAIT; st.shared.u32 [%r9], 0;
    WAIT: bar.sync 0; shr.u32 %r3, %t, 5; and.b32 %r4, %t, 31; setp.ne.u32 %p2, %r4, 0; @%p2 bra END;
    atom.shared.add.u32 %r5, [%r9], 1; mad.lo.u32 %r6, %r1, 4, %r3; mad.wide.u32 %o, %r6, 4, %a0;
    mad.lo.u32 %r7, %r1, 16, %r5; st.global.u32 [%o], %r7; END:"""


@pytest.mark.parametrize(("mode", "seed"), [("late", 0), ("random", 1), ("random", 2)])
def test_what_happens_in_a_cta_follows_from_mode_and_seed_on_any_number_of_cores(forks, mode, seed):
    left = []
    for workers in (1, 2, 3):
        order, squares = np.zeros((CTAS, 4), np.uint32), np.full((CTAS, 32), np.nan, np.float32)
        source, halves = np.arange(CTAS * 32, dtype=np.float32).reshape(CTAS, 32) % 7, np.zeros(CTAS + 1, np.uint16)
        tickets = run(TICKETS, order, grid=CTAS, block=128, smem=16, mode=mode, seed=seed, workers=workers)
        report = run(SQUARES, squares, source, halves, grid=CTAS, smem=128, mode=mode, seed=seed, workers=workers)
        left.append((order.tolist(), squares.tobytes(), halves.tobytes(), tickets, report))
    assert left[1:] == left[:1] * 2
    assert (np.sort(order, 1) == np.arange(CTAS)[:, None] * 16 + np.arange(4)).all()
    assert len(forks) >= 2 * (2 + 2)


def test_seeds_and_ctas_differ_in_their_order_of_warps():
    orders = []
    for seed in (1, 2):
        order = np.zeros((CTAS, 4), np.uint32)
        run(TICKETS, order, grid=CTAS, block=128, smem=16, mode="random", seed=seed)
        orders.append(order % 16)
    assert (orders[0] != orders[1]).any()
    assert len(np.unique(orders[0], axis=0)) > 1


@pytest.mark.parametrize("mode", ["late", "random"])
def test_an_error_in_a_hostile_schedule_is_the_error_of_one_process(forks, mode):
    body = (
        INDEX + "setp.ne.u32 %p1, %r1, 7; @%p1 bra RIGHT; st.global.u32 [%o+64], %r1; RIGHT: st.global.u32 [%o], %r1;"
    )
    found = []
    for workers in (1, 2):
        out = np.zeros(CTAS, np.uint32)
        with pytest.raises(OutOfBounds) as caught:
            run(body, out, grid=CTAS, mode=mode, seed=5, workers=workers)
        found.append((out.tolist(), caught.value.place))
    assert found[0] == found[1]
    assert caught.value.place.cta == (7, 0, 0)


def test_a_late_schedule_does_not_find_what_an_earlier_cta_leaves(forks):
    """A race on a GPU: each reads what the one before it wrote."""
    left = {}
    for mode in ("eager", "late"):
        for workers in (1, 2):
            out = np.zeros(CTAS + 1, np.uint32)
            body = INDEX + "ld.global.u32 %r2, [%o]; add.u32 %r2, %r2, 3; st.global.u32 [%o+4], %r2;"
            run(body, out, grid=CTAS, mode=mode, workers=workers)
            left[mode, workers] = out.tolist()
    assert left["late", 1] == left["late", 2]
    assert left["eager", 1] != left["late", 1]


def test_little_work_stays_in_one_process(monkeypatch):
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked for a few microseconds of work"))
    run(INDEX + "st.global.u32 [%o], %r1;", np.zeros(CTAS, np.uint32), grid=CTAS, workers=2)
