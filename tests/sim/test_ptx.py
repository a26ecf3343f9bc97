"""The PTX parser: operands, scopes, labels, line numbers."""

import pytest
from snippet import frame

from cute_attn.sim.errors import UnsupportedInstruction
from cute_attn.sim.ptx import Imm, Mem, Pair, Reg, Sym, Vec, parse


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


@pytest.mark.parametrize("body", ["$ %r1;", "mov.u32 %r1, 0zz;", ".section debug;"])
def test_what_does_not_parse_is_refused_with_its_line(body):
    with pytest.raises(UnsupportedInstruction) as caught:
        instructions(body)
    assert caught.value.place.line is not None


def test_a_missing_entry():
    with pytest.raises(UnsupportedInstruction, match="no such entry"):
        parse(frame("", []), "other")
