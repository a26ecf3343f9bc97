"""Every way for a kernel to read global memory finds what nobody wrote, and what does not read it does not."""

import numpy as np
import pytest
from snippet import frame, run, tensor_map

from cute_attn.sim.errors import CopyInFlight, UninitializedRead
from cute_attn.sim.schedules import side_by_side

every_mode = pytest.mark.parametrize("mode", ["eager", "late", "random"])
# %r9: shared memory and an mbarrier of one arrival in it; %r8 = %r9 + 1024: 256 bytes of zeros; %p9: not thread 0
SETUP = """
    mov.u32 %r9, smem; add.u32 %r8, %r9, 1024; setp.ne.u32 %p9, %t, 0; mov.u32 %r5, 0; mov.b64 %d5, 0;
    mad.lo.u32 %r7, %t, 16, %r8; st.shared.v4.b32 [%r7], {%r5, %r5, %r5, %r5}; st.shared.b32 [%r7+256], %r5;
    fence.proxy.async.shared::cta; mov.b64 %d1, p1;
    @%p9 bra READY; mbarrier.init.shared.b64 [%r9], 1; fence.mbarrier_init.release.cluster; READY: bar.sync 0;
    mad.wide.u32 %o, %t, 16, %a0;
"""
WAIT = "W: mbarrier.try_wait.parity.shared.b64 %p8, [%r9], 0; @!%p8 bra W;"
EXPECT = "@%p9 bra ISSUED; mbarrier.arrive.expect_tx.shared.b64 _, [%r9], 256;"
COPY = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r8], [%a0], 256, [%r9];"
TENSOR_COPY = (
    "cp.async.bulk.tensor.2d.shared::cta.global.tile.mbarrier::complete_tx::bytes [%r8], [{}, {{{}, %r5}}], [%r9];"
)
REDUCTION = "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%a0], [%r8], 256;"
TENSOR_REDUCTION = "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%d1, {%r5, %r5}], [%r8];"
COMMIT = "cp.async.bulk.commit_group; cp.async.bulk.wait_group 0; ISSUED:"
LANDED = f"ISSUED: {WAIT}"
# path: the instruction, what comes before it and what comes after
READS = {
    "8 bits": ("ld.global.b8 %h1, [%o];", "", ""),
    "16 bits": ("ld.global.b16 %h1, [%o];", "", ""),
    "32 bits": ("ld.global.b32 %r1, [%o];", "", ""),
    "64 bits": ("ld.global.b64 %d2, [%o];", "", ""),
    "two words": ("ld.global.v2.b32 {%r1, %r2}, [%o];", "", ""),
    "four words": ("ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%o];", "", ""),
    "eight words": ("ld.global.v8.b32 {%r1, %r2, %r3, %r4, %r10, %r11, %r12, %r13}, [%a0];", "", ""),
    "a generic address": ("ld.b32 %r1, [%o];", "", ""),
    "acquire": ("ld.acquire.gpu.global.b32 %r1, [%o];", "", ""),
    "some lanes": ("@!%p9 ld.global.b32 %r1, [%o];", "", ""),
    "atomic sum": ("atom.global.add.u32 %r1, [%o], 1;", "", ""),
    "atomic compare and swap": ("atom.global.cas.b32 %r1, [%o], 1, 2;", "", ""),
    "atomic exchange": ("atom.global.exch.b64 %d2, [%o], %d5;", "", ""),
    "sum of floats": ("red.global.add.f32 [%a0], %r5;", "", ""),
    "maximum": ("red.global.max.u32 [%o], %r5;", "", ""),
    "sum of vectors": ("red.global.v4.f32.add [%o], {%r5, %r5, %r5, %r5};", "", ""),
    "cp.async of 4 bytes": ("cp.async.ca.shared.global [%r7], [%o], 4;", "", "cp.async.wait_all;"),
    "cp.async of 8 bytes": ("cp.async.ca.shared.global [%r7], [%o], 8;", "", "cp.async.wait_all;"),
    "cp.async of 16 bytes": ("cp.async.cg.shared.global [%r7], [%o], 16;", "", "cp.async.wait_all;"),
    "cp.async of a part": ("cp.async.cg.shared.global [%r7], [%o], 16, 3;", "", "cp.async.wait_all;"),
    "bulk copy": (COPY, EXPECT, LANDED),
    "tensor copy": (TENSOR_COPY.format("%d1", "%r5"), EXPECT, LANDED),
    "bulk reduction": (REDUCTION, "@%p9 bra ISSUED;", COMMIT),
    "tensor reduction": (TENSOR_REDUCTION, "@%p9 bra ISSUED;", COMMIT),
    "tensor map": (TENSOR_COPY.format("%a0", "%r5"), EXPECT, LANDED),
}
NO_READS = {
    "prefetch": "prefetch.global.L2 [%o];",
    "bulk prefetch": "cp.async.bulk.prefetch.L2.global [%a0], 256;",
    "ld by no lane": "@%p9 bra ISSUED; setp.ne.u32 %p1, %t, 0; @%p1 ld.global.b32 %r1, [%o]; ISSUED:",
    "cp.async of nothing": "cp.async.cg.shared.global [%r7], [%o], 16, 0; cp.async.wait_all;",
    "tensor copy from outside": f"mov.u32 %r6, 128; {EXPECT} {TENSOR_COPY.format('%d1', '%r6')} {LANDED}",
    "st": "st.global.v4.b32 [%o], {%r5, %r5, %r5, %r5}; ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%o];",
    "bulk store": "@%p9 bra ISSUED; cp.async.bulk.global.shared::cta.bulk_group [%a0], [%r8], 256;"
    f"{COMMIT} bar.sync 0; mad.wide.u32 %o, %t, 8, %a0; ld.global.v2.b32 {{%r1, %r2}}, [%o];",
}


def launch(body, mode, **options):
    memory = np.zeros((8, 128), np.float32)
    return run(SETUP + body, memory, tensor_map(memory, (8, 8)), smem=2048, mode=mode, unwritten=[0], **options)


@every_mode
@pytest.mark.parametrize("path", READS)
def test_a_read_of_what_nobody_wrote_names_the_buffer_the_line_and_the_warp(path, mode):
    instruction, before, after = READS[path]
    with pytest.raises(UninitializedRead, match="byte 0 of argument 0 that nobody wrote") as caught:
        launch(f"{before}\n{instruction}\n{after}", mode)
    found = caught.value
    assert found.subject.startswith("global 0x")
    if instruction in found.place.text and found.place.warps:
        assert found.place.warps == (0,)
    else:  # noticed when the copy lands, which notes where it was issued
        assert mode != "eager"
        (note,) = found.notes
        line = frame(SETUP + before, ["pointer", 128]).split(before + "\n    ret")[0].count("\n") + 2
        assert f"(PTX line {line}, warp 0)" in note


@every_mode
@pytest.mark.parametrize("path", sorted(READS.keys() - {"tensor map"}))  # zeros are none
def test_where_a_warning_was_asked_for_the_kernel_goes_on_and_the_report_names_the_line(path, mode):
    instruction, before, after = READS[path]
    (warning,) = launch(f"{before}\n{instruction}\n{after}", mode, warned=[UninitializedRead]).warnings
    assert warning.startswith("UninitializedRead: ")
    assert "byte 0 of argument 0 that nobody wrote" in warning
    if mode == "eager":
        assert instruction in warning


@pytest.mark.parametrize("path", NO_READS)
@every_mode
def test_what_does_not_read_is_no_read(path, mode):
    launch(NO_READS[path], mode)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("shift", [0, 1])
def test_one_byte_that_nobody_wrote_is_found_in_words_of_any_size(size, shift):
    """Also in a buffer that does not begin at a multiple of the word."""
    backing = np.zeros(256, np.uint8)
    memory = backing[-backing.ctypes.data % 16 + 16 - shift :][:64]
    load = {1: "b8 %h1", 2: "b16 %h1", 4: "b32 %r1", 8: "b64 %d1", 16: "v2.b64 {{%d1, %d2}}"}[size]
    bad, first = 16 + size - 1 + shift, 16 + shift
    write = f"add.u32 %r1, %t, {shift}; cvt.u64.u32 %d2, %r1; add.u64 %o, %a0, %d2; mov.u16 %h1, 0;"
    body = (
        f"{write} setp.ne.u32 %p1, %r1, {bad}; @%p1 st.global.b8 [%o], %h1; bar.sync 0; ld.global.{load}, [%a0+{{}}];"
    )
    with pytest.raises(UninitializedRead, match=f"byte {bad} of argument 0 that nobody wrote"):
        run(body.format(first), memory, unwritten=[0])
    if size < 16:
        run(body.format(first - 16), memory, unwritten=[0])


@pytest.mark.parametrize("mode", ["eager", "random"])
def test_warnings_are_those_of_one_process(monkeypatch, mode):
    """One a kind and PTX line, of the first that met it."""
    monkeypatch.setattr(side_by_side, "FORKING", 0.0)
    monkeypatch.setattr(side_by_side, "COMPARING", 0.0)
    body = "mov.u32 %r1, %ctaid.x; mad.wide.u32 %o, %r1, 4, %a0; ld.global.u32 %r2, [%o];\nld.global.u32 %r2, [%o];"
    memory, options = np.zeros(11, np.uint32), {"grid": 11, "unwritten": [0], "warned": [UninitializedRead]}
    one, several = (run(body, memory, mode=mode, workers=n, **options).warnings for n in (1, 3))
    assert one == several
    assert len(one) == 2
    assert all("byte 0 of argument 0" in warning for warning in one) or mode == "random"


@every_mode
def test_shared_memory_that_nobody_wrote_is_read_as_it_is(mode):
    out = np.zeros(32, np.uint32)
    body = """mov.u32 %r9, smem; mad.lo.u32 %r8, %t, 4, %r9; ld.shared.u32 %r1, [%r8]; mad.wide.u32 %o, %t, 4, %a0;
    st.global.u32 [%o], %r1;"""
    with pytest.raises(UninitializedRead, match="read of shared address 0x400 that nobody wrote"):
        run(body, out, smem=128, mode=mode)
    (warning,) = run(body, out, smem=128, mode=mode, warned=[UninitializedRead]).warnings
    assert "read of shared address 0x400 that nobody wrote" in warning
    assert (out == 0xFFFFFFFF).all()


def test_a_copy_in_flight_stays_an_error_in_a_word_that_nobody_wrote_else():
    copy = "mov.u32 %r9, smem; cp.async.ca.shared.global [%r9+4], [%a0], 4;"
    load = "ld.shared.v4.u32 {%r1, %r2, %r3, %r4}, [%r9];"
    with pytest.raises(CopyInFlight):
        run(f"{copy} {load}", np.zeros(4, np.uint32), block=1, smem=16, mode="late", warned=[UninitializedRead])


@pytest.mark.parametrize("workers", [1, 2])
def test_what_another_process_wrote_is_no_finding_and_what_nobody_wrote_is_one(monkeypatch, workers):
    monkeypatch.setattr(side_by_side, "FORKING", 0.0)
    monkeypatch.setattr(side_by_side, "COMPARING", 0.0)
    body = """mov.u32 %r1, %ctaid.x; mad.wide.u32 %o, %r1, 4, %a0; st.global.u32 [%o], %r1;
    setp.eq.u32 %p1, %r1, 0; @%p1 bra END; ld.global.u32 %r2, [%o{}]; END:"""
    memory = np.zeros(12, np.uint32)
    run(body.format("+-4"), memory, grid=11, unwritten=[0], workers=workers)
    np.testing.assert_array_equal(memory[:11], np.arange(11))
    with pytest.raises(UninitializedRead, match="byte 8 of argument 0") as caught:
        run(body.format("+4"), memory, grid=11, unwritten=[0], workers=workers)
    assert caught.value.place.cta == (1, 0, 0)
