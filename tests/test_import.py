"""`import cute_attn` is cheap, and it and collecting the tests need torch, NumPy and pytest alone."""

import re
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


@pytest.mark.slow
def test_importing_takes_less_than_half_a_second_beyond_torch():
    """Of this process's own time: what other tests take of the cores beside it is none of its."""
    program = "import time, torch; t = time.process_time(); import cute_attn; print(time.process_time() - t)"
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


@pytest.mark.slow
def test_importing_registers_every_op_of_the_library_for_graphs_that_were_exported():
    package = TESTS.parent / "cute_attn"
    # Graphs with an op of dist are of the keys of a process, and are not exported.
    texts = [file.read_text() for file in package.rglob("*.py") if file.parent.name != "dist"]
    ops = {name for text in texts for name in re.findall(r'^register\("(\w+)"', text, re.M)}
    assert {"attention", "chosen_mask", "decode", "mods", "plan"} <= ops
    result = run("import sys, cute_attn, torch; print(*(hasattr(torch.ops.cute_attn, x) for x in sys.argv[1:]))", *ops)
    assert result.stdout.split() == ["True"] * len(ops), (result.stdout, result.stderr)


BLOCK = """
import importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    allowed = set(sys.argv[1].split(",")) | set(sys.stdlib_module_names) | {"cute_attn"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.allowed or name.startswith(("_sysconfigdata", "__editable__")):
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        if any(finder.find_spec(name, path, target) for finder in others):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
"""
COLLECT = """
import cute_attn, pytest
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *sys.argv[2:]]))
"""


def collected(allowed, *paths, before=""):
    """What pytest prints that collects tests where nothing but `allowed` and what is ours can be imported."""
    folders = (TESTS, TESTS.parent / "benchmarks")
    ours = {path.stem for folder in folders for path in folder.rglob("*.py")}
    ours |= {path.name for folder in folders for path in folder.rglob("*") if path.is_dir()}
    names = ",".join(sorted(allowed | ours | {"cute_attn", "autotune"}))
    program = before + BLOCK + COLLECT
    result = run(program, names, "-rs", *map(str, paths), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_all_tests_are_collected_and_those_marked_gpu_found_with_torch_numpy_and_pytest_alone():
    folders = {path.parent for path in TESTS.rglob("conftest.py") if "marks=pytest.mark." + "gpu" in path.read_text()}
    marked = [
        path for path in TESTS.rglob("test_*.py") if path.parent in folders or "mark." + "gpu" in path.read_text()
    ]
    found = collected(with_dependencies("torch", "numpy", "pytest"), TESTS)
    for path in marked:
        assert path.name in found
    assert "click cannot be imported here" in found


@pytest.mark.slow
def test_the_simulators_tests_are_collected_where_importing_the_compiler_raises(tmp_path):
    """As its runtime half without the compiler does."""
    (tmp_path / "cutlass.py").write_text("raise RuntimeError('No CTK flavor installed')")
    allowed = with_dependencies("torch", "numpy", "pytest", "hypothesis", "click", "cuda-python") | {"cutlass", "cuda"}
    files = [TESTS / "sim" / name for name in ("code/test_ptx.py", "test_kernels.py")]
    found = collected(allowed, *files, before=f"import sys; sys.path.insert(0, {str(tmp_path)!r})")
    assert "cutlass cannot be imported here" in found
    assert "test_ptx.py: " in found
    assert "test_kernels.py: " not in found


@pytest.mark.slow
def test_a_fault_of_a_test_file_is_no_missing_library(tmp_path):
    (tmp_path / "test_faulty.py").write_text("import click, no_such_module")
    (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text())
    command = [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode != 0
    assert "No module named 'no_such_module'" in result.stdout


@pytest.mark.parametrize("module", ["cutlass", "matplotlib"])
def test_the_blocker_blocks(module):
    allowed = with_dependencies("torch", "numpy", "pytest")
    assert module not in allowed
    result = run(f"{BLOCK}import {module}", ",".join(sorted(allowed)))
    assert f"{module} is blocked" in result.stderr


LAUNCH = """
import torch, cute_attn
from cute_attn.launch import tuned
from cute_attn.spec.forward import ForwardSpec
from cute_attn.spec.mask import MaskForm
from cute_attn.launch.run import kernel
from cute_attn.jit.obtain import KernelNotBuilt
from cute_attn.mask import causal

spec = ForwardSpec(mask=MaskForm(True))
tuned.gpu_of = lambda device: ("NVIDIA H200", 132)
tile = tuned.tuned_tile("fwd", "bf16", (128, 128), (4, 4), causal(256), torch.device("cuda"), spec.tile)
with cute_attn.record_specs() as recorder:
    found = kernel(spec, "sim")
assert (tile, recorder.specs, found.ptx) == (spec.tile, (spec,), "// ptx")
try:
    kernel(ForwardSpec(sink=True), "sim")
except KernelNotBuilt as error:
    print(error)
"""
DOCTOR = """
from cute_attn.cli import main
main(["doctor"])
"""


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """A bundle with one kernel, and a home directory without a cache."""
    sys.path.append(str(TESTS / "jit"))
    from fake_compiler import compiled

    from cute_attn.jit import cache
    from cute_attn.jit.entry import link
    from cute_attn.spec.forward import ForwardSpec
    from cute_attn.spec.mask import MaskForm

    cache.commit(link(compiled(ForwardSpec(mask=MaskForm(True)))), tmp_path / "bundle")
    sys.path.remove(str(TESTS / "jit"))
    for name in ("CUTE_ATTN_CACHE_DIR", "CUTE_ATTN_CACHE_MODE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CUTE_ATTN_BUNDLES", str(tmp_path / "bundle"))
    return tmp_path


@pytest.mark.slow
def test_a_launch_from_a_bundle_needs_torch_numpy_and_the_runtime_alone(bundle):
    allowed = with_dependencies("torch", "numpy", "apache-tvm-ffi")
    assert not allowed & {"platformdirs", "click", "rich", "matplotlib", "PIL", "cutlass"}
    result = run(BLOCK + LAUNCH, ",".join(sorted(allowed)))
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("nvidia-cutlass-dsl, the compiler, is not installed, and no cache or bundle has")
    assert not result.stderr


@pytest.mark.slow
def test_doctor_needs_click_and_rich_besides(bundle):
    allowed = with_dependencies("torch", "numpy", "apache-tvm-ffi", "click", "rich")
    result = run(BLOCK + DOCTOR, ",".join(sorted(allowed)), COLUMNS="200")
    assert result.returncode == 0, result.stderr
    assert "the compiler, is not installed" in result.stdout
    assert str(bundle / ".cache" / "cute_attn") in result.stdout
