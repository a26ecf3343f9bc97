"""`cute-attn plan` and the pictures of a placement."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from cute_attn.cli import main
from cute_attn.dist import ContiguousDispatchAlg, DispatchConfig, place
from cute_attn.dist.plans.draw import draw_text, ownership
from cute_attn.dist.plans.placed import PlacedMask
from cute_attn.dist.workload import lognormal_documents
from cute_attn.mask import builders


def run(*arguments):
    return CliRunner().invoke(main, ["plan", *arguments])


def test_the_plan_of_a_mask_is_a_table_and_a_picture(tmp_path):
    png = tmp_path / "plan.png"
    result = run("--world", "8", "--seqlen", "8Ki", "--documents", "512", "--chunk-size", "128", "--png", str(png))
    assert result.exit_code == 0, result.output
    assert "8 ranks of 8 chunks of 128 rows by auto, 0 rows of padding" in " ".join(result.output.split())
    for mover in ("all_gather", "group_cast", "ring", "ulysses"):
        assert mover in result.output
    assert png.read_bytes().startswith(b"\x89PNG")


def test_the_documented_plan_is_what_the_command_prints():
    page = (Path(__file__).parents[2] / "docs" / "context_parallel.md").read_text()
    shown = page.split("```text\n")[1].split("```")[0]
    printed = run("--world", "16", "--seqlen", "128Ki", "--documents", "4Ki").output
    lines = {" ".join(line.split()) for line in printed.splitlines()}
    missing = [line for line in shown.splitlines() if " ".join(line.split()) not in lines]
    assert not missing


@pytest.mark.parametrize("alg", ["auto", "locality", "min_heap", "contiguous", "zigzag"])
def test_every_algorithm_can_be_asked_for(alg):
    result = run("--world", "4", "--seqlen", "1000", "--mask", "sliding_window:left=63,right=0", "--alg", alg)
    assert result.exit_code == 0, result.output
    assert f"by {alg}" in " ".join(result.output.split())


@pytest.mark.parametrize(("text", "tokens"), [("64", 64), ("2Ki", 2048), ("3k", 3000), ("1Mi", 1 << 20)])
def test_lengths_may_have_suffixes(text, tokens):
    assert f"{tokens:,} tokens" in run("--world", "1", "--seqlen", text, "--chunk-size", "1Ki").output


def test_a_sequence_too_short_for_the_ranks_is_said_to_be_unbalanced():
    coarse = run("--world", "64", "--seqlen", "100").output
    assert "the busiest rank has 64.0 times the mean area, 63 of 64 ranks have nothing to attend" in coarse
    assert "try --chunk-size 1\n" in coarse
    assert "fewer ranks or a longer sequence" in run("--world", "64", "--seqlen", "40", "--chunk-size", "1").output
    for balanced in ("64Ki", "256Ki"):
        assert "unbalanced" not in run("--world", "4", "--seqlen", balanced).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seqlen", "10"], "Missing option '--world'"),
        (["--world", "4", "--seqlen", "ten"], "expected a number such as 65536"),
        (["--world", "4", "--seqlen", "64", "--mask", "causal", "--documents", "8"], "either --mask or --documents"),
        (["--world", "4", "--seqlen", "64", "--heads-q", "6", "--heads-k", "4"], "heads_q = 6 must be divisible"),
        (["--world", "4", "--seqlen", "64", "--mask", "spiral"], "unknown mask 'spiral'"),
    ],
)
def test_bad_input_ends_with_one_line(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_ownership_counts_what_ranks_hold_and_need():
    mask = builders.causal(64)
    placed = PlacedMask(mask, *place(mask, 4, 8, config=DispatchConfig(ContiguousDispatchAlg())))
    held, needed = ownership(placed, torch.arange(4), 8)
    assert torch.equal(held, torch.eye(4, dtype=torch.float64).repeat_interleave(2, 1))
    assert torch.equal(needed, torch.ones(4, 4, dtype=torch.float64).tril().repeat_interleave(2, 1))
    assert draw_text(placed, width=10).splitlines() == [
        "0 ██",
        "1 ▒▒██",
        "2 ▒▒▒▒██",
        "3 ▒▒▒▒▒▒██",
    ]


def test_of_many_ranks_some_are_drawn():
    mask = builders.causal(512)
    lines = draw_text(PlacedMask(mask, *place(mask, 64, 8)), lines=16).splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(0, 64, 4))


def test_documents_fill_the_sequence_and_none_passes_a_quarter():
    mask = lognormal_documents(1 << 16)
    starts = mask.lo[0, 0].unique()
    lengths = torch.diff(starts, append=torch.tensor([1 << 16]))
    assert mask.seqlen_q == 1 << 16
    assert int(lengths.max()) <= 1 << 14
    assert 2000 <= float(lengths.double().mean()) <= 8000
    assert mask.equals(lognormal_documents(1 << 16))
    assert not mask.equals(lognormal_documents(1 << 16, seed=1))
