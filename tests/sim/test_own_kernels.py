"""The test in docs/own_kernels.md passes, and fails where its kernel is wrong."""

import re
import subprocess
import sys

import pytest
from pages import blocks

(EXAMPLE,) = blocks("own_kernels.md", __file__)


@pytest.mark.parametrize(
    ("bound", "error"), [("x.shape[0]", ""), pytest.param("x.shape[0] + 1", "OutOfBounds", marks=pytest.mark.slow)]
)
def test_the_example_passes_and_with_a_bug_in_its_kernel_fails(tmp_path, bound, error):
    text = EXAMPLE.replace("i < x.shape[0]:", f"i < {bound}:")
    (tmp_path / "test_scaled.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_scaled.py"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == bool(error), ended.stdout
    assert re.search(error, ended.stdout)
