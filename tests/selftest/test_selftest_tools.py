"""The self-test under NVIDIA's tools, with programs in their place: what they find is a row."""

import json
import time
from pathlib import Path

import pytest
import stand_ins

from cute_attn.selftest import watch
from cute_attn.selftest.tools import SANITIZERS, profile, sanitize
from cute_attn.selftest.watch import Settings


@pytest.fixture
def settings(monkeypatch):
    monkeypatch.setattr(watch, "WORKER", (str(Path(__file__).with_name("fake_worker.py")),))
    monkeypatch.setenv("PLAN", json.dumps(dict.fromkeys(("causal", "window", "slices", "decode"), "right")))
    return Settings("sm90", "", time.monotonic() + 60, patience=20.0)


def with_tools(monkeypatch, tmp_path, **findings):
    monkeypatch.setenv("PATH", str(stand_ins.install(tmp_path / "tools", **findings)), prepend=":")


@pytest.mark.parametrize("tool", list(SANITIZERS))
@pytest.mark.parametrize("errors", [0, 3])
def test_what_a_sanitizer_finds_is_wrong_though_the_numbers_are_right(tool, errors, settings, monkeypatch, tmp_path):
    with_tools(monkeypatch, tmp_path, errors=errors)
    *found, last = sanitize(tool, settings)
    assert [row["status"] for row in found] == ["right"] * 8
    assert all(row["case"].startswith(f"{tool}: ") for row in found)
    assert (last["case"], last["status"]) == (tool, "wrong" if errors else "right")
    assert ("3 found: ========= Invalid __global__ read" in last["detail"]) == bool(errors)


def test_counters_are_read_from_the_report_that_ncu_writes_at_its_end(settings, monkeypatch, tmp_path):
    with_tools(monkeypatch, tmp_path)
    found = list(profile(tmp_path / "reports", settings))
    assert [row["case"].split()[1] for row in found] == ["fwd", "bwd"]
    for row in found:
        assert row["status"] == "right"
        assert json.loads(row["detail"]) == {"stalls": {"wait": "1"}, "counters": {"gpu__time_duration.sum": "1 us"}}
    assert (tmp_path / "reports" / "ncu_bwd_source.csv").exists()


def test_a_tool_that_is_not_there_is_skipped(settings, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for rows in (sanitize("memcheck", settings), profile(tmp_path, settings)):
        (row,) = rows
        assert row["status"] == "skipped"
        assert "on PATH" in row["detail"]
