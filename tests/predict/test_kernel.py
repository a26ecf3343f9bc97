"""From machine code to the steps that the model plays."""

import json

import pytest

from cute_attn.predict.kernel import Code, Loop, Step, read
from cute_attn.profile import sass

# A loop as flash-attention kernels have it, shortened: scores, the output of the tile before, softmax.
TEXT = """
.text.kernel:
.L_1:
  /*0000*/ SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR32+0x10], R7 ;
  /*0010*/ BAR.SYNC.DEFER_BLOCKING R10, 0x100 ;
  /*0020*/ WARPGROUP.ARRIVE ;
  /*0030*/ UIADD3 UR4, UR4, 0x1, URZ ;
  /*0040*/ HGMMA.64x128x16.F32.BF16 R24, gdesc[UR48], RZ, !UPT ;
  /*0050*/ HGMMA.64x128x16.F32.BF16 R24, gdesc[UR36], R24, gsb0 ;
  /*0060*/ HGMMA.64x64x16.F32.BF16 R88, R164, gdesc[UR16].tnspB, R88, gsb0 ;
  /*0070*/ BAR.ARV R15, 0x100 ;
  /*0080*/ WARPGROUP.DEPBAR.LE gsb0, 0x1 ;
  /*0090*/ FMNMX R1, R2, R3, !PT ;
  /*00a0*/ FFMA R1, R2, R3, R4 ;
  /*00b0*/ MUFU.EX2 R1, R1 ;
  /*00c0*/ F2FP.BF16.F32.PACK_AB R5, R1, R2 ;
  /*00d0*/ STSM.16.M88.4 [R1], R4 ;
  /*00e0*/ WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
  /*00f0*/ BRA `(.L_1) ;
"""
BACKWARD = """
.text.kernel:
.L_1:
  /*0000*/ HGMMA.64x64x16.F32.BF16 R24, gdesc[UR48], RZ, !UPT, gsb0 ;
  /*0010*/ BAR.SYNC.DEFER_BLOCKING 0x5, 0x100 ;
  /*0020*/ WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
  /*0030*/ BAR.SYNC.DEFER_BLOCKING R3, 0xa0 ;
  /*0040*/ BAR.ARV R4, 0xa0 ;
  /*0050*/ BRA `(.L_1) ;
"""


@pytest.fixture
def reading(monkeypatch):
    """`reading(text)` is the code of a kernel that the disassembler shows so."""

    def code(text):
        monkeypatch.setattr(sass, "disassemble", lambda cubin: text)
        return read(b"")

    return code


def test_a_loop_becomes_steps_with_what_each_occupies(reading):
    (loop,) = reading(TEXT).loops
    kinds = [step.kind for step in loop.steps]
    assert kinds == [
        "run",
        "turn",
        "run",
        "products",
        "run",
        "products",
        "run",
        "give",
        "run",
        "wait",
        "run",
        "wait",
        "run",
    ]
    first, second = (step.work for step in loop.steps if step.kind == "products")
    assert (first, second) == ((128,), (32,))
    softmax = loop.steps[10].work
    assert softmax == (6, 1, 4, 8, 16)  # slots with the wait's own; FFMA; FMNMX and F2FP at 2; MUFU at 8; STSM of four


def test_products_cost_their_rows_and_operands_from_shared_memory(reading):
    (loop,) = reading(TEXT).loops
    assert loop.tensor_cycles == 64 + 64 + 32
    assert loop.shared_cycles == 2 * (32 + 16) + 16  # A of the last comes from registers


def test_uniform_instructions_take_no_slot(reading):
    (loop,) = reading(TEXT).loops
    (without,) = reading(TEXT.replace("  /*0030*/ UIADD3 UR4, UR4, 0x1, URZ ;\n", "")).loops
    assert loop == without


def test_without_turns_a_barrier_of_all_consumers_is_a_meeting_and_that_with_a_warp_more_sends(reading):
    (loop,) = reading(BACKWARD).loops
    kinds = [step.kind for step in loop.steps if step.kind != "run"]
    assert kinds == ["products", "meet", "wait", "staged", "send"]


def test_additions_from_registers_send_as_one_once_the_last_are_gone(reading):
    additions = "".join(
        f"  /*00{at}*/ REDG.E.ADD.F32x4.FTZ.RN.STRONG.GPU desc[UR4][R2.64+0x{at}0], R24 ;\n" for at in (30, 40)
    )
    before, _, after = BACKWARD.partition("  /*0030*/")
    (loop,) = reading(before + additions + "  /*0050*/ BRA" + after.rpartition(" BRA")[2]).loops
    assert [step.kind for step in loop.steps if step.kind != "run"] == ["products", "meet", "wait", "staged", "send"]
    assert loop.total("lsu") == 2 * 16  # of 16 bytes a thread each
    turns = BACKWARD.replace("  /*0040*/", additions + "  /*0040*/")
    assert [step.kind for step in reading(turns).loops[0].steps if step.kind in ("staged", "send")] == [
        "staged",
        "send",
    ]


def test_a_kernel_without_products_is_refused(reading):
    with pytest.raises(ValueError, match="no loop with tensor-core products"):
        reading(".text.kernel:\n.L_1:\n  /*0000*/ FADD R1, R1, R2 ;\n  /*0010*/ BRA `(.L_1) ;\n")


def test_full_tiles_take_the_leaner_loop():
    lean, masked = (Loop((Step("run", (slots, 0, 0, 0, 0)),), 100, 50) for slots in (10, 20))
    code = Code((masked, lean))
    assert (code.full, code.partial) == (lean, masked)


def test_code_survives_json(reading):
    code = reading(TEXT)
    assert Code.from_json(json.loads(json.dumps(code.to_json()))) == code
