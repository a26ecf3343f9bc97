"""Benchmarks are scripts beside each other, not a package: their folder is where they import from."""

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER))


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    """Where results go instead of the repository."""
    import common

    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    return tmp_path / "results"
