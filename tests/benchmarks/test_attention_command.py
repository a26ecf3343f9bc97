"""The benchmark from its options to its report, with the CPU as GPU and a clock that gives every call its time."""

import functools
import json

import attention
import pytest
import torch
from attention_cases import CASES
from attention_kernels import OURS, PEERS, Kernel, Peer, ours, sdpa
from click.testing import CliRunner
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


def test_a_peer_that_cannot_is_left_out_with_the_reason_in_a_line(bench, peers):
    found = measured(bench, "forward", peers("absent", "refusing"))
    assert [row["kernel"] for row in found.rows] == [OURS]
    assert found.rows[0]["over the fastest peer"] == "no peer"
    assert [row["why"] for row in found.left_out] == [
        "it is not installed",
        "RuntimeError: No available kernel.; head_dim / is odd",
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


def test_a_whole_run_writes_json_and_a_table_and_fails_where_something_was_wrong(bench, peers, monkeypatch, results):
    monkeypatch.setattr(attention, "has_hopper", lambda: True)
    monkeypatch.setattr(attention, "on_this_gpu", lambda quick: (bench, {"product, FLOP a second": 8e14}))
    monkeypatch.setattr(attention, "CASES", {name: small(name, factor=16) for name in ("causal", "window")})
    peers("right", "wrong")
    monkeypatch.setattr(attention, "PEERS", {name: PEERS[name] for name in ("sdpa-flash", "right", "wrong")})
    monkeypatch.setitem(attention.PEERS, "sdpa-cudnn", attention.PEERS["right"])

    def run(*options):
        ended = CliRunner().invoke(attention.main, ["--quick", "--op", "forward", *options])
        return ended.exit_code, ended.output, json.loads((results / "attention.json").read_text())

    code, _, found = run("--case", "causal", "--case", "window", "--peer", "sdpa-flash", "--peer", "sdpa-cudnn")
    assert code == 1  # the window of the stand-in for cuDNN is no window
    assert {row["case"] for row in found["rows"]} == {"causal"}
    assert found["tables"]["Ceilings"] == [{"of": "product, FLOP a second", "measured": "800 T"}]
    assert found["tables"]["Wrong, and so not timed"][0]["with"] == "sdpa-cudnn"
    assert {"gpu", "torch", "command", "flash-attn-4"} <= set(found["where"])
    assert "## Left out" in (results / "attention.md").read_text()
    assert run("--case", "causal", "--peer", "sdpa-cudnn", "--name", "other")[0] == 0
    assert "## Wrong" not in (results / "other.md").read_text()
