"""`cute-attn predict`, on the loops of a kernel that is not compiled here."""

import json
from dataclasses import asdict

import pytest
from click.testing import CliRunner

from cute_attn import mask
from cute_attn.cli import main
from cute_attn.commands import predict as command
from cute_attn.launch import tuned
from cute_attn.launch.tuned import TunedKey
from cute_attn.predict.kernel import Code, Loop, Step
from cute_attn.predict.machine import HELD_OUT
from cute_attn.spec.operation import parse_spec
from cute_attn.spec.tiles import TileConfig

SOFTMAX = Step("run", (300, 100, 200, 500, 10))
WAITS = (Step("wait", (1,)), SOFTMAX, Step("wait", (0,)))
LOOP = Loop((Step("turn"), Step("products", (512,)), Step("products", (512,)), Step("give"), *WAITS), 1024, 640)


@pytest.fixture
def run(monkeypatch):
    """`run(*arguments)` is the result of the command, and `run.specs` are those it asked for."""
    specs = []

    def code_of(spec):
        specs.append(spec)
        return Code((LOOP,))

    monkeypatch.setattr(command, "code_of", code_of)
    monkeypatch.setattr(command, "disassembler", lambda: "nvdisasm")

    def invoke(*arguments):
        result = CliRunner().invoke(main, ["predict", *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    invoke.specs = specs
    return invoke


def test_it_says_that_it_predicts_and_how_far_it_may_be_off(run):
    said = " ".join(run("--seqlen", "2Ki").split())
    assert "predicted, not measured" in said
    assert f"{HELD_OUT['fwd'].mean:.0%} on average and {HELD_OUT['fwd'].worst:.0%} at worst" in said
    assert "% of the call, of all multiprocessors" in said
    assert "as if their loads were always there" in said
    assert "warpgroup 2" in said


def test_one_token_keeps_no_multiprocessor_busy(run):
    found = json.loads(run("--seqlen", "1", "--json"))
    assert found["binds"] == "waiting"
    assert found["at_tiles"] < 0.1


def test_json_has_the_time_what_binds_and_the_error_bar(run):
    found = json.loads(run("--op", "bwd", "--seqlen", "2Ki", "--deterministic", "--json"))
    assert found["predicted"] is True
    assert found["milliseconds"] > 0
    assert 0 < found["at_tiles"] < 1
    assert found["error"]["rows"] == HELD_OUT["deterministic"].rows
    assert found["error"]["measured_on"] == "H200"
    assert parse_spec(json.dumps(found["spec"])) == run.specs[0]
    assert 0 < found["milliseconds_besides"] < found["milliseconds"]
    assert found["items"] == 16 * 8
    assert found["tiles"]["full"] > found["tiles"]["partial"] > 0
    assert run.specs[0].deterministic


def test_of_a_gpu_that_nobody_measured_the_error_is_unknown(run):
    said = " ".join(run("--seqlen", "2Ki", "--gpu", "h100").split())
    assert "unknown: no time of an H100 is at hand. Else" in said
    assert "unknown" not in run("--seqlen", "2Ki")


def test_it_takes_the_tile_that_a_launch_on_that_gpu_would_take(run, monkeypatch):
    tile = TileConfig(128, 80, stages=4)
    key = TunedKey.of("NVIDIA H200", 132, "fwd", "bf16", (128, 128), (32, 8), mask.causal(2048))
    monkeypatch.setattr(tuned, "_installed", [])
    tuned.install({"format": 1, "entries": [{"key": asdict(key), "tile": asdict(tile)}]})
    assert "tile: tuned on NVIDIA H200 (exact)" in run("--seqlen", "2Ki")
    for others in (["--tile", "128x96"], ["--gpu", "h100"], ["--softmax", "exact"], ["--op", "bwd"]):
        assert "tuned" not in run("--seqlen", "2Ki", *others)
    tiles = [spec.tile for spec in run.specs]
    assert [taken == tile for taken in tiles] == [True, False, False, False, False]


def test_other_memory_and_more_tokens_change_the_time(run):
    times = [json.loads(run("--json", "--seqlen", seqlen))["milliseconds"] for seqlen in ("2Ki", "4Ki")]
    assert 2 < times[1] / times[0] < 5


def test_the_tile_of_the_option_is_the_one_that_is_asked_for(run):
    run("--tile", "128x96", "--stages", "4", "--seqlen", "2Ki")
    assert (run.specs[0].tile.n, run.specs[0].tile.stages) == (96, 4)


def test_a_picture_is_written(run, tmp_path):
    said = run("--seqlen", "2Ki", "--png", str(tmp_path / "a.png"))
    assert "picture: " in said
    assert (tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_kernel_of_the_cache_is_read_without_compiling_it_again():
    result = CliRunner().invoke(main, ["predict", "--seqlen", "2Ki", "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert 300 < found["tflops"] < 990
