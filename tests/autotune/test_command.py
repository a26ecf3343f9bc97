"""`cute-attn autotune` from the shapes to the table that kernels look up; several ranks; what it says without a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_gpu import FakeCompiler, FakeGpu, profile

from autotune import command as module
from autotune import tune
from autotune.problem import Problem, load_shapes
from autotune.profile import Profile
from autotune.ranks import decided_by_rank_0
from cute_attn.launch import tuned
from cute_attn.predict.machine import HELD_OUT
from cute_attn.spec.tiles import TileConfig

sys.path.append(str(Path(__file__).parent.parent / "dist"))
from ranks import run_ranks

FAST = TileConfig(128, 96)
SHAPES = [{"seqlen_q": 1024}]


@pytest.fixture
def autotune(tmp_path, monkeypatch):
    """Runs the command on a GPU, or None, with the fake compiler."""
    monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "shapes.json").write_text(json.dumps(SHAPES))
    tuned.forget()

    def invoke(gpu, *arguments, profile=profile):
        compiler = FakeCompiler(profile)
        monkeypatch.setattr(module, "find_device", lambda: gpu)
        monkeypatch.setattr(module, "tune", lambda *a, events: tune(*a, compiler=compiler, events=events))
        shapes = ["--shapes", str(tmp_path / "shapes.json")] if "--preset" not in arguments else []
        result = CliRunner().invoke(module.command, [*shapes, *arguments], env={"COLUMNS": "160"})
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result, compiler

    yield invoke
    tuned.forget()


def results(tmp_path):
    (path,) = (tmp_path / "cache" / "autotune").glob("*/results.json")
    return json.loads(path.read_text())


@pytest.mark.slow
def test_what_was_measured_is_looked_up_afterwards(autotune, tmp_path):
    result, _ = autotune(FakeGpu({FAST: 50e-6}), "--effort", "full")
    assert result.exit_code == 0, result.output
    problem = Problem(seqlen_q=1024, seqlen_k=1024)
    tuned.forget()
    assert tuned.lookup(problem.key("Fake GPU", 100), problem.default)[:2] == (FAST, "exact")
    assert tuned.table_path("Fake GPU").is_relative_to(tmp_path / "cache")
    assert "2.000 times as fast as the default" in result.output
    assert "chosen" in result.output
    assert (next((tmp_path / "cache" / "autotune").glob("*/report.png"))).stat().st_size > 1000


def test_results_hold_every_timing_and_versions_as_metadata(autotune, tmp_path):
    autotune(FakeGpu({FAST: 50e-6}), "--effort", "full")
    found = results(tmp_path)
    assert found["measured"] is True
    assert found["metadata"]["driver"] == "1.0"
    assert {"torch", "nvidia-cutlass-dsl"} <= set(found["metadata"]["versions"])
    forward = found["problems"][0]
    fast = next(c for c in forward["candidates"] if c["tile"]["n"] == 96 and c["final_seconds"])
    assert fast["screening_seconds"] == [50e-6] * 25
    assert fast["final_seconds"] == [50e-6] * 50
    assert forward["tile"]["n"] == 96
    assert len(forward["refused"]) + len(forward["candidates"]) == 28 * 4


@pytest.mark.slow
def test_tuning_again_replaces_entries_of_equal_key_and_keeps_the_others(autotune, tmp_path):
    autotune(FakeGpu({FAST: 50e-6}), "--effort", "full")
    autotune(FakeGpu(), "--effort", "full", "--preset", "small")
    autotune(FakeGpu({TileConfig(128, 112): 50e-6}), "--effort", "full")
    entries = json.loads(tuned.table_path("Fake GPU").read_text())["entries"]
    assert len(entries) == 4
    assert [e["tile"]["n"] for e in entries if e["key"]["op"] == "fwd" and e["key"]["head_dim"] == 128] == [112]


def test_without_a_gpu_it_says_plainly_that_nothing_was_measured_and_writes_no_table(autotune, tmp_path):
    result, compiler = autotune(None)
    assert result.exit_code == 0, result.output
    assert "Nothing was measured: there is no Hopper GPU here." in result.output
    said = " ".join(result.output.split())
    assert "NOT measured, predicted for an H200 with 132 SMs" in said
    for op in ("fwd", "bwd"):
        assert f"predictions were off by {HELD_OUT[op]}" in said
    assert "cannot choose between numbers of stages, ping-pong or none, a stale or an exact maximum" in said
    assert "measured on" not in said
    assert "the default 128x128, 2 stages, ping-pong stays" in " ".join(result.output.split())
    assert compiler.specs
    assert results(tmp_path)["measured"] is False
    assert results(tmp_path)["predicted"]["gpu"] == "H200"
    for candidate in (c for problem in results(tmp_path)["problems"] for c in problem["candidates"]):
        assert candidate["predicted_seconds"] > 0
        assert candidate["screening_seconds"] == candidate["final_seconds"] == []
    assert {problem["key"] for problem in results(tmp_path)["problems"]} == {None}
    assert not (tmp_path / "cache" / "tuned").exists()


def test_a_dry_run_lists_candidates_and_compiles_measures_and_writes_nothing(autotune, tmp_path):
    gpu = FakeGpu()
    result, compiler = autotune(gpu, "--dry-run")
    assert "128x128, 2 stages, ping-pong  (default)" in result.output
    assert "9 would be compiled, 0 are built" in result.output
    assert not compiler.specs
    assert not gpu.calls
    assert not (tmp_path / "cache").exists()


def test_a_preset_is_tuned_in_both_operations(autotune):
    result, compiler = autotune(None, "--preset", "small", "--budget", "0")
    assert result.exit_code == 0
    assert [(spec.op, spec.head_dim) for spec in compiler.specs] == [("fwd", 64), ("bwd", 64)]


def test_a_default_that_cannot_run_ends_with_a_message(autotune):
    result, _ = autotune(FakeGpu(broken=[TileConfig()]))
    assert result.exit_code == 1
    assert "Error: the default tile 128x128, 2 stages, ping-pong cannot run" in result.stderr


def test_the_report_says_which_candidates_have_no_prediction_and_why(autotune, monkeypatch):
    def blind(spec):
        return Profile(168, 0, unknown="no nvdisasm") if spec.tile == TileConfig() else profile(spec)

    result, _ = autotune(None, profile=blind)
    said = " ".join(result.output.split())
    assert "no prediction of 1 of 9 candidates (no nvdisasm), which come last" in said
    assert "before they are compiled: 128x128, 2 stages, ping-pong" in said
    assert said.count("no prediction") == 1, "all those of the backward have one"


def test_without_any_prediction_the_report_ranks_by_none_and_says_so(autotune, tmp_path):
    result, _ = autotune(None, profile=lambda spec: Profile(168, 0, unknown="no nvdisasm"))
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert said.count("no prediction of 9 of 9 candidates (no nvdisasm)") == 2
    assert "128x128, 2 stages, ping-pong - - 168 default, chosen" in said
    first = results(tmp_path)["problems"][0]["candidates"][0]
    assert (first["predicted_seconds"], first["not_predicted"]) == (None, "no nvdisasm")


def test_what_was_measured_is_written_before_the_next_problem_is_begun(autotune, tmp_path):
    gpu = FakeGpu({FAST: 50e-6}, broken=[Problem(op="bwd").default])
    result, _ = autotune(gpu, "--effort", "full")
    assert result.exit_code == 1
    assert "cannot run bwd" in result.stderr
    assert [p["tile"]["n"] for p in results(tmp_path)["problems"]] == [96]
    assert len(json.loads(tuned.table_path("Fake GPU").read_text())["entries"]) == 1


def test_a_tile_that_hangs_is_named_and_what_was_found_before_is_written(autotune, tmp_path, monkeypatch):
    class Exit(BaseException):
        pass

    def exit(code):
        raise Exit(code)

    monkeypatch.setattr(module.os, "_exit", exit)
    gpu = FakeGpu({FAST: 50e-6}, hanging=[Problem(op="bwd").default])
    with pytest.raises(Exit, match="1"):
        autotune(gpu, "--effort", "full")
    assert [p["tile"]["n"] for p in results(tmp_path)["problems"]] == [96]
    assert len(json.loads(tuned.table_path("Fake GPU").read_text())["entries"]) == 1


@pytest.mark.parametrize(
    "content",
    [
        "{",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("", "[]", '{"format": 2, "entries": []}')),
        '{"format": 1, "entries": [3]}',
    ],
)
def test_a_table_that_cannot_be_read_is_set_aside_and_a_new_one_written(autotune, content):
    path = tuned.table_path("Fake GPU")
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.warns(UserWarning, match="could not be read and is now"):
        autotune(FakeGpu({FAST: 50e-6}), "--effort", "full")
    assert len(json.loads(path.read_text())["entries"]) == 2
    assert path.with_suffix(".broken").read_text() == content


def test_without_matplotlib_the_table_is_written_all_the_same(autotune, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result, _ = autotune(FakeGpu({FAST: 50e-6}), "--effort", "full")
    assert result.exit_code == 0, result.output
    assert "no plot: " in result.output
    assert tuned.table_path("Fake GPU").exists()


def test_nothing_to_tune_is_refused(autotune, tmp_path):
    result = CliRunner().invoke(module.command, [])
    assert result.exit_code == 2
    assert "give --preset (causal, full, packed" in result.output


def test_where_results_cannot_be_kept_it_says_so_before_the_work(autotune, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(module, "tune", None)  # would fail if it were called
    with pytest.raises(
        OSError, match=f"results and tables cannot be kept: {tmp_path / 'file'}.*: Not a directory; CUTE"
    ):
        module._run(None, [Problem()], "quick", None, 1)


def test_a_key_that_stands_twice_in_a_shape_is_refused(tmp_path):
    path = tmp_path / "shapes.json"
    path.write_text('[{"heads_q": 8, "heads_k": 2, "heads_q": 4}]')
    with pytest.raises(ValueError, match="the key 'heads_q' stands more than once in an object"):
        load_shapes(path)


@pytest.mark.slow
def test_it_runs_as_a_module():
    result = subprocess.run([sys.executable, "-m", "autotune", "--help"], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "python -m autotune" in result.stdout


@pytest.mark.slow
def test_as_a_module_it_ends_bad_input_with_one_line_and_code_2(tmp_path):
    path = tmp_path / "shapes.json"
    path.write_text('[{"heads_q": 7, "heads_k": 2}]')
    command = [sys.executable, "-m", "autotune", "--shapes", str(path), "--dry-run"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "heads_q must be a multiple of heads_k" in result.stderr


# ---------------------------------------------------------------- ranks


def _decide(rank, fails):
    def decide():
        assert rank == 0, "only rank 0 tunes"
        if fails:
            raise ValueError("no shapes")
        return {"format": 1, "entries": [{"tile": "ü"}]}

    try:
        return decided_by_rank_0(decide)
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


def test_rank_0_decides_and_all_ranks_have_its_answer():
    assert run_ranks(3, _decide, False) == [{"format": 1, "entries": [{"tile": "ü"}]}] * 3


def test_a_failure_of_rank_0_reaches_every_rank():
    failed = "RuntimeError: rank 0 could not tune: ValueError: no shapes"
    assert run_ranks(2, _decide, True) == ["ValueError: no shapes", failed]


# ---------------------------------------------------------------- doctor


@pytest.mark.slow
def test_doctor_says_which_table_gave_a_tile(autotune, monkeypatch):
    import torch

    from cute_attn.commands import doctor

    autotune(FakeGpu({FAST: 50e-6}), "--effort", "full")
    monkeypatch.setattr(doctor, "best_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(doctor, "backends", lambda: [])
    monkeypatch.setattr(tuned, "gpu_of", lambda device: ("Fake GPU", 100))
    result = CliRunner().invoke(doctor.command, [], env={"COLUMNS": "160"})
    lines = {line.split("  ")[0]: line for line in result.output.splitlines()}
    assert "static default" in lines["fwd 64"]
    assert "static default" in lines["fwd 128"], "3 buckets of both lengths from 1,024 to 8,192 are too far"
    assert "tuned tables: 2 in" in result.output
    autotune(FakeGpu({FAST: 50e-6}), "--effort", "full", "--preset", "causal")
    result = CliRunner().invoke(doctor.command, [], env={"COLUMNS": "160"})
    assert "128x96, 2 stages, ping-pong: exact" in result.output
