"""The static profile: how machine code is read, and what it must say of the kernels."""

import json

import pytest
from click.testing import CliRunner

from cute_attn.cli import main
from cute_attn.fwd.config import default_tile
from cute_attn.jit.compile import Compiled
from cute_attn.jit.entry import Entry
from cute_attn.jit.obtain import cached_or_compiled
from cute_attn.profile import sass
from cute_attn.profile.inspect import inspect
from cute_attn.spec.attention import HEAD_DIMS
from cute_attn.spec.forward import ForwardSpec
from cute_attn.spec.mask import MaskForm
from cute_attn.spec.score import ScoreForm
from cute_attn.spec.tiles import TileConfig

CODE = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR24+0x30], R15 ;
        /*0020*/              @!P0 BRA `(.L_x_0) ;
        /*0030*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR20], RZ, !UPT ;
        /*0040*/                   UIADD3 UR4, UR4, 0x1, URZ ;
        /*0050*/                   MUFU.EX2 R3, R3 ;
        /*0060*/                   VOTE.ANY P1, P1 ;
        /*0070*/              @!P1 BRA `(.L_x_1) ;
        /*0080*/                   FMUL R3, R3, R4 ;
        /*0090*/                   FMUL R5, R5, R4 ;
.L_x_1:
        /*00a0*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*00b0*/                   MUFU.EX2 R6, R6 ;
        /*00c0*/               @P2 BRA `(.L_x_0) ;
        /*00d0*/                   EXIT ;
.L_x_2:
        /*00e0*/                   BRA `(.L_x_2);
"""


def test_a_loop_is_counted_by_what_every_pass_issues():
    (blocks,) = sass.parse(CODE)
    (loop,) = sass.loops(blocks)
    assert [i.opcode for i in loop.instructions(common=False)] == ["FMUL", "FMUL"]
    common = [i for i in loop.instructions() if i.pipe != "uniform"]
    assert [i.pipe for i in common] == ["memory", "control", "hgmma", "mufu", *["control"] * 3, "mufu", "control"]


def test_what_is_issued_before_the_wait_is_told_from_what_comes_after(monkeypatch):
    monkeypatch.setattr(sass, "disassemble", lambda cubin: CODE)
    told = {"registers": 168, "spill_bytes": 0, "shared_memory_bytes": 0, "warnings": []}
    monkeypatch.setattr(Entry, "cubin", b"")
    (loop,) = inspect(Entry(ForwardSpec(), b"", b"", told)).loops
    assert (loop.tensor_cycles, loop.common, loop.conditional, loop.mufu_before_pv_wait) == (64, 9, 2, 1)
    assert loop.slots_per_cycle == 9 / 64


def test_the_assemblers_words_are_understood_though_they_are_wrapped():
    log = (
        "\x1b[96mremark\x1b[0m ptxas info    : (C7512) Potential Performance Loss: wgmma.mma_async instructions are\n"
        "      serialized due to insufficient register resources\n ptxas info : 16 bytes stack frame, 24 bytes spill\n"
        "  stores, 8 bytes spill loads\n ptxas info: Used 168 registers"
    )
    compiled = Compiled(ForwardSpec(), None, "", b"", log)
    assert (compiled.registers, compiled.spill_bytes) == (168, 32)
    (warning,) = compiled.warnings
    assert warning.startswith("(C7512)")
    assert warning.endswith("insufficient register resources")


def profile(**fields):
    """Beyond head_dim 128 producers may keep a few numbers in local memory between items, but no loop of tiles."""
    entry = cached_or_compiled(ForwardSpec(**fields))
    report = inspect(entry)
    assert report.spill_bytes <= (20 if fields.get("head_dim", 128) > 128 else 0)
    assert report.warnings == ()
    for loop in (loop for blocks in sass.parse(sass.disassemble(entry.cubin)) for loop in sass.loops(blocks)):
        opcodes = {i.opcode.partition(".")[0] for common in (True, False) for i in loop.instructions(common=common)}
        assert not opcodes & {"LDL", "STL"}
    for loop in report.loops:
        assert loop.mufu_before_pv_wait == loop.by_pipe["mufu"], "an exponential comes after the wait for PV"
    return report.loops


@pytest.mark.slow
def test_the_causal_forward_issues_little_beside_its_products():
    partial, full = profile(mask=MaskForm(True))
    assert full.slots_per_cycle <= 0.28
    assert partial.slots_per_cycle <= 0.346


MASKS = {
    "dense": {},
    "bounded": {"mask": MaskForm(True)},
}


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    ("dims", "dtype"), [*((dims, "bf16") for dims in HEAD_DIMS), *((dims, "fp16") for dims in HEAD_DIMS[1::2])]
)
def test_no_default_tile_spills_in_a_loop_or_serialises_and_masks_cost_little(dims, mask, dtype):
    tile = default_tile(*dims)
    partial, full = profile(dtype=dtype, head_dim=dims[0], head_dim_v=dims[1], tile=tile, **MASKS[mask])
    limit = 0.82 if mask == "dense" else 0.7  # 0.5 a key are selects, 0.11 make predicates of bits
    assert (partial.common - full.common) / 2 <= limit * tile.n


@pytest.mark.slow
@pytest.mark.parametrize("dims", HEAD_DIMS)
@pytest.mark.parametrize(
    "options",
    [
        {"softmax": "exact"},
        {"softmax": "exact", "max_logits": True, "sink": True},
        {"score": ScoreForm("softcap"), "sink": True},
        {"score": ScoreForm("scaled")},
        {"fp32_out": True},
    ],
)
def test_no_option_makes_a_default_tile_spill_in_a_loop_or_serialise(dims, options):
    profile(head_dim=dims[0], head_dim_v=dims[1], tile=default_tile(*dims), mask=MaskForm(True), **options)


@pytest.mark.slow
def test_three_consumer_warpgroups_neither_spill_nor_serialise():
    profile(head_dim=64, head_dim_v=64, mask=MaskForm(True), softmax="exact", tile=TileConfig(192, 128))


@pytest.mark.slow
def test_the_command_prints_json_and_keeps_the_code(tmp_path):
    result = CliRunner().invoke(main, ["inspect", "--head-dim", "64", "--json", "--keep", str(tmp_path)])
    report = json.loads(result.output)
    assert set(report) == {"registers", "spill_bytes", "smem_bytes", "warnings", "loops"}
    assert {p.suffix for p in tmp_path.iterdir()} == {".ptx", ".cubin"}
