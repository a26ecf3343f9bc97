"""The PTX parser: operands, scopes, labels, line numbers."""

import numpy as np
import pytest
from snippet import frame, run

from cute_attn.sim.code.ptx import Imm, Mem, Pair, Reg, Sym, Vec, parse
from cute_attn.sim.errors import UnsupportedInstruction


def instructions(body):
    return parse(frame(body, ["pointer"]), "kernel").instructions[4:-1]  # without the frame's own


def test_operands():
    (one,) = instructions("cp.async.bulk.tensor.2d.x::y [%r1+-8], [%d1, {%r2, %r3}], [smem];")
    assert one.name == "cp"
    assert one.modifiers == ("async", "bulk", "tensor", "2d", "x::y")
    assert one.operands[0] == Mem(Reg("%r1", "r"), -8)
    assert one.operands[1] == Mem(Reg("%d1", "d"), 0, (Reg("%r2", "r"), Reg("%r3", "r")))
    assert one.operands[2] == Mem(Sym("smem"))


def test_guards_pairs_vectors_and_numbers():
    guarded, pair, vector = instructions(
        "@!%p1 mov.b32 %r1, 0f3F800000; setp.eq.s32 %p1|%p2, %r1, -0x10; mov.b64 {%r1, _}, %d1;"
    )
    assert guarded.guard == Reg("%p1", "p")
    assert guarded.guard_negated
    assert guarded.operands[1] == Imm(0x3F800000, 32)
    assert pair.operands[0] == Pair(Reg("%p1", "p"), Reg("%p2", "p"))
    assert pair.operands[2] == Imm(-16)
    assert vector.operands[0] == Vec((Reg("%r1", "r"), Sym("_")))


def test_scopes_have_their_own_registers_and_labels():
    scope = "{ .reg .pred P1; AGAIN: setp.eq.s32 P1, %r1, 0; @P1 bra AGAIN; bra OUT; }"
    first, jump, _, second, *_ = instructions(f"{scope} {scope} OUT:")
    assert first.operands[0] != second.operands[0]
    kernel = parse(frame(f"{scope} {scope} OUT:", ["pointer"]), "kernel")
    assert kernel.labels[jump.operands[0].name] == 4
    assert kernel.labels["OUT@1"] == 10


def test_lines_are_those_of_the_text():
    text = frame("// a comment\n    mov.u32 %r1, 1; /* two\n lines */ mov.u32\n %r2, 2;", ["pointer"])
    for one in parse(text, "kernel").instructions:
        assert one.name in text.split("\n")[one.line - 1]


def test_registers_of_several_elements():
    first, second = instructions(
        ".reg .v2 .f32 pair; .reg .v4 .b16 four; ld.global.v2.f32 pair, [%a0]; mov.b16 four.w, four.r;"
    )
    assert [o.kind for o in first.operands[0].items] == ["r", "r"]
    assert [o.kind for o in second.operands] == ["h", "h"]
    assert second.operands[0] != second.operands[1]
    out = np.array([1.0, 2.0, 0.0, 0.0], np.float32)
    run(".reg .v2 .f32 v; ld.global.v2.f32 v, [%a0]; add.f32 v.x, v.x, v.y; st.global.v2.f32 [%a0+8], v;", out)
    np.testing.assert_array_equal(out, [1, 2, 3, 2])


MALFORMED = [
    *("$ %r1;", "mov.u32 %r1, 0zz;", ".section debug;", ".reg .b33 %z;", ".reg;", ".reg .v3 .b32 v;", "mov.u32 %r1"),
    *(
        ".reg .v4 .b32 %v<3>;",
        "ld.global.u32 %r1, [%a0;",
        "mov.b64 {%r1, %r2, %d1;",
        "mov.u32 %r1, ;",
        "setp.eq.u32 %p1|;",
    ),
    *(".shared .b33 x[4];", ".local .align 4 .b33 x[4];", "mov.u32 %r1, 0f;", "@%p1;", "{ mov.u32 %r1, %r2;"),
]


@pytest.mark.parametrize("body", MALFORMED)
def test_what_does_not_parse_is_refused_with_its_line(body):
    with pytest.raises(UnsupportedInstruction) as caught:
        instructions(body)
    assert caught.value.place.line is not None


@pytest.mark.parametrize(
    "body",
    [
        *(
            "ld.global.u32 %r1;",
            "st.global.u32;",
            "bar.sync;",
            "mbarrier.init.shared.b64 [%r1];",
            "bra;",
            "elect.sync;",
        ),
        *(
            "cp.async.bulk.wait_group;",
            "cp.async.wait_group;",
            "wgmma.wait_group.sync.aligned;",
            "shfl.sync.idx.b32 %r1;",
        ),
        *("cvt.f32.f16 %r1;", "selp.b32 %r1;", "atom.global.add.u32 %r1;", "mov.b64 {%r1, %r2};", "add.u32;"),
        *("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1];", "ldmatrix.sync.aligned.m8n8.x4;"),
        *("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r1};", "prmt.b32 %r1;", "vote.sync.all.pred %p1;"),
    ],
)
def test_instructions_without_their_operands_are_refused_with_their_line(body):
    with pytest.raises(UnsupportedInstruction) as caught:
        run(body)
    assert caught.value.place.text == body


def test_a_missing_entry():
    with pytest.raises(UnsupportedInstruction, match="no such entry"):
        parse(frame("", []), "other")
