"""Accesses that nothing orders are a race, whether or not a schedule shows it; those that something orders are none."""

import itertools

import numpy as np
import pytest
from snippet import run, tensor_map

from cute_attn.sim.errors import MissingProxyFence, Race

MODES = ("eager", "late", "random", "starve")
SYNC = "bar.sync 0;"
OWN, OTHER = "mad.wide.u32 %o, %t, 4, %a0;", "xor.b32 %r1, %t, 32; mad.wide.u32 %o, %r1, 4, %a0;"
STORE, LOAD = "st.global.u32 [%o], %t;", "ld.global.u32 %r3, [%o];"
ADD = "mov.b32 %r2, 0f3F800000; red.global.add.f32 [%a0], %r2;"


def watched(body, *arguments, block=64, **options):
    return run(body, *arguments, block=block, races=True, **options)


def finds(body, *arguments, match=".", error=Race, modes=MODES, **options):
    """Which of two accesses comes second, and is named first, is another matter: `match` is of an eager run."""
    for mode in modes:
        with pytest.raises(error, match=match if mode == "eager" else "."):
            watched(body, *map(zeroed, arguments), mode=mode, **options)


def passes(body, *arguments, modes=MODES, **options):
    for mode in modes:
        watched(body, *map(zeroed, arguments), mode=mode, **options)


def zeroed(argument):
    """In place: what a tensor map leads to stays where it is."""
    if isinstance(argument, np.ndarray):
        argument[...] = 0
    return argument


# ---------------------------------------------------------------- global memory


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (OWN + STORE, OTHER + LOAD, "load of byte .* behind the store of it by warp"),
        (OWN + LOAD, OTHER + STORE, "store of byte .* behind the load of it by warp"),
        (OWN + STORE, OTHER + STORE, "store of byte .* behind the store of it by warp"),
        (OWN + STORE, OTHER + "red.global.add.u32 [%o], 1;", "atomic operation of byte .* behind the store"),
        (OWN + "red.global.add.u32 [%o], 1;", OTHER + LOAD, "load of byte .* behind the atomic operation"),
        (OWN + "red.global.add.u32 [%o], 1;", OTHER + STORE, "store of byte .* behind the atomic operation"),
        (OWN + STORE, OTHER + "ld.relaxed.gpu.global.u32 %r3, [%o];", "load of byte .* behind the store"),
    ],
)
def test_two_warps_at_one_place_race_unless_a_barrier_is_between(first, second, said):
    finds(f"{first} {second}", np.zeros(64, np.uint32), match=said)
    passes(f"{first} {SYNC} {second}", np.zeros(64, np.uint32))


def test_the_report_names_both_instructions_and_both_warps():
    with pytest.raises(Race) as caught:
        watched(f"{OWN}\n{STORE}\n{OTHER}\n{LOAD}\n", np.zeros(64, np.uint32))
    found = caught.value
    assert found.place.text == LOAD
    assert found.place.warps == (0,)
    assert found.place.cta == (0, 0, 0)
    (other,) = found.notes
    assert STORE in other
    assert "warp 1;" in other
    assert f"PTX line {found.place.line - 2}:" in other
    assert found.subject.startswith("global 0x")


@pytest.mark.parametrize(
    "body",
    [
        OWN + STORE + LOAD,
        "st.global.u32 [%a0], 5;",  # everybody the same
        "red.global.add.u32 [%a0], 1; atom.global.max.u32 %r1, [%a0], 2;",
        "st.relaxed.gpu.global.u32 [%a0], %t; ld.acquire.gpu.global.u32 %r1, [%a0]; ld.volatile.global.u32 %r1, [%a0];",
        OWN + LOAD + OTHER + LOAD,
    ],
)
def test_what_is_ordered_or_agrees_is_no_race(body):
    passes(body, np.zeros(64, np.uint32), grid=2 if "%o" not in body else 1)


def test_two_launches_are_ordered():
    out = np.zeros(64, np.uint32)
    watched(OWN + STORE, out)
    watched(OTHER + LOAD + STORE, out)


def test_halves_of_a_word_are_apart():
    half = "shr.u32 %r1, %t, 5; mad.wide.u32 %o, %lane, 4, %a0; mad.wide.u32 %o, %r1, 2, %o; cvt.u16.u32 %h1, %t;"
    passes(half + "st.global.u16 [%o], %h1;", np.zeros(64, np.uint16))


def test_a_race_may_be_warned_of():
    report = watched(OWN + STORE + OTHER + LOAD, np.zeros(64, np.uint32), warned=[Race])
    assert any(warning.startswith("Race: load of byte") for warning in report.warnings)


# ---------------------------------------------------------------- flags

FLAG = """
    mov.u32 %r1, %ctaid.x; setp.eq.u32 %p1, %r1, 0; setp.ne.u32 %p2, %t, 0; mad.wide.u32 %o, %t, 4, %a0;
    @!%p1 bra READ; st.global.u32 [%o], %t; {told} @%p2 bra END; {before} {release}; bra.uni END;
    READ: @%p2 bra SEEN; L: {acquire} %r2, [%a1]; setp.eq.u32 %p3, %r2, 0; @%p3 bra L; {behind} SEEN: {known}
    ld.global.u32 %r3, [%o]; END:"""
RELEASES = ("st.release.gpu.global.u32 [%a1], 1", "red.release.gpu.global.add.u32 [%a1], 1")
RELAXED = ("st.relaxed.gpu.global.u32 [%a1], 1", "red.relaxed.gpu.global.add.u32 [%a1], 1")
ACQUIRES, LOOKS = ("ld.acquire.gpu.global.u32",), ("ld.relaxed.gpu.global.u32", "ld.volatile.global.u32")
FENCES = ("membar.gl;", "fence.acq_rel.gpu;", "fence.sc.sys;")


def flag(release, acquire, before="", behind="", told=SYNC, known=SYNC):
    return FLAG.format(release=release, acquire=acquire, before=before, behind=behind, told=told, known=known)


def memories():
    return np.zeros(64, np.uint32), np.zeros(1, np.uint32)


@pytest.mark.parametrize(
    "how",
    [
        *itertools.product(RELEASES, ACQUIRES),
        *itertools.product(RELEASES, LOOKS, [""], FENCES[:1]),
        *itertools.product(RELAXED, ACQUIRES, FENCES[1:2]),
        *itertools.product(RELAXED[:1], LOOKS[:1], FENCES, FENCES),
    ],
)
def test_a_release_and_an_acquire_order_what_is_round_them(how):
    passes(flag(*how), *memories(), modes=("eager", "late"), grid=2)


@pytest.mark.parametrize(
    "how",
    [
        *itertools.product(RELEASES, LOOKS),
        *itertools.product(RELAXED, ACQUIRES),
        *itertools.product(RELAXED[:1], LOOKS, FENCES[:1]),
        *itertools.product(RELAXED[:1], LOOKS, [""], FENCES[:1]),
        ("st.release.cta.global.u32 [%a1], 1", *ACQUIRES),
        (RELEASES[0], "ld.acquire.cluster.global.u32"),
        (RELAXED[0], ACQUIRES[0], "fence.acq_rel.cta;"),
    ],
)
def test_without_one_of_the_two_or_for_too_few_there_is_a_race(how):
    finds(
        flag(*how), *memories(), modes=("eager", "late"), grid=2, match="load of byte .* and nothing orders it behind"
    )


@pytest.mark.parametrize("missing", ["told", "known"])
def test_one_thread_speaks_for_the_others_behind_a_barrier_alone(missing):
    finds(flag(RELEASES[0], ACQUIRES[0], **{missing: ""}), *memories(), modes=("eager",), grid=2)


def test_a_flag_that_is_no_strong_store_races_itself():
    finds(flag("st.global.u32 [%a1], 1", ACQUIRES[0]), *memories(), grid=2, match="of byte 0 of argument 1")


def test_what_is_released_is_passed_on_by_those_who_add_and_by_those_who_tell_others():
    """CTA 0 releases, CTA 1 adds to the flag without, CTA 2 waits for both and tells CTA 3 at another flag."""
    body = """
    mov.u32 %r1, %ctaid.x; setp.ne.u32 %p2, %t, 0; @%p2 bra END;
    setp.eq.u32 %p1, %r1, 0; @!%p1 bra A; st.global.u32 [%a0], 7; red.release.gpu.global.add.u32 [%a1], 1; bra.uni END;
    A: setp.eq.u32 %p1, %r1, 1; @!%p1 bra B; WA: ld.relaxed.gpu.global.u32 %r2, [%a1]; setp.lt.u32 %p3, %r2, 1;
    @%p3 bra WA; red.relaxed.gpu.global.add.u32 [%a1], 1; bra.uni END;
    B: setp.eq.u32 %p1, %r1, 2; @!%p1 bra C; WB: ld.acquire.gpu.global.u32 %r2, [%a1]; setp.lt.u32 %p3, %r2, 2;
    @%p3 bra WB; st.release.gpu.global.u32 [%a1+4], 1; bra.uni END;
    C: ld.acquire.gpu.global.u32 %r2, [%a1+4]; setp.lt.u32 %p3, %r2, 1; @%p3 bra C; ld.global.u32 %r3, [%a0]; END:"""
    passes(body, np.zeros(4, np.uint32), np.zeros(4, np.uint32), grid=4)
    finds(body.replace("WB: ld.acquire", "WB: ld.relaxed"), np.zeros(4, np.uint32), np.zeros(4, np.uint32), grid=4)
    overwrites = body.replace("red.relaxed.gpu.global.add.u32 [%a1], 1", "st.relaxed.gpu.global.u32 [%a1], 2")
    memories = np.zeros(4, np.uint32), np.zeros(4, np.uint32)
    finds(overwrites, *memories, grid=4, modes=("eager",))  # in others CTA 2 may look while the release is still there


# ---------------------------------------------------------------- sums


def test_sums_in_no_order_are_no_race_but_where_they_must_have_one():
    passes(ADD, np.zeros(1, np.float32), grid=2)
    passes(ADD, np.zeros(1, np.float32), grid=2, fixed_sums=True)  # small integers: exact in any order
    third = ADD.replace("0f3F800000", "0f3EAAAAAB")
    finds(third, np.zeros(1, np.float32), grid=2, fixed_sums=True, match="operation .* behind the atomic operation")
    turns = f"""setp.ne.u32 %p2, %t, 0; @%p2 bra END; mov.u32 %r1, %ctaid.x;
    W: ld.acquire.gpu.global.u32 %r4, [%a1]; setp.lt.u32 %p3, %r4, %r1; @%p3 bra W; {third}
    red.release.gpu.global.add.u32 [%a1], 1; END:"""
    passes(turns, np.zeros(1, np.float32), np.zeros(1, np.uint32), grid=3, fixed_sums=True)
    for weaker in (turns.replace("acquire", "relaxed"), turns.replace("release", "relaxed")):
        passes(weaker, np.zeros(1, np.float32), np.zeros(1, np.uint32), grid=3)
        finds(weaker, np.zeros(1, np.float32), np.zeros(1, np.uint32), grid=3, fixed_sums=True)


# ---------------------------------------------------------------- copies and global memory

# Warp 0 copies 256 bytes of shared memory out; then others look at them.
OUT = """
    mov.u32 %r9, smem; mad.lo.u32 %r8, %t, 4, %r9; st.shared.u32 [%r8], %t; fence.proxy.async; bar.sync 0;
    setp.ne.u32 %p1, %t, 0; @%p1 bra STORED; {copy} cp.async.bulk.commit_group; {wait}
    STORED: {barrier} mad.wide.u32 %o, %t, 4, %a0; ld.global.u32 %r3, [%o]; @%p1 bra END;
    cp.async.bulk.wait_group 0; END:"""
COPY = "cp.async.bulk.global.shared::cta.bulk_group [%a0], [%r9], 256;"
BOX = "mov.u32 %r2, 0; mov.b64 %d1, p1; cp.async.bulk.tensor.1d.global.shared::cta.tile.bulk_group [%d1, {%r2}], [%r9];"
ADDS = "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [%a0], [%r9], 256;"
WAIT = "cp.async.bulk.wait_group 0;"


@pytest.mark.parametrize("copy", [COPY, BOX, ADDS])
def test_what_a_copy_writes_is_there_for_those_who_know_of_the_wait_for_it(copy):
    out = np.zeros(64, np.uint32)

    def run_with(check, **changed):
        parts = {"copy": copy, "wait": WAIT, "barrier": SYNC, **changed}
        for mode in ("eager", "late"):
            check(OUT.format(**parts), out, tensor_map(out, (64,)), modes=(mode,), smem=256)

    run_with(passes)
    run_with(finds, barrier="")
    run_with(finds, wait="cp.async.bulk.wait_group.read 0;")
    run_with(finds, wait="")


def test_a_copy_out_that_nobody_waited_for_is_not_there_even_for_its_own_warp():
    body = OUT.format(copy=COPY, wait="", barrier="setp.ge.u32 %p2, %t, 32; @%p2 bra END;")
    finds(body, np.zeros(64, np.uint32), smem=256, match="bulk store of it by warp 0 .* nobody has waited for")


# Every thread stores 4 bytes; warp 1 then loads them all into shared memory.
IN = """
    mov.u32 %r9, smem; setp.ne.u32 %p1, %t, 32; mad.wide.u32 %o, %t, 4, %a0; {store} {fence} {barrier} {behind}
    @%p1 bra {others}; mbarrier.init.shared.b64 [%r9], 1; mbarrier.arrive.expect_tx.shared.b64 _, [%r9], 256;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r9+16], [%a0], 256, [%r9]; {wait}
    bra.uni LOADED; LOADED: {last} END:"""
DONE = "W: mbarrier.try_wait.parity.shared.b64 %p8, [%r9], 0; @!%p8 bra W;"
PROXY = "fence.proxy.async.global;"


def loaded(store=STORE, fence=PROXY, barrier=SYNC, behind="", others="END", wait=DONE, last=""):
    return IN.format(store=store, fence=fence, barrier=barrier, behind=behind, others=others, wait=wait, last=last)


def test_a_copy_into_shared_memory_needs_a_barrier_and_a_fence_behind_ordinary_stores():
    memory = np.zeros(64, np.uint32)
    passes(loaded(), memory, smem=512)
    passes(loaded(fence="fence.proxy.async;"), memory, smem=512)
    passes(loaded(fence="", behind=PROXY), memory, smem=512)
    finds(loaded(barrier=""), memory, smem=512, match="bulk load of byte .* behind the store of it by warp 0")
    finds(loaded(fence=""), memory, smem=512, error=MissingProxyFence, match="no fence.proxy.async of global memory")
    finds(loaded(fence="fence.proxy.async.shared::cta;"), memory, smem=512, error=MissingProxyFence)


def test_what_a_copy_reads_may_be_overwritten_by_those_who_know_that_it_is_over():
    memory = np.zeros(64, np.uint32)
    ends = loaded(store="", others="LOADED", last=SYNC + STORE)
    passes(ends, memory, smem=512)
    finds(loaded(store="", others="LOADED", last=STORE), memory, smem=512)
    finds(ends.replace(DONE, "").replace("END:", DONE.replace("W", "V") + "END:"), memory, smem=512)


def test_the_source_of_a_multicast_may_be_overwritten_by_who_sees_any_of_its_barriers():
    for issuer, writer in itertools.product((0, 1), (0, 1)):
        wait = "W: mbarrier.try_wait.parity.shared.b64 %p2, [%r9], 0; @!%p2 bra W;"
        body = f"""
        mov.u32 %r9, smem; mov.u32 %r1, %cluster_ctarank; setp.eq.u32 %p1, %t, 0; mov.u16 %h1, 3;
        setp.ne.u32 %p3, %r1, {issuer}; setp.ne.u32 %p4, %r1, {writer}; @!%p1 bra READY;
        mbarrier.init.shared.b64 [%r9], 1; mbarrier.arrive.expect_tx.shared.b64 _, [%r9], 512;
        READY: fence.proxy.async; barrier.cluster.arrive; barrier.cluster.wait; @%p3 bra EARLY; @!%p1 bra EARLY;
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster
            [%r9+512], [%a0], 512, [%r9], %h1;
        EARLY: FIRST @%p4 bra END; st.global.u32 [%a0], 7; END: LAST
        barrier.cluster.arrive; barrier.cluster.wait;"""
        where = {"block": 32, "grid": 2, "cluster": 2, "smem": 4096}
        passes(body.replace("FIRST", wait).replace("LAST", ""), np.zeros(128, np.uint32), **where)
        if issuer == writer:
            said = "behind the bulk load of it by warp 0"
            unordered = body.replace("FIRST", "").replace("LAST", wait)
            finds(unordered, np.zeros(128, np.uint32), modes=["eager"], match=said, **where)


# ---------------------------------------------------------------- shared memory

PLACE = "mov.u32 %r9, smem; mad.lo.u32 %r8, %t, 4, %r9; xor.b32 %r1, %t, 32; mad.lo.u32 %r7, %r1, 4, %r9;"
FILL = PLACE + "st.shared.u32 [%r8], 0; bar.sync 0;"


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ("st.shared.u32 [%r8], %t;", "ld.shared.u32 %r2, [%r7];", "load of shared .* behind the store"),
        ("ld.shared.u32 %r2, [%r8];", "st.shared.u32 [%r7], %t;", "store of shared .* behind the load"),
        ("st.shared.u32 [%r8], %t;", "st.shared.u32 [%r7], %t;", "store of shared .* behind the store"),
        ("st.shared.u32 [%r8], %t;", "red.shared.add.u32 [%r7], 1;", "operation of shared .* the store"),
        ("red.shared.add.u32 [%r8], 1;", "ld.shared.u32 %r2, [%r7];", "load of shared .* the atomic operation"),
    ],
)
def test_two_warps_at_one_place_of_shared_memory_race_unless_a_barrier_is_between(first, second, said):
    finds(f"{FILL} {first} {second}", smem=256, match=said)
    passes(f"{FILL} {first} {SYNC} {second}", smem=256)


def test_one_place_for_all_is_no_race_for_equal_values_and_atomic_operations():
    passes(FILL + "st.shared.u32 [%r9], 5; bar.sync 0; red.shared.add.u32 [%r9], %t;", smem=256)


def test_neighbours_within_a_granule_are_apart():
    passes(
        f"mov.u32 %r9, smem; mad.lo.u32 %r8, %lane, 8, %r9; mad.lo.u32 %r8, %warp, 4, %r8; st.shared.u32 [%r8], %t; "
        f"ld.shared.u32 %r1, [%r8]; {SYNC}",
        smem=256,
    )


def test_matrices_race_too():
    address = "mov.u32 %r9, smem; and.b32 %r2, %lane, 7; mad.lo.u32 %r8, %r2, 16, %r9; "
    store = "stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r8], {%t};"
    load = "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r3}, [%r8];"
    first = f"{address} setp.eq.u32 %p1, %warp, 0; @!%p1 bra A; {store} A: "
    passes(f"{first} {SYNC} {load}", smem=256)
    finds(f"{first} bar.warp.sync -1; {load}", smem=256, modes=("eager",))
    finds(f"{first} {SYNC} {load} @!%p1 bra B; {store} B:", smem=256, modes=("eager", "late"))


# warp 0 loads a tile twice; warp 1 reads it, and says so
TILES = """
    mov.u32 %r9, smem; setp.ne.u32 %p1, %t, 0; setp.lt.u32 %p2, %t, 32; mad.lo.u32 %r8, %lane, 8, %r9; mov.u32 %r5, 0;
    @%p1 bra READY; mbarrier.init.shared.b64 [%r9], 1; mbarrier.init.shared.b64 [%r9+8], 32; READY: bar.sync 0;
    TILE: @!%p2 bra TAKE; @%p1 bra NEXT;
    xor.b32 %r6, %r5, 1; E: mbarrier.try_wait.parity.shared.b64 %p8, [%r9+8], %r6; @!%p8 bra E;
    mbarrier.arrive.expect_tx.shared.b64 _, [%r9], 256;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r9+256], [%a0], 256, [%r9]; bra.uni NEXT;
    TAKE: {full} {early} ld.shared.v2.u32 {{%r2, %r3}}, [%r8+256]; {late}
    NEXT: add.u32 %r5, %r5, 1; setp.lt.u32 %p3, %r5, 2; @%p3 bra TILE;"""
FULL = "F: mbarrier.try_wait.parity.shared.b64 %p8, [%r9], %r5; @!%p8 bra F;"
SAID = "mbarrier.arrive.shared.b64 _, [%r9+8];"


def test_a_slot_is_filled_behind_its_loads_and_read_behind_the_copy():
    source = np.zeros(64, np.uint32)
    passes(TILES.format(full=FULL, early="", late=SAID), source, smem=512)
    finds(
        TILES.format(full=FULL, early=SAID, late=""),
        source,
        smem=512,
        modes=("eager",),
        match="asynchronous store of shared address 0x500, .* behind the load of it by warp 1",
    )
    finds(
        TILES.format(full="", early="", late=SAID),
        source,
        smem=512,
        modes=("eager",),
        match="load of shared address 0x500, .* behind the asynchronous store of it by warp 0",
    )


def test_a_source_of_a_copy_is_overwritten_behind_the_wait_by_those_who_know_of_it():
    body = """mov.u32 %r9, smem; mad.lo.u32 %r8, %t, 4, %r9; st.shared.u32 [%r8], %t; fence.proxy.async; bar.sync 0;
    setp.ne.u32 %p1, %t, 0; @%p1 bra STORED; cp.async.bulk.global.shared::cta.bulk_group [%a0], [%r9], 256;
    cp.async.bulk.commit_group; cp.async.bulk.wait_group.read 0; STORED: {} st.shared.u32 [%r8], 1;"""
    passes(body.format(SYNC), np.zeros(64, np.uint32), smem=256)
    finds(
        body.format(""),
        np.zeros(64, np.uint32),
        smem=256,
        modes=("eager",),
        match="store of shared address .* behind the asynchronous load of it by warp 0",
    )


def test_classic_copies_are_there_behind_the_wait_for_those_who_know_of_it():
    body = """mov.u32 %r9, smem; mad.lo.u32 %r8, %t, 4, %r9; xor.b32 %r1, %t, 32; mad.lo.u32 %r7, %r1, 4, %r9;
    mad.wide.u32 %o, %t, 4, %a0; cp.async.ca.shared.global [%r8], [%o], 4; {} {} ld.shared.u32 %r2, [%r{}];"""
    memory, wait = np.zeros(64, np.uint32), "cp.async.wait_all;"
    passes(body.format(wait, SYNC, 7), memory, smem=256)
    passes(body.format(wait, "", 8), memory, smem=256)
    finds(body.format(wait, "", 7), memory, smem=256, modes=("eager",), match="behind the store of it by warp 1")
    finds(body.format("", SYNC, 7), memory, smem=256, modes=("eager",), match="which it has not waited for")
    finds(body.format("", "", 8), memory, smem=256, modes=("eager",), match="which it has not waited for")


def test_operands_of_products_are_overwritten_behind_the_wait_for_these():
    accumulator = ", ".join(f"%r{100 + i}" for i in range(4))
    body = """mov.u32 %r9, smem; mad.lo.u32 %r8, %t, 16, %r9; setp.ge.u32 %p4, %t, 128; mov.u32 %r5, 0;
    mov.b64 %d3, {descriptor}; st.shared.v4.b32 [%r8], {{%r5, %r5, %r5, %r5}}; fence.proxy.async; bar.sync 0;
    @%p4 bra OTHERS; setp.ne.u32 %p5, %t, %t; wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {{{accumulator}}}, %d3, %d3, %p5, 1, 1, 0, 0;
    wgmma.commit_group.sync.aligned; {early} wgmma.wait_group.sync.aligned 0; {late} bra.uni END;
    OTHERS: bar.sync 1, 256; sub.u32 %r8, %r8, 2048; st.shared.v4.b32 [%r8], {{%t, %r5, %r5, %r5}}; END:"""
    arrive, words = "bar.arrive 1, 256;", {"descriptor": 1024 >> 4 | 16 << 16 | 16 << 32, "accumulator": accumulator}
    passes(body.format(early="", late=arrive, **words), block=256, smem=4096)
    finds(
        body.format(early=arrive, late="", **words),
        block=256,
        smem=4096,
        modes=("eager",),
        match="store of shared address 0x400, .* behind the asynchronous load of it by warp 0",
    )
