"""The examples of context parallelism run as their first lines say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_packed_documents.py"


def test_every_example_has_a_run_here():
    assert set(EXAMPLE.parent.rglob("*.py")) == {EXAMPLE}


@pytest.mark.slow
def test_training_on_three_ranks_matches_training_alone():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    done = subprocess.run([*command, EXAMPLE, "--steps", "4"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    losses = re.findall(r"loss ([\d.]+) on 3 ranks, ([\d.]+) alone", done.stdout)
    assert len(losses) == 4
    for together, alone in losses:
        assert abs(float(together) - float(alone)) <= 1e-4
