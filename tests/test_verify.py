"""`cute-attn verify` at a terminal, with the simulator's word given; tests/sim/skeleton has the real one."""

import json

import pytest
from click.testing import CliRunner

from cute_attn import cli, sim
from cute_attn.commands import verify
from cute_attn.sim.errors import Deadlock, Place
from cute_attn.sim.skeleton.check import check
from cute_attn.sim.skeleton.program import Skeleton
from cute_attn.sim.state.steps import ADD, MEET, PASS, UNTIL, Step, Thing, Warp

BARRIER, COUNTER = Thing("barrier", (0, 0, 0), 1), Thing("counter", "turns")
MEETING = (Step(MEET, BARRIER, 32, 64), Step(PASS, BARRIER))


def warps(*programs):
    return Skeleton([{Warp((0, 0, 0), i): program for i, program in enumerate(programs)}])


HOLDS, HANGS = warps(MEETING, MEETING), warps(MEETING, ())
TURNS = Skeleton(
    [{Warp((i, 0, 0), 0): (Step(UNTIL, COUNTER, i, "ge"), Step(ADD, COUNTER, 1))} for i in (0, 1)], {COUNTER: 0}
)


@pytest.fixture
def run(monkeypatch):
    """Runs the command where the simulator says this of the launches; lists the calls."""
    monkeypatch.setenv("COLUMNS", "100")
    calls = []

    def invoke(*arguments, says=(HOLDS,)):
        def told(function, **options):
            calls.append(options)
            if isinstance(says, Exception):
                raise says
            return None, [
                sim.Verified("kernel_cutlass_kernel_of_mine_object_at_1", 1, None, one)
                if isinstance(one, str)
                else sim.Verified("kernel_cutlass_kernel_of_mine_object_at_1", 1, check(one))
                for one in says
            ]

        monkeypatch.setattr(sim, "verify", told)
        return CliRunner().invoke(cli.main, ["verify", *arguments])

    invoke.calls = calls
    return invoke


def test_what_holds_is_a_line_of_a_table(run):
    result = run("--head-dim", "64")
    assert result.exit_code == 0
    assert "fwd bf16 head_dim 64, intervals" in result.output
    assert "on: fwd d64 slices 300 h2/1" in result.output
    assert ["of_mine", "1", "2", "4", "1", "holds"] in [line.split() for line in result.output.splitlines()]


def test_what_hangs_is_an_order_of_steps_and_exit_code_1(run):
    result = run(says=[HOLDS, HANGS])
    assert result.exit_code == 1
    assert "of_mine: Deadlock: nothing can go on" in result.output
    assert "warp 0 of CTA (0, 0, 0) comes to barrier 1 of CTA (0, 0, 0)" in result.output
    assert "32 of 64 threads; nobody else comes there any more" in result.output


def test_what_is_not_searched_or_found_by_a_run_is_exit_code_1_too(run):
    result = run(says=["a look steers"])
    assert result.exit_code == 1
    assert "of_mine: a look steers" in result.output
    result = run(says=Deadlock("nothing can go on", Place("of_mine")))
    assert result.exit_code == 1
    assert "Deadlock: nothing can go on" in result.output


def test_ctas_that_wait_for_each_other_are_said_to(run):
    result = run("--op", "bwd", "--deterministic", says=[TURNS])
    assert result.exit_code == 0
    assert "in the order of their index none waits for ever however few are resident" in result.output
    assert "in any order, if at least 2 of 2 are resident together" in result.output
    assert run.calls[-1] == {"deterministic": True}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--op", "bwd", "--sink"], "--sink is none of bwd's options"),
        (["--deterministic"], "--deterministic is none of fwd's options"),
        (["--op", "decode", "--mask", "full"], "--mask is none of decode's options"),
        (["--spec", "{}", "--op", "bwd"], "--spec says all: it goes without --op"),
        (["--spec", "{"], "--spec is not JSON"),
        (["--mask", "nonsense"], "nonsense"),
    ],
)
def test_options_that_do_not_go_together_are_refused(run, arguments, said):
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.output
    assert not run.calls


def test_a_spec_of_any_operation_may_be_given(run):
    for arguments in (["--op", "decode", "--head-dim", "192/128"], ["--op", "bwd"], ["--sink", "--softcap"]):
        shown = run(*arguments).output.split("on:")[0].replace("\n", " ")
        assert shown.startswith(arguments[1] if arguments[0] == "--op" else "fwd")
    spec = verify.decode_case(dims=(64, 64)).spec
    result = run("--spec", json.dumps(json.loads(spec.canonical())))
    assert result.exit_code == 0, result.output
    assert "on: decode d64" in result.output
