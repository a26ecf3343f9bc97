"""Several processes leave what one leaves, in every schedule and bit by bit; where batches meet, they run in turn."""

import mmap
import os

import numpy as np
import pytest
from snippet import run

from cute_attn.sim.errors import OutOfBounds
from cute_attn.sim.schedules import side_by_side

LOOK = "shfl.sync.idx.b32 %r20, %r9, 5, 31, 1;"  # at a lane that does not take part: a warning
# Each CTA squares 32 numbers, stores them by a bulk copy (with a warning; CTA 5 and those behind at other lines), and
# the first of them, as 16 bits, by an ordinary store.
SQUARES = f"""
    mov.u32 %r1, %ctaid.x; mad.lo.u32 %r2, %r1, 32, %t; mad.wide.u32 %o, %r2, 4, %a1; ld.global.f32 %r3, [%o];
    mul.f32 %r3, %r3, %r3; mov.u32 %r9, smem; mad.lo.u32 %r8, %t, 4, %r9; st.shared.f32 [%r8], %r3;
    fence.proxy.async.shared::cta; bar.warp.sync -1;
    mad.wide.u32 %d2, %r1, 128, %a0; setp.ge.u32 %p1, %r1, 5; @%p1 bra LATER;
    cp.async.bulk.global.shared::cta.bulk_group [%d2], [%r9], 128; {LOOK} bra.uni DONE;
    LATER: setp.ge.u32 %p1, %r1, 6; @%p1 bra LAST;
    cp.async.bulk.global.shared::cta.bulk_group [%d2], [%r9], 128; {LOOK} bra.uni DONE;
    LAST: cp.async.bulk.global.shared::cta.bulk_group [%d2], [%r9], 128; {LOOK}
    DONE: cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;
    setp.ne.u32 %p2, %t, 0; @%p2 bra END; mad.wide.u32 %d3, %r1, 2, %a2; cvt.u16.u32 %h1, %r3; st.global.b16 [%d3], %h1;
    END:"""
INDEX = "mov.u32 %r1, %ctaid.x; mad.wide.u32 %o, %r1, 4, %a0;"
CTAS = 17
SCHEDULES = pytest.mark.parametrize(
    ("mode", "seed"), [("eager", 0), ("late", 0), *(("random", s) for s in range(3)), ("starve", 1)]
)


@pytest.fixture
def forks(monkeypatch):
    """Processes always pay; how many were started."""
    started = []
    fork = os.fork
    monkeypatch.setattr(side_by_side, "FORKING", 0.0)
    monkeypatch.setattr(side_by_side, "COMPARING", 0.0)
    monkeypatch.setattr(os, "fork", lambda: started.append(1) or fork())
    return started


@pytest.mark.slow
@SCHEDULES
@pytest.mark.parametrize("workers", [2, 3])
def test_results_and_reports_are_put_together_as_those_of_one_process(monkeypatch, forks, workers, mode, seed):
    merged, merge = [], side_by_side._merge
    monkeypatch.setattr(side_by_side, "_merge", lambda *outcomes: merged.append(1) or merge(*outcomes))
    source = np.random.default_rng().random((CTAS, 32)).astype(np.float32)
    left = []
    for n in (1, workers):
        out, halves = np.full((CTAS, 32), np.nan, np.float32), np.zeros(CTAS + 1, np.uint16)
        report = run(SQUARES, out, source, halves, grid=CTAS, smem=128, mode=mode, seed=seed, workers=n)
        left.append((out.tobytes(), halves.tobytes(), report))
    assert left[0] == left[1]
    assert len(report.warnings) == 3
    assert report.statistics["ctas"] == CTAS
    np.testing.assert_array_equal(out, source * source)
    assert len(forks) == workers
    assert merged == [1]


@SCHEDULES
def test_warnings_come_in_the_order_of_one_process(forks, mode, seed):
    """CTA 8 gives two, CTA 10 the same the other way round; the second stands at a line of more digits."""
    body = f"""mov.u32 %r1, %ctaid.x;
    setp.eq.u32 %p1, %r1, 8; setp.eq.u32 %p2, %r1, 10; @%p1 bra FIRST; @%p2 bra SECOND; ret;
    FIRST: {LOOK} @%p2 bra END; {100 * chr(10)}
    SECOND: {LOOK} @%p2 bra FIRST; END:"""
    warnings = [run(body, grid=CTAS, mode=mode, seed=seed, workers=n).warnings for n in (1, 2, 3)]
    assert len(warnings[0]) == 2
    assert warnings == warnings[:1] * 3
    assert len(forks) == 5


def tickets(mode, seed, workers=1):
    """What each lane drew from its CTA's counter, three times: who came when."""
    out = np.zeros((CTAS, 3, 128), np.uint32)
    draw = "atom.shared.add.u32 %r5, [%r9], 1; st.global.u32 [%o+{}], %r5; bar.warp.sync -1;"
    body = """mov.u32 %r9, smem; setp.ne.u32 %p1, %t, 0; @%p1 bra READY; st.shared.u32 [%r9], 0; READY: bar.sync 0;
    mov.u32 %r1, %ctaid.x; mad.lo.u32 %r2, %r1, 384, %t; mad.wide.u32 %o, %r2, 4, %a0;"""
    run(body + "".join(draw.format(512 * i) for i in range(3)),
        out, block=128, grid=CTAS, smem=16, mode=mode, seed=seed, workers=workers)  # fmt: skip
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "seed"),
    [
        ("eager", 0),
        ("random", 1),
        *(
            pytest.param(mode, seed, marks=pytest.mark.slow)
            for mode, seed in (("late", 0), ("random", 0), ("random", 2), ("starve", 1))
        ),
    ],
)
def test_warps_run_in_the_order_of_one_process(forks, mode, seed):
    expected = tickets(mode, seed)
    for workers in (2, 3):
        np.testing.assert_array_equal(tickets(mode, seed, workers), expected)
    assert len(forks) == 5


@pytest.mark.slow
def test_every_seed_and_every_batch_has_an_order_of_its_own():
    first, second = tickets("random", 1), tickets("random", 2)
    assert (first != second).any((1, 2)).mean() > 0.5  # some orders are alike by chance
    assert len({batch.tobytes() for batch in first[:15].reshape(5, -1)}) == 5


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


@SCHEDULES
def test_an_error_in_one_of_them_is_the_error_of_one_process(forks, mode, seed):
    body = (
        INDEX
        + "setp.eq.u32 %p1, %r1, 7; @%p1 bra WRONG; st.global.u32 [%o], %r1; ret; WRONG: st.global.u32 [%o+64], %r1;"
    )
    left = []
    for workers in (1, 2):
        out = np.zeros(CTAS, np.uint32)
        with pytest.raises(OutOfBounds) as caught:
            run(body, out, grid=CTAS, mode=mode, seed=seed, workers=workers)
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


@pytest.mark.parametrize("distance", [1, 2, 5])
def test_what_a_cta_reads_of_another_differs_between_eager_and_late(forks, distance):
    """However far apart they are, and on any number of cores."""
    body = f"""{INDEX} ld.global.u32 %r2, [%o]; mad.wide.u32 %d1, %r1, 4, %a1; st.global.u32 [%d1], %r2;
    st.global.u32 [%o+{4 * distance}], 1;"""
    for mode, found in (("eager", [0] * distance + [1] * (CTAS - distance)), ("late", [0] * CTAS)):
        for workers in (1, 2):
            copy = np.zeros(CTAS, np.uint32)
            run(body, np.zeros(CTAS + distance, np.uint32), copy, grid=CTAS, mode=mode, workers=workers)
            np.testing.assert_array_equal(copy, found)
    assert len(forks) == 4


@pytest.mark.parametrize("seed", range(3))
def test_additions_that_neighbours_lose_are_lost_on_any_number_of_cores(forks, seed):
    """Each CTA adds to the same sum, without atomics: an order that mixes neighbours loses some."""
    sums = []
    for workers in (1, 2):
        out = np.zeros(1, np.uint32)
        run("ld.global.u32 %r2, [%a0]; bar.sync 0; add.u32 %r2, %r2, 1; st.global.u32 [%a0], %r2;",
            out, grid=CTAS, mode="random", seed=seed, workers=workers)  # fmt: skip
        sums.append(out[0])
    assert sums[0] < CTAS
    assert sums[0] == sums[1]
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


@pytest.mark.parametrize(("mode", "last"), [("eager", CTAS - 1), ("late", 0)])
def test_the_last_of_several_writers_wins_as_in_one_process(forks, mode, last):
    out = np.zeros(1, np.uint32)
    run("mov.u32 %r1, %ctaid.x; st.global.u32 [%a0], %r1;", out, grid=CTAS, mode=mode, workers=2)
    assert out[0] == last
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


@pytest.mark.parametrize("mode", ["eager", "late", "random"])
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
def test_kernels_whose_ctas_may_wait_for_each_other_or_add_up_run_in_turn(forks, meeting, mode):
    run(INDEX + meeting, np.zeros(CTAS + 4, np.uint32), grid=CTAS, smem=128, mode=mode, workers=2)
    assert forks == []


def test_atomics_in_shared_memory_are_a_cta_s_own(forks):
    out = np.zeros(CTAS, np.uint32)
    body = INDEX + "mov.u32 %r9, smem; st.shared.u32 [%r9], %r1; bar.sync 0; red.shared.add.u32 [%r9], 1; bar.sync 0;"
    run(body + "ld.shared.u32 %r2, [%r9]; st.global.u32 [%o], %r2;", out, grid=CTAS, smem=16, workers=2)
    np.testing.assert_array_equal(out, np.arange(CTAS) + 32)
    assert len(forks) == 2


def test_little_work_stays_in_one_process(monkeypatch):
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked for a few microseconds of work"))
    run(INDEX + "st.global.u32 [%o], %r1;", np.zeros(CTAS, np.uint32), grid=CTAS, workers=2)
