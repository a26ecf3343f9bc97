"""What `deterministic=True` is predicted to cost, on loops that are not compiled here."""

import importlib

import pytest

from cute_attn.predict.kernel import Code, Loop, Step

SENDS = (Step("staged"), Step("send"))
PRODUCTS = (Step("products", (1280,)), Step("wait", (0,)))


@pytest.fixture
def script(monkeypatch):
    """With loops of which the one with mask code takes a third longer."""
    full = Loop((*PRODUCTS, *SENDS), 1280, 0)
    partial = Loop((*PRODUCTS, Step("run", (430, 0, 0, 0, 0)), *SENDS), 1280, 0)
    script = importlib.import_module("deterministic")
    monkeypatch.setattr(script, "TOKENS", 2048)
    monkeypatch.setattr(script, "code_of", lambda spec: Code((partial, full)))
    return script


@pytest.mark.parametrize("mask", ["causal", "full"])
def test_turns_cost_time_and_change_neither_tiles_nor_loops(script, mask):
    row = script.row(mask, 8)
    assert row["deterministic, predicted ms"] > row["predicted ms"] > 0
    assert row["with mask code"] == row["with mask code, deterministic"]
    assert row["ratio"] > row["order and waiting alone"] >= 1


def test_under_a_window_turns_take_full_tiles_through_the_mask_code(script):
    row = script.row("sliding window of 1,024", 8)
    assert row["tiles"] >= row["with mask code, deterministic"] > row["with mask code"]


def test_errors_are_of_the_ratios_that_were_held_out(script):
    def row(held_out, kernel, deterministic, predicted, measured):
        about = {"held out": held_out, "kernel": kernel, "seqlen": 2048, "deterministic": deterministic}
        return {**about, "predicted ms": predicted, "measured ms": measured}

    rows = [row(True, "a backward", False, 2.0, 1.0), row(True, "a backward", True, 3.0, 1.2)]
    fitted = [row(False, "b backward", False, 2.0, 1.0), row(False, "b backward", True, 9.0, 1.0)]
    assert script.ratio_errors([*rows, *fitted, row(True, "a forward", False, 1.0, 1.0)]) == [pytest.approx(0.25)]
