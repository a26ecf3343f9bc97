"""`import cute_attn` is cheap, and it and the tests marked gpu need torch, NumPy and pytest alone."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SECONDS = 0.5


def run(program, *arguments, **environment):
    import os

    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=TESTS.parent, capture_output=True, text=True, timeout=300, env={**os.environ, **environment},
    )  # fmt: skip


def with_dependencies(*names):
    """The importable names of distributions and of all that they require."""
    from packaging.requirements import Requirement

    found, open_names = set(), list(names)
    while open_names:
        name = open_names.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            wanted = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:
            continue
        found.add(name)
        open_names += [r.name for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    modules = packages_distributions().items()
    return {module for module, owners in modules if found & {o.lower().replace("_", "-") for o in owners}}


def test_importing_takes_less_than_half_a_second_beyond_torch():
    program = "import time, torch; t = time.perf_counter(); import cute_attn; print(time.perf_counter() - t)"
    seconds = [float(run(program).stdout) for _ in range(3)]
    assert min(seconds) < SECONDS, seconds


def test_importing_brings_in_nothing_but_torch_and_numpy():
    program = (
        "import sys, numpy, torch; before = set(sys.modules); import cute_attn; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before} - {'cute_attn'})"
    )
    result = run(program)
    assert result.returncode == 0, result.stderr
    strangers = set(result.stdout.split()) - set(sys.stdlib_module_names)
    assert strangers <= with_dependencies("torch", "numpy")
    assert not strangers & {"cutlass", "cuda", "matplotlib", "click", "rich", "tvm_ffi"}


BLOCK_AND_COLLECT = """
import importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    allowed = set(sys.argv[1].split(",")) | set(sys.stdlib_module_names)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.allowed and not name.startswith(("_sysconfigdata", "__editable__")):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
import cute_attn, pytest
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *sys.argv[2:]]))
"""


def test_importing_and_collecting_gpu_tests_needs_torch_numpy_and_pytest_alone():
    allowed = with_dependencies("torch", "numpy", "pytest") | {"cute_attn"}
    allowed |= {path.stem for path in TESTS.rglob("*.py")} | {path.name for path in TESTS.rglob("*") if path.is_dir()}
    folders = {path.parent for path in TESTS.rglob("conftest.py") if "marks=pytest.mark." + "gpu" in path.read_text()}
    marked = [
        path for path in TESTS.rglob("test_*.py") if path.parent in folders or "mark." + "gpu" in path.read_text()
    ]
    result = run(
        BLOCK_AND_COLLECT, ",".join(sorted(allowed)), str(TESTS / "test_backend.py"), *map(str, marked),
        PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    for path in marked:
        assert path.name in result.stdout


@pytest.mark.parametrize("module", ["cutlass", "matplotlib"])
def test_the_blocker_blocks(module):
    allowed = with_dependencies("torch", "numpy", "pytest")
    assert module not in allowed
    program = BLOCK_AND_COLLECT.replace("import cute_attn, pytest", f"import {module}")
    result = run(program, ",".join(sorted(allowed)))
    assert f"{module} is blocked" in result.stderr
