"""The benchmark from its options to its report, with the CPU as GPU and a clock that gives every call its time."""

import functools
import json
import os
import subprocess
import sys
import time

import attention
import common
import pytest
import torch
from attention_cases import CASES
from attention_kernels import OURS, PEERS, Kernel, Peer, ours, sdpa
from click.testing import CliRunner
from guarded import Guarded, Stopped
from small_problem import small
from torch.nn.attention import SDPBackend


class CountingClock:
    """A call takes a microsecond more than the one before."""

    def __init__(self):
        self.calls = 0

    def seconds(self, run):
        run()
        self.calls += 1
        return self.calls * 1e-6


@pytest.fixture
def bench():
    return attention.Bench(torch.device("cpu"), CountingClock(), 1 << 14, ceiling=1e12, warm_up=1, rounds=3)


def peer(build, why_not=lambda problem: None):
    return Peer(why_not, build)


def doubled(problem, device, deterministic):
    right = ours(problem, device, deterministic)
    return Kernel(lambda q, k, v: 2 * right.attention(q, k, v))


def refusing(problem, device, deterministic):
    import warnings

    warnings.warn("head_dim | is odd\nsecond line", stacklevel=1)
    raise RuntimeError("No available kernel.\nAborting")


@pytest.fixture
def peers(monkeypatch):
    """Peers for the CPU, by name: `use("right", "wrong")`."""
    known = {
        "right": peer(functools.partial(sdpa, backend=SDPBackend.MATH)),
        "wrong": peer(doubled),
        "refusing": peer(refusing),
        "absent": peer(None, lambda problem: "it is not installed"),
    }

    def use(*names):
        for name in names:
            monkeypatch.setitem(PEERS, name, known[name])
        return names

    return use


def measured(bench, operation, peers):
    results = attention.Results()
    attention.measure(bench, "causal", small("causal"), operation, peers, results)
    return results


def test_without_a_hopper_gpu_it_ends_with_2_and_one_line_that_names_list(results):
    if attention.has_hopper():
        pytest.skip("this machine has one")
    ended = CliRunner().invoke(attention.main, ["--quick"])
    assert ended.exit_code == 2
    assert ended.output.count("\n") == 1
    assert "--list" in ended.output
    assert not results.exists()


def test_list_says_for_every_case_who_runs_and_why_others_do_not(peers, results):
    (absent,) = peers("absent")
    lines = "\n".join(attention.plan(CASES, ["forward"], ["sdpa-cudnn", absent])).splitlines()
    assert len(lines) == 4 * len(CASES)
    assert lines.count("  absent: left out, it is not installed") == len(CASES)
    assert lines.count("  sdpa-cudnn") == 5
    ended = CliRunner().invoke(attention.main, ["--list", "--quick", "--case", "causal", "--peer", "sdpa-flash"])
    assert ended.exit_code == 0
    assert "2,048 tokens" in ended.output
    assert not results.exists()


@pytest.mark.parametrize("operation", ["forward", "backward", "deterministic"])
def test_ours_and_a_peer_that_agrees_get_a_row_each(bench, operation, peers):
    found = measured(bench, operation, peers("right"))
    assert [row["kernel"] for row in found.rows] == [OURS, "right"]
    assert bench.clock.calls == 2 * (1 + 3)
    assert not found.wrong
    # a warm-up round, then ours at 4, 5 and 8 microseconds, theirs at 3, 6 and 7: another begins in every round
    assert sorted(row["microseconds"] for row in found.rows) == [5.0, 6.0]


def test_a_peer_that_cannot_is_left_out_with_all_that_it_says(bench, peers):
    found = measured(bench, "forward", peers("absent", "refusing"))
    assert [row["kernel"] for row in found.rows] == [OURS]
    assert found.rows[0]["over the fastest peer"] == "no peer"
    assert [row["why"] for row in found.left_out] == [
        "it is not installed",
        "RuntimeError: No available kernel.\nAborting; head_dim | is odd\nsecond line",
    ]


def test_a_peer_that_disagrees_is_an_error_and_nothing_is_timed(bench, peers):
    found = measured(bench, "forward", peers("right", "wrong"))
    assert not found.rows
    assert bench.clock.calls == 0
    assert [row["with"] for row in found.wrong] == ["wrong"]
    assert "out differs" in found.wrong[0]["what"]


def test_gradients_with_other_bits_in_every_run_are_not_deterministic(bench, peers, monkeypatch):
    def noisy(problem, device, deterministic):
        class Noise(torch.autograd.Function):
            @staticmethod
            def forward(ctx, q, k, v):
                ctx.save_for_backward(q, k, v)
                return q.clone()

            @staticmethod
            def backward(ctx, dout):
                return tuple(map(torch.rand_like, ctx.saved_tensors))

        return Kernel(Noise.apply)

    monkeypatch.setattr(attention, "ours", noisy)
    found = measured(bench, "deterministic", peers("right"))
    assert found.wrong[0]["what"] == "RuntimeError: two runs give different bits"


def test_speeds_follow_from_the_medians():
    times = {OURS: [2e-3, 2e-3, 9.0], "slow": [4e-3] * 3, "fast": [1e-3] * 3}
    rows = attention.rows_of({"case": "x"}, 10**12, times, ceiling=1e15)
    assert [row["TFLOP/s"] for row in rows] == [500.0, 250.0, 1000.0]
    assert [row["of the ceiling"] for row in rows] == [0.5, 0.25, 1.0]
    assert [row["over the fastest peer"] for row in rows] == [0.5, 0.25, 1.0]


class InThisProcess:
    """Stands for `Guarded`: measures here with the bench of a test, or does what `stops` says when a peer is asked."""

    killed = 0

    def __init__(self, bench, stops=()):
        self.bench, self.stops, self.tasks = bench, dict(stops), []

    def __call__(self, task, until=float("inf")):
        self.tasks.append(task)
        results = attention.Results()
        said = []
        if found := next((name for name in (OURS, *task.peers) if name in self.stops), None):
            time.sleep(self.stops[found] == "the time was over" and max(0.0, until - time.monotonic()))
            raise Stopped(found, self.stops[found])
        attention.measure(self.bench, task.name, task.problem, task.operation, task.peers, results, said.append)
        assert said[:2] == [OURS, *task.peers][:2]
        return results, {"product, FLOP a second": 8e14}

    def end(self):
        pass


@pytest.fixture
def run(bench, peers, monkeypatch, results):
    """Runs the command with its measurements in this process; returns exit code, output and JSON."""
    monkeypatch.setattr(attention, "has_hopper", lambda: True)
    monkeypatch.setattr(attention, "CASES", {name: small(name, factor=16) for name in ("causal", "window")})
    peers("right", "wrong")
    monkeypatch.setattr(attention, "PEERS", {name: PEERS[name] for name in ("sdpa-flash", "right", "wrong")})
    monkeypatch.setitem(attention.PEERS, "sdpa-cudnn", attention.PEERS["right"])

    def invoke(*options, stops=(), file="attention"):
        guarded = InThisProcess(bench, stops)
        monkeypatch.setattr(attention, "Guarded", lambda work, seconds: guarded)
        ended = CliRunner().invoke(attention.main, ["--quick", "--op", "forward", "--name", file, *options])
        assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
        return ended.exit_code, ended.output, json.loads((results / f"{file}.json").read_text())

    return invoke


def test_a_whole_run_writes_json_and_a_table_and_fails_where_something_was_wrong(run, results):
    code, _, found = run("--case", "causal", "--case", "window", "--peer", "sdpa-flash", "--peer", "sdpa-cudnn")
    assert code == 1  # the window of the stand-in for cuDNN is no window
    assert {row["case"] for row in found["rows"]} == {"causal"}
    assert found["tables"]["Ceilings"] == [{"of": "product, FLOP a second", "measured": "800 T"}]
    assert found["tables"]["Wrong, and so not timed"][0]["with"] == "sdpa-cudnn"
    assert {"gpu", "torch", "command", "flash-attn-4"} <= set(found["where"])
    assert "killed where a step takes more than 180 s; 0 were killed" in found["where"]["guard"]
    assert "## Left out" in (results / "attention.md").read_text()
    assert run("--case", "causal", "--peer", "sdpa-cudnn", file="other")[0] == 0
    assert "## Wrong" not in (results / "other.md").read_text()


def test_a_peer_that_hangs_is_left_out_by_name_and_the_others_are_timed(run):
    peers = ("--peer", "sdpa-flash", "--peer", "sdpa-cudnn")
    code, _, found = run("--case", "causal", *peers, stops={"sdpa-flash": "hung: 180 s without an end"})
    assert code == 0
    assert [row["kernel"] for row in found["rows"]] == [OURS, "sdpa-cudnn"]
    (left_out,) = found["tables"]["Left out"]
    assert (left_out["peer"], left_out["why"]) == ("sdpa-flash", "hung: 180 s without an end")


def test_a_hang_of_ours_is_wrong_and_the_next_case_goes_on(run):
    code, output, found = run("--peer", "sdpa-cudnn", "--case", "causal", stops={OURS: "hung: 180 s without an end"})
    assert code == 1
    assert not found["rows"]
    assert found["tables"]["Wrong, and so not timed"][0]["with"] == OURS
    assert "WRONG: causal, forward, cute_attn: hung" in output


def test_after_the_budget_nothing_is_begun_and_the_result_says_what_was_not_run(run):
    code, output, found = run("--peer", "sdpa-cudnn", "--budget", "0")
    assert code == 0
    assert [(row["case"], row["why"]) for row in found["tables"]["Not run"]] == [
        ("causal", "the budget was over before"),
        ("window", "the budget was over before"),
    ]
    assert "2 of 2 were not run" in output
    assert found["where"]["budget"] == "0 s"
    options = ("--peer", "sdpa-cudnn", "--case", "causal", "--budget", "0.5")
    _, _, found = run(*options, stops={"sdpa-cudnn": "the time was over"})
    assert found["tables"]["Not run"][0]["why"] == "the budget was over during: sdpa-cudnn"
    assert "Left out" not in found["tables"], "the peer was not slow: the time was short"


def test_an_error_of_the_gpu_ends_the_process_in_which_it_was_left(bench, peers, monkeypatch):
    monkeypatch.setattr(attention, "spoilt", lambda device: True)
    with pytest.raises(RuntimeError, match="No available kernel"):
        measured(bench, "forward", peers("refusing"))


def test_long_errors_are_whole_in_the_json_and_a_line_in_the_table(results):
    text = "first | line\n" + "x" * 500
    common.save("long", "Long", [], tables={"Left out": [{"peer": "a", "why": text}]})
    assert json.loads((results / "long.json").read_text())["tables"]["Left out"][0]["why"] == text
    (line,) = [line for line in (results / "long.md").read_text().splitlines() if line.startswith("| a ")]
    assert line.startswith("| a | first / line xxx")
    assert len(line) < 230
    assert line.endswith("x... |")
    assert {path.name for path in results.iterdir()} == {"long.json", "long.md"}


@pytest.mark.slow
def test_a_peer_whose_import_fails_is_left_out_of_the_list_with_what_it_raised(tmp_path):
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").write_text("raise RuntimeError('No CTK flavor installed: expected one')")
    command = [sys.executable, attention.__file__, "--list", "--case", "causal", "--peer", "flash-attn-4"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert "  flash-attn-4: left out, RuntimeError: No CTK flavor installed: expected one\n" in ended.stdout


@pytest.mark.parametrize("error", [RuntimeError("no device"), ImportError("cannot import name"), OSError("libcuda")])
def test_whatever_asking_a_peer_raises_is_its_reason_in_the_list_and_in_a_run(bench, error, monkeypatch):
    def raising(problem):
        raise error

    monkeypatch.setitem(PEERS, "raising", peer(None, raising))
    reason = f"{type(error).__name__}: {error}"
    lines = attention.plan({"causal": small("causal")}, ["forward"], ["raising"])
    assert f"  raising: left out, {reason}" in list(lines)
    found = measured(bench, "forward", ["raising"])
    assert [row["why"] for row in found.left_out] == [reason]
    assert [row["kernel"] for row in found.rows] == [OURS]


@pytest.mark.slow
def test_the_processes_that_measure_say_what_they_do_and_what_went_wrong():
    """The real ones; without a Hopper GPU they fail at the first step."""
    if attention.has_hopper():
        pytest.skip("this machine has one")
    guarded = Guarded(attention.measure_on_gpu, seconds=100)
    task = attention.Task("causal", small("causal"), "forward", (), True)
    found, limits = attention.measure_guarded(guarded, task, float("inf"), {})
    guarded.end()
    assert [row["with"] for row in found.wrong] == ["measuring the ceilings"]
    assert limits == {}
