"""A slot that a shorter copy fills again: what is left of the longer one is of an earlier use."""

import numpy as np
import pytest
from snippet import run

from cute_attn.sim.errors import UninitializedRead

every_mode = pytest.mark.parametrize("mode", ["eager", "late", "random", "starve"])
SETUP = """
    mov.u32 %r9, smem; add.u32 %r8, %r9, 128; setp.ne.u32 %p9, %t, 0; mad.lo.u32 %r7, %t, 4, %r8; mov.u32 %r6, 0;
    @%p9 bra READY; mbarrier.init.shared.b64 [%r9], 1; fence.mbarrier_init.release.cluster; READY: bar.sync 0;
"""
SOURCE = np.arange(64, dtype=np.uint32)  # one fill after the other


def filled(number, *pieces):
    """Copies of (first byte, bytes) to the slot, the fill of this number of one mbarrier; all wait for it."""
    copies = "".join(
        f"""add.u64 %d3, %a1, {128 * number + first}; add.u32 %r5, %r8, {first};
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r5], [%d3], {size}, [%r9];"""
        for first, size in pieces
    )
    return f"""{{ bar.sync 0; @%p9 bra ISSUED;
    mbarrier.arrive.expect_tx.shared.b64 _, [%r9], {sum(size for _, size in pieces)}; {copies}
    ISSUED: W: mbarrier.try_wait.parity.shared.b64 %p8, [%r9], {number % 2}; @!%p8 bra W; }}"""


READ = "ld.shared.u32 %r6, [%r7];"
SEND = """bar.sync 0; @%p9 bra END; cp.async.bulk.global.shared::cta.bulk_group [%a0], [%r8], 128;
    cp.async.bulk.commit_group; cp.async.bulk.wait_group 0; END:"""
WHOLE, SHORT, REST = filled(0, (0, 128)), filled(1, (0, 112)), "setp.gt.u32 %p1, %t, 27;"


def left(body, mode, **options):
    out = np.zeros(32, np.uint32)
    end = "" if "END:" in body else "mad.wide.u32 %o, %t, 4, %a0; st.global.u32 [%o], %r6;"
    report = run(f"{SETUP} {body} {end}", out, SOURCE, smem=512, mode=mode, **options)
    return out, report.warnings


@every_mode
@pytest.mark.parametrize("reads", [READ, SEND])
def test_a_read_behind_the_end_of_a_shorter_copy_is_found(reads, mode):
    with pytest.raises(UninitializedRead, match="0x4f0, left from an earlier use"):
        left(WHOLE + READ + SHORT + reads, mode)


@every_mode
def test_where_a_warning_was_asked_for_the_kernel_reads_what_is_left(mode):
    out, (warning,) = left(WHOLE + SHORT + READ, mode, warned=[UninitializedRead])
    assert "left from an earlier use" in warning
    np.testing.assert_array_equal(out, np.where(np.arange(32) < 28, SOURCE[32:], SOURCE[:32]))


@every_mode
@pytest.mark.parametrize(
    ("body", "from_"),
    [
        (f"{WHOLE} {SHORT} {REST} @!%p1 ld.shared.u32 %r6, [%r7];", [1] * 28 + [None] * 4),
        (f"{WHOLE} {SHORT} {REST} @%p1 st.shared.u32 [%r7], %t; bar.sync 0; {READ}", [1] * 28 + [0] * 4),
        (f"{WHOLE} {REST} @%p1 st.shared.u32 [%r7], %t; bar.sync 0; {SHORT} {READ}", [1] * 28 + [0] * 4),
        (f"{WHOLE} {filled(1, (112, 16))} {filled(0, (0, 112))} {READ}", [0] * 28 + [1] * 4),
        (f"{WHOLE} {filled(1, (0, 112), (112, 16))} {READ}", [1] * 32),
        (f"{WHOLE} {filled(1, (16, 112))} {READ}", [0] * 4 + [1] * 28),
        (f"{WHOLE} {SHORT} {filled(0, (0, 128))} {READ}", [0] * 32),
    ],
    ids=[
        "not read",
        "stored behind",
        "stored before",
        "copied before",
        "copied too",
        "begins elsewhere",
        "whole again",
    ],
)
def test_what_was_written_since_or_is_not_read_is_let_pass(body, from_, mode):
    out, _ = left(body, mode)
    wanted = [0 if fill is None else SOURCE[32 * fill + i] for i, fill in enumerate(from_)]
    np.testing.assert_array_equal(out, wanted)
