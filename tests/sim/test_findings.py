"""What the simulator finds it names: kernel, PTX line, warps, and the barrier, address or register."""

import numpy as np
import pytest
from snippet import run

from cute_attn.sim import errors

BARRIER = """
    mov.u32 %r9, smem; add.u32 %r8, %r9, 1024; setp.ne.u32 %p9, %t, 64; setp.ne.u32 %p7, %warp, 2; mov.u32 %r5, 0;
    @%p9 bra READY;
    mbarrier.init.shared.b64 [%r9], 1;
    READY: bar.sync 0;
    @%p7 bra END;
"""
WAIT = "W: mbarrier.try_wait.parity.shared.b64 %p8, [%r9], 0;\n @!%p8 bra W;"
LOAD = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r8], [%a0], 128, [%r9];"
REDUCE = "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%a0], [%r8], 16;"
FENCE, COMMIT = "wgmma.fence.sync.aligned;", "wgmma.commit_group.sync.aligned;"
ACCUMULATOR = ", ".join(f"%r{100 + i}" for i in range(4))
# warps of the second warpgroup multiply zeros
PRODUCT = f"""
    mov.u32 %r9, smem; setp.lt.u32 %p7, %t, 128; setp.eq.u32 %p5, %t, %t; mov.u32 %r5, 0; mad.lo.u32 %r8, %t, 16, %r9;
    st.shared.v4.b32 [%r8], {{%r5, %r5, %r5, %r5}}; mov.b64 %d3, {1024 >> 4 | 16 << 16 | 16 << 32};
    fence.proxy.async.shared::cta; bar.sync 0; @%p7 bra END; mov.b32 %r100, 0; mov.b32 %r101, 0; mov.b32 %r102, 0;
    mov.b32 %r103, 0; {FENCE}
    wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {{{ACCUMULATOR}}}, %d3, %d3, %p5, 1, 1, 0, 0;
    {COMMIT}
"""
THIRD, SECOND_GROUP = (2,), (4, 5, 6, 7)


@pytest.mark.parametrize(
    ("body", "mode", "error", "line", "warps", "subject"),
    [
        (BARRIER + WAIT, "eager", "Deadlock", "try_wait", THIRD, "mbarrier 0x400"),
        (BARRIER + "bar.sync 3, 64;", "eager", "Deadlock", "bar.sync 3", THIRD, "barrier 3"),
        (BARRIER + "ld.global.u32 %r1, [%a0+512];", "eager", "OutOfBounds", "ld.global", THIRD, "global 0x"),
        (BARRIER + "st.global.u32 [%a0+1], %t;", "eager", "Misaligned", "st.global", THIRD, "global 0x"),
        (BARRIER + "ld.shared.u32 %r1, [%r8];", "eager", "UninitializedRead", "ld.shared", THIRD, "shared 0x800"),
        (BARRIER + "ld.global.u32 %r1, [%a1];", "eager", "UninitializedRead", "ld.global", THIRD, "global 0x"),
        (
            BARRIER + f"@%p9 bra END; mbarrier.arrive.expect_tx.shared.b64 _, [%r9], 128;\n {LOAD}\n"
            "ld.shared.u32 %r1, [%r8];",
            *("late", "CopyInFlight", "ld.shared", THIRD, "shared 0x800"),
        ),
        (
            BARRIER + "st.shared.v4.b32 [%r8], {%r5, %r5, %r5, %r5};\n @%p9 bra END;\n"
            "cp.async.bulk.global.shared::cta.bulk_group [%a0], [%r8], 16;",
            *("eager", "MissingProxyFence", "cp.async.bulk.global", THIRD, "shared 0x800"),
        ),
        (
            BARRIER + f"@%p9 bra END;\n mbarrier.arrive.expect_tx.shared.b64 _, [%r9], 256;\n {LOAD}",
            *("eager", "TransactionCount", "expect_tx", THIRD, "mbarrier 0x400"),
        ),
        (
            BARRIER + f"@%p9 bra END;\n mbarrier.arrive.expect_tx.shared.b64 _, [%r9], 64;\n {LOAD}",
            *("eager", "TransactionCount", "cp.async.bulk", THIRD, "mbarrier 0x400"),
        ),
        (BARRIER + "mbarrier.arrive.shared.b64 _, [%r9];", "eager", "OverArrival", "arrive", THIRD, "mbarrier 0x400"),
        (BARRIER + "bar.arrive 2, 64; bar.arrive 2, 96;", "eager", "OverArrival", "bar.arrive 2", THIRD, "barrier 2"),
        (
            BARRIER + "st.shared.v4.b32 [%r8], {%r5, %r5, %r5, %r5};\n fence.proxy.async.shared::cta;\n" + REDUCE,
            *("eager", "RedundantReduction", "cp.reduce", THIRD, "shared 0x800"),
        ),
        (
            BARRIER + "ld.shared.u32 %r1, [%r9+8192];",
            "eager",
            "SharedMemoryExceeded",
            "ld.shared",
            THIRD,
            "shared 0x2400",
        ),
        (PRODUCT + "mov.b32 %r7, %r101;\n", "late", "AccumulatorInFlight", "mov.b32 %r7", SECOND_GROUP, "%r101"),
        (PRODUCT, "eager", "AccumulatorInFlight", "wgmma.mma_async", (4,), ""),
        (
            PRODUCT + "st.shared.u32 [%r9], 1;\n",
            "eager",
            "CopyInFlight",
            "st.shared.u32 [%r9]",
            SECOND_GROUP,
            "shared 0x400",
        ),
        (BARRIER + "dp4a.u32.u32 %r1, %r1, %r1, %r1;", "eager", "UnsupportedInstruction", "dp4a", (), ""),
    ],
)
def test_each_finding_names_kernel_line_warp_and_subject(body, mode, error, line, warps, subject):
    out, unwritten = np.zeros(128, np.uint32), np.zeros(4, np.uint32)
    with pytest.raises(getattr(errors, error)) as caught:
        run(body + "\n END:", out, unwritten, block=256, smem=8192, mode=mode, unwritten=[1])
    found = caught.value
    assert type(found).__name__ == error
    assert found.place.kernel == "kernel"
    assert line in found.place.text
    assert found.place.line
    assert found.place.warps == warps
    assert found.subject.startswith(subject)
    for part in ("kernel kernel", f"PTX line {found.place.line}", *map(str, warps)):
        assert part in str(found)
