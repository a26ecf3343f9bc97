"""The first light of a GPU machine: what is packed, how steps run, what is read at the end; then all of it."""

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import findings
import pack
import pytest
import run as first_light
import stand_ins
from run import Runner, Step

PYTHON = sys.executable
TESTS = Path(__file__).parents[1]
ALL = ["env", "smoke", "matrix", "core", "ncu", "long", "tiles", "memcheck", "tests", "rest", "racecheck"]


def says(**finding):
    return (PYTHON, "-c", f"print({json.dumps(finding)!r})")


@pytest.fixture
def runner(tmp_path):
    return Runner(tmp_path, budget=60.0, patience=1.0)


@pytest.fixture
def main(tmp_path, monkeypatch):
    """Runs run.py with other steps; the names in the order in which they ran, and the findings."""

    def run(steps, *arguments):
        monkeypatch.setattr(first_light, "steps", lambda options: steps)
        monkeypatch.setattr(first_light, "PACKED", tmp_path / "packed")
        monkeypatch.setattr(first_light, "set_environment", lambda work, site: None)
        code = first_light.main(["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), *arguments])
        found = [json.loads(line) for line in (tmp_path / "out" / "findings.jsonl").read_text().splitlines()]
        return code, [f["case"] for f in found if f["step"] == "steps"], found

    return run


def test_a_python_that_no_step_can_run_with_is_refused_before_the_first(main, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(first_light.importlib.util, "find_spec", lambda name: None if name == "torch" else name)
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert f"{PYTHON} has no torch" in capsys.readouterr().err
    (tmp_path / "packed" / "runtime").mkdir(parents=True)
    (tmp_path / "packed" / "runtime" / "made_for").write_text("2.7 {'torch': '1'}")
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "was packed for 2.7: use that one, or pack with --python 3." in capsys.readouterr().err


# ---------------------------------------------------------------- steps


def test_steps_come_in_the_order_of_their_worth_and_fit_a_first_and_a_second_command():
    options = argparse.Namespace(out=Path("out"), backend="sm90", case=[])
    steps = first_light.steps(options)
    assert [step.name for step in steps] == ALL
    limits = {step.name: step.seconds for step in steps}
    assert limits["env"] + limits["smoke"] + limits["matrix"] <= 400 - 60  # however bad, something is timed
    for step in steps:
        assert Path(step.command[0]).exists()
        scripts = [word for word in step.command if word.endswith(".py") and "/" in word and "tests/" not in word]
        assert all(Path(script).exists() for script in scripts)


def test_every_test_of_the_kernels_that_runs_on_a_gpu_too_is_among_those_of_the_step():
    """Others marked gpu need no kernel of the bundle, or compile and measure by themselves, or are slow as a whole."""
    of_kernels = re.compile(r"^def test_\w+\((?:.*[ (])?backend[,)]", re.MULTILINE)
    texts = {file: file.read_text() for file in TESTS.rglob("test_*.py")}
    others = ('parametrize("backend"', "pytestmark = pytest.mark.slow")
    files = [file for file, text in texts.items() if of_kernels.search(text) and not any(x in text for x in others)]
    chosen = [TESTS.parent / path for path in first_light.GPU_TESTS]
    assert [file.name for file in files if not any(file.is_relative_to(path) for path in chosen)] == []
    assert len(files) > 10


def test_a_step_that_fails_hangs_or_is_not_there_costs_itself_alone(runner):
    for step in (
        Step("fails", 20, (PYTHON, "-c", 'print(\'{"case": "x", "status": "wrong"}\'); raise SystemExit(3)')),
        Step("raises", 20, (PYTHON, "-c", "raise ModuleNotFoundError('No module named click')")),
        Step("absent", 20, ("/nowhere/at/all",)),
        Step("right", 20, says(case="y", status="right")),
    ):
        runner.run(step)
    runner.run(Step("tests", 20, (PYTHON, "-c", "print('FAILED a.py::b - boom\\n1 failed, 2 passed in 3 s')")))
    details = {f["case"]: f["detail"] for f in runner.found if f["step"] == "steps"}
    assert details["fails"] == "exit 3"
    assert details["raises"] == "exit 1: ModuleNotFoundError: No module named click"
    assert details["tests"] == "exit 0: 1 failed, 2 passed in 3 s"
    assert details["absent"].startswith("FileNotFoundError")
    assert details["right"] == "exit 0"
    assert [(f["step"], f["status"]) for f in runner.found if f["step"] != "steps"] == [
        ("fails", "wrong"),
        ("right", "right"),
        ("tests", "wrong"),
    ]


def is_gone(pid, within=5.0):
    """Whether a process that was killed is no more, or nobody's but its parent's to see, soon."""
    state, until = Path(f"/proc/{pid}/stat"), time.monotonic() + within
    while time.monotonic() < until:
        try:
            if state.read_text().split()[2] in "ZX":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def test_a_step_over_its_time_is_ended_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(first_light, "LEAST", 0.0)
    monkeypatch.setattr(first_light, "GRACE", 0.5)
    runner = Runner(tmp_path, budget=60.0, patience=1.0)
    mark = tmp_path / "pid"
    stubborn = (
        "import os, signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"child = subprocess.Popen(['sleep', '600']); open({str(mark)!r}, 'w').write(str(child.pid));"
        'print(\'{"case": "z", "status": "right"}\', flush=True); time.sleep(600)'
    )
    begun = time.monotonic()
    runner.run(Step("stubborn", 3.0, (PYTHON, "-c", stubborn)))
    assert time.monotonic() - begun < 10
    assert runner.found[0]["case"] == "z"
    assert runner.found[-1]["detail"] == "cut: its time was over"
    assert is_gone(int(mark.read_text()))


def test_what_the_budget_does_not_reach_is_skipped_and_said(main):
    code, order, found = main(
        [Step(name, 30, says(case=name, status="right")) for name in ("env", "tests")], "--budget=20"
    )
    assert order == ["env", "tests"]
    assert [f["detail"] for f in found if f["step"] == "steps"] == ["no time left"] * 2
    assert code == 2


def test_memcheck_follows_the_matrix_at_once_where_a_result_was_wrong(main, monkeypatch):
    def steps(status):
        plan = {"matrix": status, "core": "right", "memcheck": "right"}
        return [Step(name, 30, says(case="fwd", status=what, detail="")) for name, what in plan.items()]

    monkeypatch.setattr(first_light, "_warm", lambda options: None)
    code, order, _ = main(steps("wrong"))
    assert (code, order) == (1, ["matrix", "memcheck", "core"])
    code, order, _ = main(steps("right"))
    assert (code, order) == (0, ["matrix", "core", "memcheck"])


def test_operations_whose_small_cases_all_hang_are_not_timed():
    def found(*statuses):
        return [{"step": "smoke", "case": f"{op} d128", "status": status} for op, status in statuses]

    assert findings.hung_operations(found(("fwd", "right"), ("bwd", "hang"))) == ["backward", "deterministic"]
    assert findings.hung_operations(found(("fwd", "hang"))) == ["forward", "backward", "deterministic"]
    assert findings.hung_operations(found(("fwd", "right"), ("bwd", "hang"), ("bwd", "right"))) == []


def test_the_table_has_what_was_wrong_what_was_timed_and_each_reason_once():
    rows = [
        {"step": "steps", "case": "matrix", "status": "ended", "detail": "exit 1", "seconds": 12.3},
        {
            "step": "matrix",
            "case": "fwd a",
            "status": "right",
            "detail": "",
            "error": {"out": 0.1, "lse": "nan"},
            "allowed": {"out": 0.2, "lse": 0.1},
        },
        {"step": "matrix", "case": "fwd b", "status": "wrong", "detail": "out is off", "error": {}, "allowed": {}},
        *({"step": "matrix", "case": f"bwd {n}", "status": "missing", "detail": "other sources"} for n in range(3)),
        {"step": "core", "case": "bench causal forward cute_attn", "status": "right", "detail": "9 us", "measured": {}},
    ]
    text = findings.table(rows)
    assert "matrix: exit 1 (12 s)" in text
    assert "-- matrix: 1 right, 1 wrong, 3 missing" in text
    assert "out 0.50, lse nan" in text
    assert "WRONG fwd b: out is off" in text
    assert text.count("other sources") == 1
    assert "causal forward cute_attn: 9 us" in text


# ---------------------------------------------------------------- packing


def test_the_packed_tree_has_what_runs_and_no_pictures(tmp_path):
    pack.pack_tree(tmp_path / "tree")
    files = {str(path.relative_to(tmp_path / "tree")) for path in (tmp_path / "tree").rglob("*") if path.is_file()}
    assert {"benchmarks/first_light/run.py", "cute_attn/selftest/cases.py", "tests/conftest.py"} <= files
    assert not any(name.endswith(".png") or name.startswith(".git/") for name in files)
    assert pack.sizes(tmp_path)["tree"] < 8 << 20


def test_a_folder_inside_the_repository_is_not_packed_into_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "ROOT", tmp_path)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    for name in ("script.py", "packed/bundle/kernel.so", "packed/tree/script.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    pack.pack_tree(tmp_path / "packed" / "tree")
    assert [path.name for path in (tmp_path / "packed" / "tree").rglob("*")] == ["script.py"]


def test_the_runtime_is_unpacked_again_where_it_was_cut_short_or_is_of_another_pack(tmp_path, monkeypatch):
    packed, site, installed = tmp_path / "packed", tmp_path / "site", []
    (packed / "runtime" / "wheels").mkdir(parents=True)
    with tarfile.open(packed / "runtime" / "libraries.tar.xz", "w:xz") as archive:
        archive.add(__file__, "nvidia_cutlass_dsl/library")
    monkeypatch.setattr(first_light, "PACKED", packed)

    def pip(command, **options):
        installed.append(command)
        site.mkdir()  # as pip --target makes it
        return argparse.Namespace(returncode=0)

    monkeypatch.setattr(first_light.subprocess, "run", pip)
    assert "was not packed to its end" in first_light.unpack_runtime(site)
    (site / "nvidia_cutlass_dsl").mkdir(parents=True)  # cut short
    for label, count in (("4.8.1", 1), ("4.8.1", 1), ("4.8.2", 2)):
        (packed / "runtime" / "made_for").write_text(label)
        assert first_light.unpack_runtime(site) == ""
        assert len(installed) == count
        assert (site / "nvidia_cutlass_dsl" / "library").exists()


def test_a_folder_beyond_the_limit_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pack, "LIMIT", 1 << 10)
    assert pack.main([str(tmp_path), "--parts", "tree"]) == 1
    assert "too large" in capsys.readouterr().out


def test_the_packed_kernels_are_those_that_the_benchmarks_ask_for():
    import measurements

    found = measurements.specs()
    assert len(found) == len(set(found))
    for problem, operations, _ in (*measurements.CORE, *measurements.REST):
        assert problem in measurements.PROBLEMS
        forward = measurements.PROBLEMS[problem]
        assert forward.spec() in found
        assert "backward" not in operations or replace(forward, op="bwd").spec() in found


@pytest.mark.slow
def test_what_the_gpu_tests_launch_is_recorded_without_compiling():
    found = pack.specs_of_tests(["tests/fwd/test_forward_covering.py"], ["-k", "sim and causal_of_any_length"])
    assert found
    assert {spec.op for spec in found} == {"fwd"}


# ---------------------------------------------------------------- everything


@pytest.mark.slow
def test_the_whole_flow_from_packing_to_the_table_in_simulation(tmp_path):
    """With the kernels of the smallest cases: what is not packed is named missing, and costs nothing else."""
    from cute_attn.selftest.cases import cases

    packed, out = tmp_path / "packed", tmp_path / "out"
    specs = {case.spec for case in cases(["smoke", "tools"]) if case.op == "decode" or case.mask != "slices"}
    (tmp_path / "specs.json").write_text(json.dumps([json.loads(spec.canonical()) for spec in specs]))
    arguments = [str(packed), "--parts", "tree,bundle", "--specs", str(tmp_path / "specs.json"), "--workers", "1"]
    assert pack.main(arguments) == 0
    tools = stand_ins.install(tmp_path / "tools")
    command = [PYTHON, str(packed / "tree" / "benchmarks" / "first_light" / "run.py"), "--backend", "sim"]
    command += ["--budget", "1500", "--patience", "10", "--out", str(out), "--work", str(tmp_path / "work")]
    command += ["--case", "fwd d128 causal 129*", "--case", "bwd d128 causal 129*", "--case", "fwd d96 full*"]
    ended = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    )
    found = [json.loads(line) for line in (out / "findings.jsonl").read_text().splitlines()]
    steps = {f["case"]: f["detail"] for f in found if f["step"] == "steps"}
    assert list(steps) == ALL, ended.stdout + ended.stderr
    assert not any(detail.startswith("cut") for detail in steps.values()), steps
    status = {(f["step"], f["case"]): f["status"] for f in found}
    assert status["smoke", "fwd d128 full 256 h1/1"] == status["smoke", "bwd d128 full 256 h1/1"] == "right"
    assert status["smoke", "decode d128 pages 64 200 t1 h1/1"] == "right"
    assert status["matrix", "fwd d128 causal 129 h2/1"] == status["matrix", "bwd d128 causal 129 h2/1"] == "right"
    assert status["matrix", "fwd d96 full 300 h2/1"] == "missing"
    for operation in ("forward", "backward"):
        assert status["core", f"bench causal {operation} cute_attn"] == "right"
        assert status["core", f"bench causal {operation} sdpa-cudnn"] == "right"
    assert status["core", "bench small forward cute_attn"] == "missing"
    assert status["ncu", "ncu: fwd d128 causal 300 h2/1"] == "right"
    assert status["tiles", "tiles causal forward default"] == "right"
    assert status["memcheck", "memcheck"] == status["racecheck", "racecheck"] == "right"
    assert status["memcheck", "memcheck: bwd d128 window 300 h2/1"] == "right"
    assert (out / "attention_core.json").exists()
    assert (out / "ncu_bwd_source.csv").exists()
    assert "==== first light ====" in (out / "table.txt").read_text()
    assert ended.stdout.splitlines()[-1].startswith("[")
