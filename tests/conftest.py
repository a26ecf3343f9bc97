"""Settings every test needs. Imports torch and pytest alone: the `gpu` tests run on machines that have no more."""

import os
import sys
import traceback

os.environ.setdefault("OMP_NUM_THREADS", "1")  # forked ranks hang if their parent ran multi-threaded torch
os.environ.setdefault("CUTE_DSL_ARCH", "sm_90a")  # without a GPU the DSL would silently compile for another chip

import pytest
import torch

# What a machine with a GPU may lack: a file of tests that imports one of them is skipped there.
OPTIONAL = {"click", "cuda", "cutlass", "hypothesis", "transformers"}


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    if report.outcome == "failed" and (library := library_that_is_missing(report.call.excinfo.value)):
        reason = f"{library} cannot be imported here"
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, f"Skipped: {reason}")
    return report


def library_that_is_missing(error):
    """The one of OPTIONAL whose import failed: it is not there, or raises, as the runtime half of cutlass does."""
    while error is not None:
        names = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
        if isinstance(error, ModuleNotFoundError):
            names.append(error.name or "")
        for name in (name.partition(".")[0] for name in names):
            if name in OPTIONAL and name not in sys.modules:
                return name
        error = error.__cause__
    return None


def pytest_collection_modifyitems(items):
    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
    if not hopper:
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA Hopper GPU"))


@pytest.fixture(params=["sim", pytest.param("sm90", marks=pytest.mark.gpu)])
def backend(request):
    """Where a kernel runs: what a test of kernels says holds for both."""
    return request.param


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """No kernel anywhere: the user's cache is an empty directory, nothing is in memory, no bundle is loaded."""
    from cute_attn.jit import bundle
    from cute_attn.launch import run as launch

    for name in ("CUTE_ATTN_BUNDLES", "CUTE_ATTN_CACHE_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(launch, "_kernels", {})
    monkeypatch.setattr(bundle, "_loaded", [])
    return tmp_path / "cache"


@pytest.fixture
def compiles(empty_cache, monkeypatch):
    """Replaces the compiler and the loader; lists what is compiled. No cache but an empty one gets such kernels."""
    from fake_compiler import compiled

    from cute_attn.jit import obtain
    from cute_attn.launch import run as launch

    seen = []

    def compile(spec):
        seen.append(spec)
        return compiled(spec)

    monkeypatch.setattr(obtain, "compile", compile)
    monkeypatch.setattr(launch, "_open", lambda shared_object, backend: shared_object)
    return seen


@pytest.fixture(autouse=True)
def _fresh_random_numbers(request):
    """Every test draws the same numbers on every run and machine, and no two tests draw the same."""
    torch.manual_seed(hash_of(request.node.nodeid))


def hash_of(text: str) -> int:
    value = 0
    for byte in text.encode():
        value = (value * 131 + byte) % (2**31 - 1)
    return value
