"""Whatever PTX comes, no error is another than one of the simulator's, with the line."""

import itertools
import re

import kernels
import numpy as np
import pytest
from kernels import attention, gram, grouped, matmul, warps
from snippet import frame, run

from cute_attn.sim.code.program import Program
from cute_attn.sim.errors import SimError

# One of each kind of instruction, with the registers of snippet.py
LINES = """
add.s32 %r1, %r2, %r3; add.f32 %r1, %r2, 0f3F800000; add.s64 %d1, %d2, 7; mul.wide.u32 %d1, %r2, %r3;
mad.lo.s32 %r1, %r2, %r3, %r4; fma.rn.f32 %r1, %r2, %r3, %r4; and.b32 %r1, %r2, 31; and.pred %p1, %p2, %p3;
shl.b32 %r1, %r2, 3; mov.b32 %r1, %tid.x; mov.b64 %d1, {%r1, %r2}; mov.b64 {%r1, _}, %d1; mov.u32 %r1, smem;
setp.lt.u32 %p1, %r1, 8; setp.eq.s32 %p1|%p2, %r1, -1; selp.b32 %r1, %r2, %r3, %p1; not.b32 %r1, %r2;
cvt.u64.u32 %d1, %r1; cvt.rn.bf16x2.f32 %r1, %r2, %r3; cvt.rn.bf16.f32 %h1, %r1; ex2.approx.ftz.f32 %r1, %r2;
max.f32 %r1, %r2, %r3; prmt.b32 %r1, %r2, %r3, 21520; bfe.u32 %r1, %r2, 4, 8; lop3.b32 %r1, %r2, %r3, %r4, 150;
ld.global.b32 %r1, [%a0]; ld.global.v2.b32 {%r1, %r2}, [%a0+8]; ld.shared.b16 %h1, [%r9]; ld.param.b64 %d1, [p0];
st.global.v2.b32 [%a0], {%r1, %r2}; st.shared.b32 [%r9+4], %r1; ld.acquire.gpu.global.b32 %r1, [%a0];
atom.global.add.u32 %r1, [%a0], 1; red.global.add.f32 [%a0], %r1; atom.global.cas.b32 %r1, [%a0], 0, %r2;
ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r1, %r2}, [%r9]; stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r9], {%r1};
shfl.sync.bfly.b32 %r1, %r2, 16, 31, -1; shfl.sync.idx.b32 %r1|%p1, %r2, 0, 31, -1; elect.sync _|%p1, -1;
vote.sync.ballot.b32 %r1, %p1, -1; redux.sync.add.u32 %r1, %r2, -1;
activemask.b32 %r1; mapa.shared::cluster.u32 %r1, %r2, %r3;
bar.sync 0; bar.sync 1, 32; bar.arrive 1, 32; bar.warp.sync -1; barrier.cluster.arrive.aligned;
setmaxnreg.inc.sync.aligned.u32 40;
mbarrier.init.shared.b64 [%r9], 1; mbarrier.arrive.shared.b64 _, [%r9]; mbarrier.inval.shared.b64 [%r9];
mbarrier.arrive.expect_tx.shared.b64 _, [%r9], 128; mbarrier.try_wait.parity.shared.b64 %p1, [%r9], 0;
fence.proxy.async.shared::cta; fence.acq_rel.gpu; wgmma.fence.sync.aligned; wgmma.wait_group.sync.aligned 0;
cp.async.cg.shared.global [%r9], [%a0], 16; cp.async.wait_group 0; cp.async.bulk.commit_group;
cp.async.bulk.wait_group 0;
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r9], [%a0], 16, [%r8];
cp.async.bulk.global.shared::cta.bulk_group [%a0], [%r9], 16;
cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%a0], [%r9], 16;
cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r9], [%a0, {%r1, 0}], [%r8];
cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%a0, {%r1, 0}], [%r9];
cp.async.bulk.tensor.3d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes
[%r9], [%a0, {%r1, 0, 0}], [%r8], {%h1};
st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%r9], %r1, [%r8];
tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%r9], %d1;
fence.proxy.tensormap::generic.acquire.gpu [%a0], 128;
mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
{%r1, %r2, %r3, %r4}, {%r5, %r6, %r7, %r10}, {%r11, %r12}, {%r1, %r2, %r3, %r4};
wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r1, %r2, %r3, %r4}, %d1, %d2, 1, 1, 1, 0, 0;
"""
MORE = [
    "ld.global.L2::cache_hint.u32 %r1, [%a0], %d1;",
    "red.global.add.L2::cache_hint.f32 [%a0], %r1, %d1;",
    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint "
    "[%r9], [%a0], 16, [%r8], %h1, %d1;",
    "cp.async.bulk.tensor.1d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
    "[%r9], [%a0, {%r1}], [%r8], %h1;",
    "cp.async.bulk.prefetch.L2.global [%a0], 256;",
    "cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%a0, {%r1, %r2}];",
    *("prefetch.global.L2 [%a0];", "prefetch.tensormap [%a0];", "nanosleep.u32 20;", "griddepcontrol.wait;"),
    *("cvta.to.global.u64 %d1, %d2;", "match.any.sync.b32 %r1, %r2, -1;", "cp.async.wait_all;", "fence.proxy.async;"),
]
HUGE = "9" * 20
OPERANDS = ["-1", "0", "1.5", "0x", HUGE, "-" + HUGE, str(1 << 63), "_", "%p1", "%h1", "%r1", "%d1", "!%p1", "%r1|%p1"]
OPERANDS += ["{}", "{%r1}", "{{%r1}}", "[]", "[%a0]", f"[%a0+{HUGE}]", f"[%a0+{1 << 40}]", "[%a0, {1, 2}]", "[p0+4096]"]
OPERANDS += ["%clock", "%nosuch", "smem", "p0", "", "|", "!!%p1", "0f3F800000", "0f3F8000000000", "1e999", "1.0e999"]
MODIFIERS = [".v2", ".v4", ".b33", ".f16x2", ".sync", ".foo", ".shared::cluster", ".u8", ".im2col", ".sat", ".5d", ""]
# A token that stands for something: a register, a number, a name, an address, a vector.
TOKEN = re.compile(r"\[[^\]]*\]|\{[^}]*\}|[%\w]+\|[%\w]+|[%$\w-][%$\w.]*")
INSIDE = re.compile(r"%?\w+")


def edits(line):
    """A line of PTX with each operand, and what is in it, replaced, left out, or one more; each modifier too."""
    head, _, rest = line.rstrip(";").partition(" ")
    spots = {m.span() for m in TOKEN.finditer(rest)} | {m.span() for m in INSIDE.finditer(rest)}
    for (first, end), operand in itertools.product(sorted(spots), OPERANDS):
        yield f"{head} {rest[:first]}{operand}{rest[end:]};"
    for place, char in enumerate(rest):
        if char in ",{}[]|":
            yield f"{head} {rest[:place]}{rest[place + 1 :]};"
            yield f"{head} {rest[:place]};"
    yield from (f"{head};", f"{line} {line[:-1]}", f"{head} {rest}, %r1;", f"{head} {rest} rubbish;", f"@{line}")
    name, *modifiers = head.split(".")
    for place, other in itertools.product(range(len(modifiers)), MODIFIERS):
        before, behind = modifiers[:place], modifiers[place + 1 :]
        yield f"{'.'.join([name, *before])}{other}{''.join('.' + m for m in behind)} {rest};"
    yield from (f"{head}{other} {rest};" for other in MODIFIERS)


def understood(text):
    """Parses, and makes functions of everything; whether it was understood. What it refuses has a line."""
    try:
        program = Program(text, "kernel")
        for node in program.nodes:
            if node.groups and node.function is None:
                program.compile(node)
    except SimError as error:
        if error.place.line is None and "no such entry" not in str(error):
            raise AssertionError(f"no line: {error}") from error
        return False
    return True


def swept(lines, registers="", *, step=1):
    """Which edits of these lines, or each so many, end in another error than one of the simulator's, run too."""
    wrong, number = {}, 0
    for line in lines:
        assert understood(frame(line, ["pointer"], declarations=registers)), line
        for edit in edits(line):
            number += 1
            if number % step:
                continue
            try:
                if understood(frame(edit, ["pointer"], declarations=registers)):
                    run(edit, np.zeros(64, np.uint32), smem=1024, declarations=registers)
            except SimError:
                continue
            except Exception as error:
                wrong[edit] = repr(error)
    return wrong


def listed():
    return [f"{' '.join(line.split())};" for line in LINES.split(";")[:-1]]


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_edited_lines_are_understood_or_refused(step):
    assert not swept(listed(), step=step)


OPTIONAL = ("bar.sync 0;", "mbarrier.arrive.shared", "mbarrier.try_wait", "cp.async.cg")  # may have one more


@pytest.mark.parametrize("line", [*listed(), *MORE])
def test_nothing_more_than_an_instruction_has_is_let_pass(line):
    def refused(edit):
        return not understood(frame(edit, ["pointer"]))

    head, _, rest = line[:-1].partition(" ")
    assert not refused(line)
    assert refused(f"{head} {rest} rubbish;")
    assert refused(f"{head}.rubbish {rest};")
    if not line.startswith(OPTIONAL):
        assert refused(f"{head} {rest}{',' if rest else ''} %r1;")
        assert refused(f"{head} {rest}{',' if rest else ''} [%a0];")


@pytest.mark.parametrize(
    "line",
    [
        "cp.async.bulk.shared::cluster.global [%r9], [%a0], 16, [%r8];",
        "cp.async.bulk.shared::cluster.global.bulk_group [%r9], [%a0], 16, [%r8];",
        "cp.async.bulk.global.shared::cta [%a0], [%r9], 16;",
        "cp.async.bulk.global.shared::cta.mbarrier::complete_tx::bytes [%a0], [%r9], 16;",
        "cp.async.bulk.global.shared::cta.bulk_group.multicast::cluster [%a0], [%r9], 16, %h1;",
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r9], [%a0], 16, [%r8];",
        *("max.sat.f32 %r1, %r2, %r3;", "cvt.ftz.u64.u32 %d1, %r1;", "setp.ftz.eq.b32 %p1, %r1, 0;"),
        *("ld.global.L2::cache_hint.u32 %r1, [%a0];", "applypriority.tensormap [%a0];"),
        "cp.async.bulk.tensor.1d.global.shared::cta.tile.bulk_group [%a0, {%r1}, {%r1}], [%r9];",
    ],
)
def test_what_an_instruction_must_have_or_cannot_is_asked_for(line):
    assert not understood(frame(line, ["pointer"]))


def by_itself(kernel):
    """Of a kernel, the first line of each opcode that is understood without the rest, and its registers."""
    found, text = {}, kernel.__ptx__
    registers = " ".join(x for x in re.findall(r"\.reg \.\w+ \s*%\w+<\d+>;", text) if not re.search("%[rp]<", x))
    for raw in text.split("\n"):
        line = re.sub(r"\s+", " ", raw.strip())
        opcode = re.match(r"[a-z][\w.:]*", line)
        if opcode and line.endswith(";") and line.count(";") == 1 and opcode.group() not in found:
            alone = re.sub(r"%r(\d+)", lambda m: f"%r{int(m.group(1)) % 512}", line)
            alone = re.sub(r"%p(\d+)", lambda m: f"%p{int(m.group(1)) % 64}", alone)
            if understood(frame(alone, ["pointer"], declarations=registers)):
                found[opcode.group()] = alone
    return list(found.values()), registers


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel",
    [kernels.column_sums, warps.warp_gram, grouped.grouped_copy, matmul.matmul, attention.attention, gram.gram],
    ids=lambda kernel: kernel.__name__,
)
def test_edited_lines_of_kernels_are_understood_or_refused(kernel):
    lines, registers = by_itself(kernel())
    assert len(lines) > 20
    assert not swept(lines, registers, step=3)


TEXT = frame(
    "\n".join(["{", *listed()[::9], "bra END;", "}", "END:", ".shared .align 8 .b8 more[64];"]), ["pointer", 64]
)


def test_text_that_ends_early_is_understood_or_refused():
    for end in range(len(TEXT)):
        understood(TEXT[:end])


def test_lines_out_of_order_are_understood_or_refused():
    lines = TEXT.split("\n")
    for i, j in itertools.combinations(range(len(lines)), 2):
        swapped = list(lines)
        swapped[i], swapped[j] = lines[j], lines[i]
        understood("\n".join(swapped))
