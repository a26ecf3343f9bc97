"""The examples run as their first lines say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLE = FOLDER / "train_packed_documents.py"
SERVING = FOLDER / "serve_with_a_cache.py"


def test_every_example_has_a_run_here():
    assert set(FOLDER.rglob("*.py")) == {EXAMPLE, SERVING}


@pytest.mark.slow
def test_training_on_three_ranks_matches_training_alone():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    done = subprocess.run([*command, EXAMPLE, "--steps", "4"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    losses = re.findall(r"loss ([\d.]+) on 3 ranks, ([\d.]+) alone", done.stdout)
    assert len(losses) == 4
    for together, alone in losses:
        assert abs(float(together) - float(alone)) <= 1e-4


@pytest.mark.parametrize("page_size", ["16", "5"])
def test_serving_agrees_with_computing_anew(page_size):
    command = [sys.executable, SERVING, "--steps", "2", "--page-size", page_size]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"guesses accepted, off by", done.stdout)) == 2
