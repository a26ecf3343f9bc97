"""What the three schedules promise, and which bugs only the hostile ones find."""

import numpy as np
import pytest
from snippet import frame, run

from cute_attn.sim.errors import CopyInFlight, Place, SharedMemoryExceeded, SimError, UnsupportedInstruction
from cute_attn.sim.launch import Launch, Schedule
from cute_attn.sim.schedules.engine import execute

RANDOM = np.random.default_rng(21)
# warp 0 loads `tiles` tiles of 256 bytes into a ring of two slots, warp 1 adds them up
RING = """
    mov.u32 %r9, smem; setp.ne.u32 %p9, %t, 0; @%p9 bra READY;
    mbarrier.init.shared.b64 [%r9], 1; mbarrier.init.shared.b64 [%r9+8], 1;
    mbarrier.init.shared.b64 [%r9+16], 32; mbarrier.init.shared.b64 [%r9+24], 32; fence.mbarrier_init.release.cluster;
    READY: bar.sync 0;
    mov.u32 %r1, 0; mov.b32 %r20, 0; setp.ne.u32 %p1, %warp, 0;
    LOOP:
    and.b32 %r2, %r1, 1; shr.u32 %r3, %r1, 1; and.b32 %r3, %r3, 1; xor.b32 %r4, %r3, 1;
    mad.lo.u32 %r5, %r2, 8, %r9; mad.lo.u32 %r6, %r2, 256, %r9; add.u32 %r6, %r6, 1024;
    @%p1 bra TAKE;
    E: mbarrier.try_wait.parity.shared.b64 %p8, [%r5+16], %r4; @%p8 bra DONE; bra.uni E; DONE: {skips}
    elect.sync _|%p2, -1; @!%p2 bra NEXT;
    mbarrier.arrive.expect_tx.shared.b64 _, [%r5], 256;
    mad.wide.u32 %d1, %r1, 256, %a1;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r6], [%d1], 256, [%r5];
    bra.uni NEXT;
    TAKE:
    F: mbarrier.try_wait.parity.shared.b64 %p8, [%r5], %r3; @!%p8 bra F;
    {early}
    mad.lo.u32 %r7, %lane, 8, %r6; ld.shared.v2.f32 {{%r10, %r11}}, [%r7];
    add.f32 %r20, %r20, %r10; add.f32 %r20, %r20, %r11;
    {late}
    NEXT: add.u32 %r1, %r1, 1; setp.lt.u32 %p3, %r1, 6; @%p3 bra LOOP;
    @!%p1 bra END; mad.wide.u32 %o, %lane, 4, %a0; st.global.f32 [%o], %r20;
    END:"""
RELEASE = "mbarrier.arrive.shared.b64 _, [%r5+16];"


def ring(mode, seed=0, early="", late=RELEASE, skips=""):
    source = np.random.default_rng(1).random((6, 32, 2)).astype(np.float32)
    out = np.zeros(32, np.float32)
    report = run(
        RING.format(early=early, late=late, skips=skips), out, source, block=64, smem=2048, mode=mode, seed=seed
    )
    expected = np.zeros(32, np.float32)
    for tile in source:
        expected = expected + tile[:, 0] + tile[:, 1]
    return out, expected, report


@pytest.mark.parametrize(("mode", "seed"), [("eager", 0), ("late", 0), *(("random", s) for s in range(6))])
def test_a_correct_ring_gives_the_same_bits_in_every_schedule(mode, seed):
    out, expected, report = ring(mode, seed)
    np.testing.assert_array_equal(out, expected)
    assert report.warnings == ()
    assert report.statistics["ctas"] == 1
    assert report.statistics["copies"] == 6


def test_a_slot_released_before_it_is_read_is_found_late():
    """The producer, woken first, refills the slot under the reader."""
    with pytest.raises(CopyInFlight, match="copy in flight writes") as caught:
        ring("late", early=RELEASE, late="")
    assert caught.value.place.warps == (1,)
    assert "mbarrier 0x4" in str(caught.value)


def test_a_wait_is_a_wait_however_long_the_code_behind_it_is():
    """Long code that does nothing where no lane is elected once hid that a wait only leads back to itself."""
    skips = "".join(f"elect.sync _|%p4, -1; @!%p4 bra S{i}; st.shared.u32 [%r9+512], 0; S{i}:" for i in range(30))
    with pytest.raises(CopyInFlight, match="copy in flight writes"):
        ring("late", early=RELEASE, late="", skips=skips)


@pytest.mark.parametrize(("mode", "seed"), [("eager", 0), ("late", 0), *(("random", s) for s in range(6))])
def test_a_look_within_a_short_loop_does_not_wait(mode, seed):
    """Warp 0 looks whether warp 1 answered, asks it, and waits if it had not; some lanes do nothing in between."""
    out = np.zeros(1, np.uint32)
    body = """
    mov.u32 %r9, smem; setp.ne.u32 %p9, %t, 0; setp.ne.u32 %p1, %warp, 0; mov.u32 %r1, 0; @%p9 bra READY;
    mbarrier.init.shared.b64 [%r9], 1; mbarrier.init.shared.b64 [%r9+8], 1; READY: bar.sync 0;
    LOOP: and.b32 %r2, %r1, 1; @%p1 bra ANSWER;
    mbarrier.try_wait.parity.shared.b64 %p8, [%r9+8], %r2;
    elect.sync _|%p2, -1; @!%p2 bra ASKED; mbarrier.arrive.shared.b64 _, [%r9]; ASKED: @%p8 bra NEXT;
    W: mbarrier.try_wait.parity.shared.b64 %p8, [%r9+8], %r2; @!%p8 bra W; bra.uni NEXT;
    ANSWER: A: mbarrier.try_wait.parity.shared.b64 %p8, [%r9], %r2; @!%p8 bra A;
    elect.sync _|%p2, -1; @%p2 mbarrier.arrive.shared.b64 _, [%r9+8];
    NEXT: add.u32 %r1, %r1, 1; setp.lt.u32 %p3, %r1, 5; @%p3 bra LOOP; st.global.u32 [%a0], %r1;"""
    run(body, out, block=64, smem=64, mode=mode, seed=seed)
    assert out[0] == 5


PUBLISH = """
    mov.u32 %r1, %ctaid.x; setp.eq.u32 %p1, %r1, 0; setp.ne.u32 %p4, %t, 0; @%p4 bra END; @%p1 bra SET;
    SPIN: ld.acquire.gpu.global.u32 %r2, [%a1]; setp.eq.u32 %p2, %r2, 0; @%p2 bra SPIN;
    ld.global.u32 %r3, [%a1+4]; st.global.u32 [%a0], %r3; bra.uni END;
    SET: st.global.u32 [%a1+8], 1; {} END:"""


def test_who_polls_a_flag_looks_at_once_in_a_late_schedule_and_sometimes_in_a_random_one():
    """So that what is stored behind the flag instead of before it is missing."""
    flag, data = "st.release.gpu.global.u32 [%a1], 1;", "st.global.u32 [%a1+4], 7;"
    for lines, found in ((data + flag, 7), (flag + data, 0)):
        out, flags = np.zeros(1, np.uint32), np.zeros(4, np.uint32)
        run(PUBLISH.format(lines), out, flags, grid=2, mode="late")
        assert out[0] == found
        results = []
        for seed in range(40):
            out, flags = np.zeros(1, np.uint32), np.zeros(4, np.uint32)
            run(PUBLISH.format(lines), out, flags, grid=2, mode="random", seed=seed)
            results.append(out[0])
        assert found in results
        assert 7 in results


def test_random_schedules_find_it_by_some_seed_and_always_by_the_same():
    def outcome(seed):
        try:
            out, expected, _ = ring("random", seed, early=RELEASE, late="")
            return bool((out == expected).all())
        except SimError as error:
            return type(error).__name__, error.place.line

    outcomes = [outcome(seed) for seed in range(12)]
    assert any(o is not True for o in outcomes)
    assert outcomes == [outcome(seed) for seed in range(12)]


def test_schedules_and_launches_are_checked():
    with pytest.raises(ValueError, match="mode is 'fast'; allowed: eager, late, random, starve"):
        Schedule("fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed is -1"):
        Schedule("random", -1)
    text = frame("", [])
    for change, message in (
        ({"grid": (3, 1, 1), "cluster": (2, 1, 1)}, "kernel: grid is .* multiple of the cluster"),
        ({"block": (2048, 1, 1)}, "at most 1024"),
        ({"grid": (0, 1, 1)}, "positive"),
        ({"arguments": (b"abcd",)}, "0 parameters"),
        (
            {"grid": (133, 1, 1), "smem_bytes": 200 << 10, "cooperative": True},
            "cooperative launch of 133 CTAs; at most 132",
        ),
    ):
        shape = {
            "grid": (1, 1, 1),
            "block": (32, 1, 1),
            "cluster": (1, 1, 1),
            "smem_bytes": 0,
            "arguments": (),
        } | change
        with pytest.raises(ValueError, match=message):
            execute(Launch("kernel", text, **shape), [], Schedule())
    execute(Launch("kernel", text, (2, 1, 1), (32, 1, 1), (2, 1, 1), 232_448, ()), [], Schedule())
    with pytest.raises(SharedMemoryExceeded, match=r"232449 bytes .* a CTA has 232448\n  at kernel kernel"):
        execute(Launch("kernel", text, (1, 1, 1), (32, 1, 1), (1, 1, 1), 232_449, ()), [], Schedule())


def test_errors_name_kernel_cta_warps_and_line():
    error = UnsupportedInstruction("it is odd", Place("k", 7, "add;", (1, 2, 3), (4, 5)), subject="x", notes=["so"])
    assert str(error) == "it is odd [x]\n  at kernel k; CTA (1, 2, 3); warps 4, 5; PTX line 7: add;\n  so"


RELAY = """mov.u32 %r9, smem; mad.lo.u32 %r8, %t, 4, %r9; st.shared.u32 [%r8], %t; bar.sync 0; xor.b32 %r1, %r8, 512;
    ld.shared.u32 %r2, [%r1]; {} mov.u32 %r3, 99; st.shared.u32 [%r8], %r3; mad.wide.u32 %o, %t, 4, %a0;
    st.global.u32 [%o], %r2;"""


@pytest.mark.parametrize("seed", range(10))  # eight warps, two warpgroups
def test_whoever_is_starved_a_barrier_that_is_missing_is_seen_and_one_that_is_there_is_enough(seed):
    """Each warpgroup reads what the other stored, and stores again."""
    out, other = np.zeros(256, np.uint32), (np.arange(256) + 128) % 256
    run(RELAY.format("bar.sync 0;"), out, block=256, smem=1024, mode="starve", seed=seed)
    np.testing.assert_array_equal(out, other)
    run(RELAY.format(""), out, block=256, smem=1024, mode="starve", seed=seed)
    starved = slice(32 * seed, 32 * seed + 32) if seed < 8 else slice(128 * (seed - 8), 128 * (seed - 8) + 128)
    assert (out[starved] == 99).all()
