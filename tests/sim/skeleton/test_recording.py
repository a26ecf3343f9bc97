"""What is recorded of a launch: the same steps in every schedule, and a word on what they do not tell."""

import numpy as np
import pytest
from snippet import run

from cute_attn.sim.errors import Deadlock
from cute_attn.sim.skeleton.check import check
from cute_attn.sim.skeleton.program import Refused, difference, skeleton_of
from cute_attn.sim.state.steps import ADD, ARRIVE, COPY, INIT, MEET, PASS, UNTIL, WAIT, Recorder, Warp

SCHEDULES = [("eager", 0), ("late", 0), ("random", 1), ("random", 2), ("starve", 1)]


def recorded(body, *arguments, block=32, cluster=1, mode="eager", seed=0, **options):
    recorder = Recorder((cluster, 1, 1), block)
    run(body, *arguments, block=block, cluster=cluster, mode=mode, seed=seed, recorder=recorder, **options)
    return recorder


def skeleton(body, *shapes, **options):
    """That of a body, the same in all schedules; arguments are zeros of these shapes."""
    found = []
    for mode, seed in SCHEDULES:
        arguments = [np.zeros(shape, np.uint32) for shape in shapes]
        found.append(skeleton_of(recorded(body, *arguments, mode=mode, seed=seed, **options)))
    assert not any(difference(found[0], other) for other in found[1:])
    return found[0]


def steps(skeleton, warp, cta=(0, 0, 0)):
    (program,) = (cluster[Warp(cta, warp)] for cluster in skeleton.clusters if Warp(cta, warp) in cluster)
    return [(s.what, s.thing.kind, s.number, s.extra) for s in program]


RING = """
    mov.u32 %r9, smem; setp.ne.u32 %p1, %t, 0; @%p1 bra READY;
    mbarrier.init.shared.b64 [%r9], 1; mbarrier.init.shared.b64 [%r9+8], 2;
    READY: bar.sync 0;
    setp.ne.u32 %p2, %warp, 0; @%p2 bra READERS;
    setp.ne.u32 %p3, %lane, 0; @%p3 bra END;
    mbarrier.arrive.expect_tx.shared.b64 _, [%r9], 64;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r9+64], [%a0], 64, [%r9];
    EMPTY: mbarrier.try_wait.parity.shared.b64 %p4, [%r9+8], 0; @!%p4 bra EMPTY;
    bra.uni END;
    READERS: mbarrier.try_wait.parity.shared.b64 %p4, [%r9], 0; @!%p4 bra READERS;
    setp.ne.u32 %p3, %lane, 0; @%p3 bra END;
    mbarrier.arrive.shared.b64 _, [%r9+8];
    END:"""


def test_a_ring_is_recorded_warp_by_warp():
    found = skeleton(RING, 16, block=96, smem=256)
    meeting = [(MEET, "barrier", 32, 0), (PASS, "barrier", 0, 0)]
    inits = [(INIT, "mbarrier", 1, 0), (INIT, "mbarrier", 2, 0)]
    fill = [(ARRIVE, "mbarrier", 1, 64), (COPY, "mbarrier", 64, 0), (WAIT, "mbarrier", 0, 0)]
    assert steps(found, 0) == [*inits, *meeting, *fill]
    for warp in (1, 2):
        assert steps(found, warp) == [*meeting, (WAIT, "mbarrier", 0, 0), (ARRIVE, "mbarrier", 1, 0)]
    assert check(found).verified


def test_arrivals_of_lanes_are_one_step_of_their_warp_and_barriers_of_peers_are_theirs():
    body = """
    mov.u32 %r9, smem; setp.ne.u32 %p1, %t, 0; @%p1 bra READY;
    mbarrier.init.shared.b64 [%r9], 32;
    READY: barrier.cluster.arrive; barrier.cluster.wait;
    mov.u32 %r1, %cluster_ctarank; xor.b32 %r2, %r1, 1; mapa.shared::cluster.u32 %r3, %r9, %r2;
    mbarrier.arrive.shared::cluster.b64 _, [%r3];
    AGAIN: mbarrier.try_wait.parity.shared.b64 %p4, [%r9], 0; @!%p4 bra AGAIN;
    barrier.cluster.arrive; barrier.cluster.wait;"""
    found = skeleton(body, grid=2, cluster=2, smem=64)
    (cluster,) = found.clusters
    arrivals = [s for s in cluster[Warp((0, 0, 0), 0)] if s.what == ARRIVE]
    assert [(s.number, s.thing.place) for s in arrivals] == [(32, (1, 0, 0))]
    assert check(found).verified


TURNS = """
    mov.u32 %r1, %ctaid.x;
    ld.acquire.gpu.global.b32 %r2, [%a0]; setp.ge.s32 %p1, %r2, %r1; @%p1 bra GO;
    SPIN: ld.acquire.gpu.global.b32 %r2, [%a0]; setp.lt.s32 %p1, %r2, %r1; @%p1 bra SPIN;
    GO: bar.warp.sync -1;
    setp.ne.u32 %p2, %lane, 0; @%p2 bra END; red.release.gpu.global.add.s32 [%a0], 1; END:"""


def test_a_spin_over_a_counter_is_recorded_whether_it_had_to_wait_or_not():
    found = skeleton(TURNS, 4, grid=3)
    for i in range(3):
        (program,) = found.clusters[i].values()
        assert [(s.what, s.number, s.extra) for s in program] == [(UNTIL, i, "ge"), (ADD, 1, 0)]
    residency = check(found).residency
    assert (residency.in_order, residency.in_any_order) == (1, 3)


def test_additions_that_nobody_waits_for_are_none_of_its_steps():
    assert skeleton("red.global.add.u32 [%a0], 1;", 4).steps == 0


def looked_at(lines):
    """CTA 1 waits for what CTA 0 does to a flag."""
    return f"mov.u32 %r1, %ctaid.x; setp.eq.u32 %p1, %r1, 0; @%p1 bra SET; {lines} bra.uni END;"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (
            looked_at("SPIN: ld.acquire.gpu.global.u32 %r2, [%a0]; setp.lt.u32 %p2, %r2, 1; @%p2 bra SPIN;")
            + "SET: st.release.gpu.global.u32 [%a0], 1; END:",
            "changed by what is no addition",
        ),
        (
            looked_at("SPIN: ld.acquire.gpu.global.u32 %r2, [%a0]; setp.ne.u32 %p2, %r2, 1; @%p2 bra SPIN;")
            + "SET: setp.ne.u32 %p3, %lane, 0; @%p3 bra END; red.release.gpu.global.add.u32 [%a0], 1; END:",
            "may come too late",
        ),
        (
            looked_at("SPIN: atom.global.cas.b32 %r2, [%a0], 1, 1; setp.ne.u32 %p2, %r2, 1; @%p2 bra SPIN;")
            + "SET: setp.ne.u32 %p3, %lane, 0; @%p3 bra END; red.release.gpu.global.add.u32 [%a0], 1; END:",
            "spins in a way that is not followed",
        ),
        (
            looked_at(
                "SPIN: ld.acquire.gpu.global.u32 %r2, [%a0]; and.b32 %r3, %r2, 1; setp.eq.u32 %p2, %r3, 0;"
                "@%p2 bra SPIN;"
            )
            + "SET: setp.ne.u32 %p3, %lane, 0; @%p3 bra END; red.release.gpu.global.add.u32 [%a0], 1; END:",
            "spins in a way that is not followed",
        ),
        (
            "mov.u32 %r9, smem; setp.ne.u32 %p1, %t, 0; @%p1 bra READY; mbarrier.init.shared.b64 [%r9], 1;"
            "mbarrier.inval.shared.b64 [%r9]; READY: bar.sync 0;",
            "invalidated",
        ),
    ],
)
def test_what_steps_do_not_tell_is_refused(body, why):
    recorder = recorded(body, np.zeros(4, np.uint32), grid=2 if "ctaid" in body else 1, smem=64)
    with pytest.raises(Refused, match=why):
        skeleton_of(recorder)


def test_a_run_that_does_not_come_to_its_end_has_no_skeleton():
    recorder = Recorder((1, 1, 1), 64)
    with pytest.raises(Deadlock):
        run("setp.ne.u32 %p1, %warp, 0; @%p1 bra END; bar.sync 1, 64; END:", block=64, recorder=recorder)
    with pytest.raises(Refused, match="did not come to its end"):
        skeleton_of(recorder)


LOOK = """
    mov.u32 %r9, smem; setp.ne.u32 %p1, %t, 0; @%p1 bra READY; mbarrier.init.shared.b64 [%r9], 1;
    READY: bar.sync 0; mov.u32 %r1, 0; setp.ne.u32 %p1, %warp, 0; @%p1 bra LOOP;
    setp.ne.u32 %p1, %lane, 0; @%p1 bra LOOP; mbarrier.arrive.shared.b64 _, [%r9];
    LOOP: mbarrier.try_wait.parity.shared.b64 %p2, [%r9], 0; st.shared.u32 [%r9+16], %r1;
    @%p2 bra NEXT; SPIN: mbarrier.try_wait.parity.shared.b64 %p2, [%r9], 0; @!%p2 bra SPIN;
    NEXT: add.u32 %r1, %r1, 1; setp.lt.u32 %p3, %r1, 3; @%p3 bra LOOP;"""


def test_looks_are_told_no_so_that_the_waits_behind_them_are_recorded():
    found = skeleton(LOOK, block=64, smem=64)
    assert [what for what, *_ in steps(found, 1)].count(WAIT) == 3
    assert check(found).verified


def test_steps_that_depend_on_the_schedule_are_told_apart():
    """Who comes first takes a barrier of its own."""
    body = """
    setp.ne.u32 %p1, %lane, 0; mov.u32 %r2, 1; @%p1 bra TOLD; atom.shared.add.u32 %r2, [smem], 1; TOLD:
    shfl.sync.idx.b32 %r3, %r2, 0, 31, -1; add.u32 %r3, %r3, 1; bar.sync %r3, 32;"""
    found = []
    for mode, seed in (*SCHEDULES, ("starve", 0)):
        body_of = f"st.shared.u32 [smem], 0; bar.sync 0; {body}"
        found.append(skeleton_of(recorded(body_of, block=64, smem=64, mode=mode, seed=seed)))
    assert any("takes other steps in another run" in difference(found[0], other) for other in found[1:])
