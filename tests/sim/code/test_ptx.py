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
    *(".shared .align 0 .b8 foo[4];", ".local .align 0 .b8 foo[4];", ".shared .align 3 .b8 foo[4];", "[" * 3000 + ";"),
    *(
        f".shared .b8 foo[{9 * 10**19}];",
        ".shared .b8 foo[232449];",
        ".local .b8 foo[524289];",
        "mov.b64 " + "{" * 3000,
    ),
    *(
        "mov.b64 %d1, 99999999999999999999;",
        "mov.b64 %d1, -9223372036854775809;",
        "ld.global.u32 %r1, [%a0+2147483648];",
    ),
    *(
        "mov.u32 %r1, " + "!" * 3000 + "%p1;",
        "mov.b64 %d1, " + "{" * 3000 + "%r1" + "}" * 3000 + ";",
        "mov.f32 %r1, 0f1;",
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


HUGE = "99999999999999999999"


@pytest.mark.parametrize(
    "body",
    [
        *("add.s32 _, %r1, %r2;", "mov.u32 _, %r1;", "setp.eq.u32 _, %r1, %r2;", "cvt.u64.u32 _, %r1;"),
        *("shfl.sync.idx.b32 _, %r1, 0, 31, -1;", "ld.global.u32 _, [%a0];", "ld.global.v2.u32 {_, _}, [%a0];"),
        *("setp.eq.u32 _|_, %r1, %r2;", "elect.sync _|_, -1;", "ld.shared.b16 _, [smem];", "selp.b32 _, 1, 2, %p1;"),
        *(f"bar.sync {HUGE};", f"bar.arrive 1, {HUGE};", f"mbarrier.init.shared.b64 [%r9], {HUGE};"),
        *(f"mbarrier.arrive.expect_tx.shared.b64 _, [%r9], {HUGE};", f"ld.global.u32 %r1, [%a0+{HUGE}];"),
        "cp.async.bulk.tensor.1d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r9], "
        f"[%a0, {{{HUGE}}}], [%r8];",
        *("bar.warp.sync -1.;", "bar.sync 1.5;", "wgmma.wait_group.sync.aligned -1;", "cp.async.bulk.wait_group -1;"),
        *("add.s32 %r1, p0, %r2;", "add.f32 %r1, %tid.x, %r2;", "and.pred %p1, smem, %p2;", "mov.u16 %h1, smem;"),
        *("add.f32 %r1, !%p1, %r2;", "and.b32 %r1, !%r2, %r3;", "atom.global.add.u32 %r1, [%a0];"),
        *("atom.global.cas.b32 %r1, [%a0], 1;", "atom.global.add.u32 %r1, [%a0], 1, 2;"),
        "stmatrix.sync.aligned.m8n8.x2.shared.b16 [%r9], {%r1};",
        "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1, %r2}, [%r9];",
        *("mbarrier.try_wait.parity.shared.b64 %p1;", "mbarrier.try_wait.parity.shared.b64 %p1, [%r9];"),
    ],
)
def test_operands_of_another_kind_or_size_are_refused_with_their_line(body):
    with pytest.raises(UnsupportedInstruction) as caught:
        run(body, np.zeros(4, np.uint32))
    assert caught.value.place.text == body


@pytest.mark.parametrize("declaration", [".align 0 .b8 foo[4]", ".align 12 .b8 foo[4]", f".b8 foo[{HUGE}]"])
def test_variables_of_the_module_are_refused_with_their_line(declaration):
    text = frame("", []).replace(".extern", f"\n.shared {declaration};\n.extern", 1)
    with pytest.raises(UnsupportedInstruction) as caught:
        parse(text, "kernel")
    assert caught.value.place.text == f".shared {declaration};"


@pytest.mark.parametrize("parameter", [".align 0 .b8 p[4]", ".b8 p[32765]", f".b8 p[{HUGE}]"])
def test_parameters_that_no_kernel_has_are_refused(parameter):
    with pytest.raises(UnsupportedInstruction):
        parse(frame("", ["pointer"]).replace(".param .u64 p0", f".param {parameter}"), "kernel")


def test_numbers_have_up_to_64_bits():
    out = np.zeros(2, np.uint64)
    run(
        "mov.b64 %d1, 18446744073709551615; mov.b64 %d2, -9223372036854775808; st.global.v2.b64 [%a0], {%d1, %d2};", out
    )
    assert out.tolist() == [(1 << 64) - 1, 1 << 63]


def test_special_registers_are_read_in_any_integer_type():
    out = np.zeros(2, np.int64)
    run(
        "mov.u16 %h1, %ntid.x; cvt.u64.u16 %d1, %h1; add.s64 %d2, %ntid.x, -40; st.global.v2.b64 [%a0], {%d1, %d2};",
        out,
    )
    assert out.tolist() == [32, -8]


def test_a_missing_entry():
    with pytest.raises(UnsupportedInstruction, match="no such entry"):
        parse(frame("", []), "other")
