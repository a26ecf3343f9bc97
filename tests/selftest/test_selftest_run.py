"""The self-test from its command line to its last sentence, in simulation, over a bundle with planted faults."""

import json
import subprocess
import sys
import time

import pytest
from planted import SPECS, faulty_bundle

from cute_attn.selftest.cases import case_for
from cute_attn.selftest.command import _say, main
from cute_attn.strict_json import loads

PATIENCE = 20  # of a loaded machine


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return faulty_bundle(tmp_path_factory.mktemp("faulty") / "bundle")


def run(capsys, *arguments):
    """(exit code, rows by case, lines of stdout)"""
    code = main(["--backend", "sim", *map(str, arguments)])
    lines = capsys.readouterr().out.splitlines()
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    return code, {row["case"]: row for row in rows}, lines


@pytest.mark.slow
def test_a_wrong_result_a_hang_and_a_crash_are_named_and_the_rest_is_measured(bundle, capsys, tmp_path):
    names = {name: case_for(spec).simulated().name for name, spec in SPECS.items()}
    absent = "fwd d64 causal 300 h2/1"
    chosen = [f"--case={name}" for name in (*names.values(), absent)]
    file = tmp_path / "rows.json"
    code, rows, lines = run(capsys, "--bundle", bundle, "--patience", PATIENCE, "--json", file, *chosen)
    assert code == 1
    statuses = {"full": "right", "bounded": "right", "wrong": "wrong", "hangs": "hang", "dies": "crash"}
    assert {name: rows[names[name]]["status"] for name in names} == statuses
    assert rows[absent]["status"] == "missing"
    assert "no cache or bundle has the kernel fwd bf16 head_dim 64" in rows[absent]["detail"]
    assert "cute-attn build --spec" in rows[absent]["detail"]
    for name, spec in SPECS.items():
        row = rows[names[name]]
        assert set(row) == {"case", "spec", "status", "error", "allowed", "seconds", "gpu", "detail"}
        assert row["spec"] == json.loads(spec.canonical())
        assert row["gpu"] == "simulation"
    assert "elements are, most at" in rows[names["wrong"]]["detail"]
    assert "in _launched" in rows[names["hangs"]]["detail"]  # where the host stands
    assert "the process died (SIG" in rows[names["dies"]]["detail"]
    for name in ("full", "bounded"):
        row = rows[names[name]]
        assert set(row["error"]) == {"out", "lse"}
        assert all(0 < row["error"][x] <= row["allowed"][x] for x in row["error"])
    assert lines[-1].startswith("6 cases on simulation: 2 right, 1 wrong, 1 hang, 1 crash, 1 missing, in ")
    assert [json.loads(line)["case"] for line in file.read_text().splitlines()] == list(rows)
    table = "\n".join(line for line in lines if not line.startswith("{"))
    for name in names.values():
        assert name in table


@pytest.mark.slow
def test_what_the_budget_leaves_no_time_for_is_skipped(bundle, capsys):
    hanging = case_for(SPECS["hangs"]).simulated().name
    begun = time.monotonic()
    code, rows, lines = run(capsys, "--bundle", bundle, "--budget", 8, f"--case={hanging}", "--case=fwd d64 *")
    assert time.monotonic() - begun < 8 + 5
    assert {row["status"] for row in rows.values()} <= {"skipped", "missing"}
    assert rows[hanging]["status"] == "skipped"
    assert "no time left" in rows[hanging]["detail"]
    assert code == 2
    assert "skipped" in lines[-1]


@pytest.mark.slow
def test_where_nothing_can_run_it_says_why_in_the_last_line_and_ends_with_2(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CUTE_ATTN_BUNDLES", str(tmp_path / "nowhere"))
    code, rows, lines = run(capsys, "--group", "smoke")
    assert (code, rows) == (2, {})
    assert lines[-1].startswith("Nothing could run: no bundle at ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--budget", "soon"], "expected a number of seconds above 0, got 'soon'"),
        (["--bundle", "/nowhere"], "no bundle at /nowhere"),
        (["--case", "fwd d3*"], "no case is named like fwd d3*"),
        (["--json", "/nowhere/rows.json"], ": /nowhere/rows.json: No such file"),
        (["--sanitise"], "unrecognized arguments: --sanitise"),
        (["--group", "large"], "invalid choice: 'large'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, words, capsys):
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    assert code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said


def test_list_names_cases_and_their_kernels(capsys):
    assert main(["--list", "--group", "smoke"]) == 0
    decode, forward, backward = capsys.readouterr().out.splitlines()
    assert decode.startswith("decode d128 pages 64 4096 t1 h1/1: decode bf16 head_dim 128, pieces of 64")
    assert forward.startswith("fwd d128 full 256 h1/1: fwd bf16 head_dim 128")
    assert backward.startswith("bwd d128 full 256 h1/1: bwd bf16 head_dim 128")


def test_a_list_leaves_the_results_of_an_earlier_run_alone(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text("earlier")
    assert main(["--list", "--group", "smoke", "--json", str(file)]) == 0
    assert file.read_text() == "earlier"


def test_an_error_that_is_no_number_is_json_all_the_same(capsys):
    _say({"case": "fwd", "status": "wrong", "error": {"out": float("nan"), "lse": float("inf"), "dq": 0.5}}, None)
    assert loads(capsys.readouterr().out)["error"] == {"out": "nan", "lse": "inf", "dq": 0.5}


@pytest.mark.slow
def test_it_imports_nothing_that_a_bare_machine_lacks():
    program = (
        "import sys; from cute_attn.selftest import command, worker; "
        "assert command.main(['--list', '--group', 'smoke']) == 0; "
        "print({'click', 'rich', 'platformdirs', 'filelock', 'matplotlib', 'cutlass'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.stdout.splitlines()[-1] == "set()", ended.stdout + ended.stderr
