"""What `cute-attn predict` says of itself: the stored table holds, and the error bar is that of its held-out rows."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from cute_attn.predict.call import predict
from cute_attn.predict.kernel import Code
from cute_attn.predict.machine import H200, HELD_OUT

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
AIM_MEAN, AIM_WORST = 0.10, 0.20


@pytest.fixture(scope="module")
def script():
    return importlib.import_module("predict")


@pytest.fixture(scope="module")
def stored():
    return json.loads((RESULTS / "predict.json").read_text())


def held_out(stored, op):
    """The errors of the rows that the command's error bar is of."""
    rows = [row for row in stored["rows"] if row["held out"]]
    of_op = {
        "fwd": lambda row: row["kernel"].endswith("forward"),
        "bwd": lambda row: row["kernel"].endswith("backward") and not row["deterministic"],
        "deterministic": lambda row: row["deterministic"],
    }[op]
    return [abs(row["predicted ms"] / row["measured ms"] - 1) for row in rows if of_op(row)]


@pytest.mark.parametrize("op", HELD_OUT)
def test_the_error_bar_is_that_of_the_rows_held_out(stored, op):
    errors = held_out(stored, op)
    assert len(errors) == HELD_OUT[op].rows
    assert np.mean(errors) == pytest.approx(HELD_OUT[op].mean, abs=0.001)
    assert np.max(errors) == pytest.approx(HELD_OUT[op].worst, abs=0.001)


@pytest.mark.parametrize("op", HELD_OUT)
def test_held_out_rows_are_within_the_aim(op):
    assert HELD_OUT[op].mean <= AIM_MEAN
    assert HELD_OUT[op].worst <= AIM_WORST


def test_the_stored_table_is_what_the_model_says(script, stored, monkeypatch):
    monkeypatch.setattr(script, "LENGTHS", (2048,))
    now = script.beside(script.peers(script.measured()))
    assert len(now) == 15
    before = [row for row in stored["rows"] if row["seqlen"] == 2048]
    assert [row["predicted ms"] for row in now] == pytest.approx([row["predicted ms"] for row in before], abs=0.002)


def test_every_measured_row_of_flash_attention_4_is_predicted(script, stored):
    rows = [row for row in script.measured() if row.backend == "flash_attention_4"]
    assert len(stored["rows"]) == len(rows) == 75


def test_nothing_of_the_rows_held_out_is_fitted(script, monkeypatch):
    seen = []
    monkeypatch.setattr(
        script, "_descended", lambda values, names, calls: seen.extend(row for row, _ in calls) or values
    )
    monkeypatch.setattr(script, "LENGTHS", (2048,))
    script.fit()
    assert {row.head_dim for row in seen} == {script.FITTED_ON}


def test_the_tflops_of_the_measured_table_follow_from_its_rows(script):
    """0.264 ms, as their file has it, are 521 TFLOP/s."""
    (row,) = (
        row
        for row in script.measured()
        if (row.kernel, row.seqlen, row.backend) == ("128/128 causal forward", 2048, "flash_attention_4")
    )
    assert row.flop / row.ms / 1e9 == pytest.approx(521, abs=1)


@pytest.mark.slow
def test_a_stored_profile_is_what_compiling_gives(script, monkeypatch):
    """Loops alone: the last digits of slots may move with the compiler, the products may not."""
    for name, value in {
        "CUTE_DSL_ARCH": "sm_90a",
        "FLASH_ATTENTION_ARCH": "sm_90",
        "FLASH_ATTENTION_NUM_SMS": "132",
    }.items():
        monkeypatch.setenv(name, value)
    pytest.importorskip("flash_attn.cute.interface", reason="flash-attn-4 is not installed: pip install -e '.[peers]'")
    from flash_attention_4 import compiled

    row = next(r for r in script.measured() if r.kernel == "192/128 full forward" and r.backend == "flash_attention_4")
    made, kept = compiled(row), script.stored()[row.kernel]
    assert isinstance(made, Code)
    assert [loop.tensor_cycles for loop in made.loops] == [loop.tensor_cycles for loop in kept.loops]
    times = [predict(script.call_of(row, code), H200).seconds for code in (made, kept)]
    assert times[0] == pytest.approx(times[1], rel=0.02)
