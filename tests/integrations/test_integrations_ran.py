"""Where everything is tested, nothing that needs others' libraries is skipped."""

import os
import subprocess
import sys

import pytest

# What the tests import or skip: by module, what brings it. In a process of its own: they change the DSL for all.
LIBRARIES = {
    "transformers": "EXTRAS of .ci/run must have transformers",
    "flash_attn.cute.interface": "EXTRAS of .ci/run must have peers",
    "quack.gemm_interface": "EXTRAS of .ci/run must have peers",
    "cudnn.flex_attention": "setup.sh installs nvidia-cudnn-frontend where EXTRAS have peers",
    "kernels": "EXTRAS of .ci/run must have hub",
    "zensical": "EXTRAS of .ci/run must have docs",
}
SCRIPT = """
import importlib, sys, traceback
for module in sys.argv[1:]:
    try:
        importlib.import_module(module)
    except ImportError:
        print(module, traceback.format_exc().splitlines()[-1])
"""


def missing(libraries):
    """Those that cannot be imported, with all that they need; and why."""
    run = subprocess.run([sys.executable, "-P", "-c", SCRIPT, *libraries], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return dict(line.split(" ", 1) for line in run.stdout.splitlines() if line.split(" ", 1)[0] in libraries)


@pytest.mark.slow
def test_the_libraries_of_others_are_installed():
    if os.environ.get("CI", "").lower() not in ("1", "true"):
        pytest.skip("asked for where CI is set")
    found = missing(LIBRARIES)
    assert not found, [(LIBRARIES[module], why) for module, why in found.items()]


def test_a_library_that_lacks_what_it_needs_is_missing(tmp_path, monkeypatch):
    (tmp_path / "lacking.py").write_text("import another_that_nobody_has\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert missing(["lacking", "json"]) == {"lacking": "ModuleNotFoundError: No module named 'another_that_nobody_has'"}
