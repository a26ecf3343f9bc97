"""The processes of the self-test: used again while they live, replaced when they hang or die, ended in time."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cute_attn.selftest import watch
from cute_attn.selftest.cases import cases
from cute_attn.selftest.watch import Settings, Unable, run

PLAN = {"full": "right", "causal": "die", "packed": "hang", "window": "wrong", "prefix": "right", "slices": "right"}


@pytest.fixture
def play(monkeypatch):
    """Runs six cases, named by their masks, with a plan of what becomes of each; the rows by mask."""
    monkeypatch.setattr(watch, "WORKER", (str(Path(__file__).with_name("fake_worker.py")),))

    def rows(plan, patience=2.0, budget=60.0):
        monkeypatch.setenv("PLAN", json.dumps(PLAN | plan))
        forwards = [case for case in cases(["matrix"]) if case.op == "fwd" and not (case.score_mod or case.mask_mod)]
        chosen = [case for case in forwards if case.dims == (64, 64)]
        settings = Settings("sm90", "", time.monotonic() + budget, patience)
        return {row["case"].split()[2]: row for row in run(chosen, settings)}

    return rows


def test_one_process_serves_case_after_case_and_the_next_one_follows_a_death_or_a_hang(play):
    found = play({})
    assert {mask: row["status"] for mask, row in found.items()} == {
        "full": "right", "causal": "crash", "packed": "hang", "window": "wrong", "prefix": "right", "slices": "right",
    }  # fmt: skip
    assert "SIGABRT" in found["causal"]["detail"]
    assert "last words" in found["causal"]["detail"]
    assert "while running the kernel" in found["packed"]["detail"]
    assert "there is no cuda-gdb" in found["packed"]["detail"]
    same = {found[mask]["detail"] for mask in ("window", "prefix", "slices")}
    assert len(same) == 1
    assert found["full"]["detail"] not in same
    assert all(row["gpu"] == "a GPU" for row in found.values())


def test_the_debugger_says_once_where_warps_stand(play, tmp_path, monkeypatch):
    debugger = tmp_path / "cuda-gdb"
    debugger.write_text(f'#!/bin/sh\necho "[New Thread 1]"\necho "warp 3 at MainKernel+0x40: $4" >> {tmp_path}/calls\n'
                        'echo "warp 3 at MainKernel+0x40"\n')  # fmt: skip
    debugger.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = play({"causal": "hang", "packed": "hang"})
    assert "cuda-gdb: warp 3 at MainKernel+0x40; the host" in found["causal"]["detail"]
    assert "cuda-gdb" not in found["packed"]["detail"]
    assert (tmp_path / "calls").read_text().count("warp 3") == 1


def test_after_three_hangs_nothing_more_is_begun(play):
    found = play(dict.fromkeys(("full", "causal", "packed"), "hang"), patience=0.3)
    assert [row["status"] for row in found.values()] == ["hang"] * 3 + ["skipped"] * 3
    assert found["slices"]["detail"] == "given up after 3 hangs"


def test_the_budget_ends_a_case_in_the_middle_and_those_behind_it_are_skipped(play):
    begun = time.monotonic()
    found = play({"causal": "hang"}, patience=600.0, budget=2.0)
    assert time.monotonic() - begun < 8
    assert [row["status"] for row in found.values()] == ["right"] + ["skipped"] * 5
    assert "no time left after" in found["causal"]["detail"]
    assert found["window"]["detail"] == "no time left"


def test_where_there_is_nothing_to_run_on_it_says_why(play, monkeypatch):
    monkeypatch.setenv("START", '{"unable": "this is a toaster"}')
    with pytest.raises(Unable, match="this is a toaster"):
        play({})


def test_a_process_that_dies_at_its_start_costs_its_case(play, monkeypatch):
    monkeypatch.setenv("START", "{}")
    found = play({})
    assert {row["status"] for row in found.values()} == {"crash"}
    assert "died at the start" in found["full"]["detail"]
    assert "the start of the process" in found["full"]["detail"]


@pytest.mark.slow
def test_whoever_is_asked_to_end_leaves_no_process_behind(tmp_path):
    """The self-test in the middle of a case that hangs, ended as a step of the first light is."""
    fake = Path(__file__).with_name("fake_worker.py")
    program = (
        "import sys; from cute_attn.selftest import command, watch;"
        f"watch.WORKER = ({str(fake)!r},);"
        "sys.exit(command.main(['--group', 'smoke', '--patience', '600', '--budget', '600']))"
    )
    mark = tmp_path / "pid"  # written by the worker itself: imports may start processes too, before it
    environment = {**os.environ, "PLAN": '{"full": "hang"}', "MARK": str(mark)}
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL, env=environment)
    worker = _soon(lambda: mark.exists() and mark.read_text())
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not Path(f"/proc/{worker}").exists()


def _soon(look):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.05)
    raise AssertionError("it never came")
