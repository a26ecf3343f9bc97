"""The test in docs/own_kernels.md passes without the rest of the library, and fails where its kernel is wrong."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import blocks

import cute_attn

(EXAMPLE,) = blocks("own_kernels.md", __file__)
STANDS_ON = ("backend", "directories", "errors", "kinds", "loadable")  # modules of one file each


def simulator_alone(root):
    """The package with nothing in it but the simulator."""
    package, here = root / "cute_attn", Path(cute_attn.__file__).parent
    shutil.copytree(here / "sim", package / "sim", ignore=shutil.ignore_patterns("__pycache__"))
    (package / "__init__.py").write_text("")
    for name in STANDS_ON:
        shutil.copy(here / f"{name}.py", package)
    return package.parent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bound", "error"), [("x.shape[0]", ""), pytest.param("x.shape[0] + 1", "OutOfBounds", marks=pytest.mark.slow)]
)
def test_the_example_passes_and_with_a_bug_in_its_kernel_fails(tmp_path, bound, error):
    text = EXAMPLE.replace("i < x.shape[0]:", f"i < {bound}:")
    (tmp_path / "test_scaled.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_scaled.py"]
    environment = {**os.environ, "PYTHONPATH": str(simulator_alone(tmp_path / "alone"))}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == bool(error), ended.stdout
    assert re.search(error, ended.stdout)
