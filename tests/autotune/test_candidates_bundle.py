"""Tuning from a bundle of candidates: made where a compiler is, measured where none is."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_gpu import FakeCompiler, FakeGpu, profile

from autotune import Problem, choice, tune
from autotune import build as module
from autotune.build import specs_tried
from autotune.profile import Profile, read_profile, write_profile
from cute_attn import cli
from cute_attn.jit import bundle, cache
from cute_attn.jit.obtain import KernelNotBuilt
from cute_attn.spec.tiles import BackwardTile

sys.path.append(str(Path(__file__).parent.parent / "jit"))
from fake_compiler import compiled

PROBLEM = Problem(seqlen_q=1024, seqlen_k=1024, head_dim=64, head_dim_v=64)
OPTIONS = ("--mask", "causal", "--seqlen", "1024", "--head-dim", "64", "--workers", "1")
NO_COMPILER = "the compiler, nvidia-cutlass-dsl, cannot be imported (No CTK flavor installed)"


@pytest.fixture(autouse=True)
def nothing_built(tmp_path, monkeypatch):
    for name in ("CUTE_ATTN_BUNDLES", "CUTE_ATTN_CACHE_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(bundle, "_loaded", [])


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setattr(sys.modules["autotune.tune"], "why_nothing_compiles", lambda: NO_COMPILER)


@pytest.fixture
def build(tmp_path, monkeypatch):
    """`cute-attn build` with a fake compiler, in this process; returns the bundle."""
    from cute_attn.jit.entry import link
    from cute_attn.jit.parallel import in_processes

    def fake_profile(spec):
        cache.commit(link(compiled(spec)))
        return replace(profile(spec), spill_bytes=8 * (spec.tile.n == 96))

    def in_thread(function, items, workers, executor):
        with ThreadPoolExecutor(1) as thread:
            yield from in_processes(function, items, workers, thread)

    monkeypatch.setattr(module, "compile_profile", fake_profile)
    monkeypatch.setattr(module, "in_processes", in_thread)

    def invoke(*options):
        root = tmp_path / "bundle"
        result = CliRunner().invoke(cli.main, ["build", "--output", str(root), *options], env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        for path in (tmp_path / "cache").rglob("manifest.json"):  # a bundle is all that the other machine has
            path.unlink()
        return root

    return invoke


@pytest.mark.slow
@pytest.mark.parametrize(("options", "effort"), [(["--candidates"], "quick"), (["--candidates", "full"], "full")])
def test_build_candidates_makes_a_bundle_of_the_tiles_that_are_tried_with_their_profiles(build, options, effort):
    root = build(*options, *OPTIONS)
    expected = {spec for op in ("fwd", "bwd") for spec in specs_tried(replace(PROBLEM, op=op), effort)}
    assert set(bundle.load_bundle(root).specs) == expected
    for spec in expected:
        found = read_profile(root, cache.entry_path(spec, root).name)
        assert found == replace(profile(spec), spill_bytes=8 * (spec.tile.n == 96))


def test_heads_share_the_tiles_that_are_tried_too(build):
    root = build("--candidates", *OPTIONS, "--op", "fwd", "--heads", "8/1")
    expected = {replace(spec, packed_heads=n) for spec in specs_tried(PROBLEM, "quick") for n in (1, 8)}
    assert set(bundle.load_bundle(root).specs) == expected


def test_where_nothing_compiles_the_tiles_of_a_bundle_are_measured_and_the_best_found(build, no_compiler):
    bundle.load_bundle(build("--candidates", *OPTIONS))
    tried = [spec.tile for spec in specs_tried(PROBLEM, "quick")]
    spilling = {tile for tile in tried if tile.n == 96}
    fast = next(tile for tile in tried[1:] if tile not in spilling)
    gpu = FakeGpu({fast: 50e-6, **dict.fromkeys(spilling, 1e-6)})
    tuning = tune(PROBLEM, gpu)
    assert tuning.measured
    assert tuning.tile == fast
    assert set(tuning.held) == set(tried)
    assert set(tuning.timings.screening) == set(tried) - spilling
    assert {refused.tile for refused in tuning.rejected} == spilling
    assert tuning.why_not == NO_COMPILER
    assert tuning.left
    fast = BackwardTile(128, 2, 1)
    backward = tune(replace(PROBLEM, op="bwd"), FakeGpu({fast: 50e-6}), effort="full")
    assert set(backward.timings.screening) == {s.tile for s in specs_tried(replace(PROBLEM, op="bwd"), "quick")}


def test_what_a_bundle_holds_is_not_compiled_and_the_rest_is(build):
    root = build("--candidates", *OPTIONS, "--op", "fwd")
    bundle.load_bundle(root)
    compiler = FakeCompiler()
    tuning = tune(PROBLEM, FakeGpu(), effort="full", compiler=compiler)
    assert not {spec.tile for spec in compiler.specs} & set(tuning.held)
    assert {spec.tile for spec in compiler.specs} | set(tuning.held) == set(tuning.compiled)
    assert PROBLEM.default in tuning.held
    assert tuning.left == []


def test_a_bundle_without_profiles_is_measured_and_the_report_says_what_is_unknown(build, no_compiler):
    from autotune.report import summary, unknown

    root = build("--candidates", *OPTIONS, "--op", "fwd")
    for path in (root / "profiles").iterdir():
        path.write_text("")
    bundle.load_bundle(root)
    tuning = tune(PROBLEM, FakeGpu())
    assert len(tuning.timings.screening) == len(tuning.held) == 9
    assert f"no prediction of 9 of 9 candidates ({root} holds its kernel without a profile" in unknown(tuning)
    assert f"0 compiled, 9 built before, 0 rejected after (spills, serialised products, errors), {len(tuning.left)} " \
        f"not compiled ({NO_COMPILER})" in summary(tuning)  # fmt: skip


def test_the_cache_counts_where_nothing_compiles(build, no_compiler, tmp_path, monkeypatch):
    root = build("--candidates", *OPTIONS, "--op", "fwd")
    monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", str(root))
    assert len(tune(PROBLEM, FakeGpu()).held) == 9


def test_without_its_default_a_problem_is_refused_with_what_builds_it(no_compiler):
    with pytest.raises(KernelNotBuilt, match=r"(?s)No CTK flavor installed.*cute-attn build --spec"):
        tune(PROBLEM, FakeGpu())


def test_the_command_lists_what_is_built_and_refuses_in_words_what_has_no_default(build, tmp_path, monkeypatch):
    from autotune import command

    monkeypatch.setattr(command, "why_nothing_compiles", lambda: NO_COMPILER)
    (tmp_path / "shapes.json").write_text('[{"seqlen_q": 1024, "head_dim": 64, "op": "bwd"}]')
    arguments = ["autotune", "--shapes", str(tmp_path / "shapes.json"), "--dry-run"]
    refused = CliRunner().invoke(cli.main, arguments)
    assert isinstance(refused.exception, SystemExit)
    assert f"{NO_COMPILER}, and no cache or bundle has the kernel bwd" in refused.stderr
    bundle.load_bundle(build("--candidates", *OPTIONS, "--op", "bwd"))
    listed = " ".join(CliRunner().invoke(cli.main, arguments).output.split())
    assert "64x128, stages 2 + 2 (default, built)" in listed
    assert f"0 would be compiled, 9 are built, 39 left out by --effort quick and because {NO_COMPILER}" in listed


@pytest.mark.parametrize("error", [ModuleNotFoundError("No module named 'cutlass'"), RuntimeError("No CTK flavor")])
def test_nothing_compiles_where_importing_the_compiler_raises_whatever_it_raises(error, monkeypatch):
    class Raises:
        def find_spec(self, name, path=None, target=None):
            if name == "cutlass":
                raise error

    monkeypatch.delitem(sys.modules, "cutlass", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Raises(), *sys.meta_path])
    assert str(error) in choice.why_nothing_compiles()
    monkeypatch.setenv("CUTE_ATTN_CACHE_MODE", "cached-only")
    assert choice.why_nothing_compiles() == "CUTE_ATTN_CACHE_MODE is cached-only"


# ---------------------------------------------------------------- another process, in which importing cutlass fails

PROGRAM = """
import importlib.abc, sys

class OnlyWhatABareMachineHas(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("cutlass", "click", "rich", "matplotlib"):
            raise ModuleNotFoundError(f"{name} is not here", name=name)

sys.meta_path.insert(0, OnlyWhatABareMachineHas())
import cute_attn
from autotune import Problem, tune
from cute_attn.spec.tiles import TileConfig
from fake_gpu import FakeGpu

cute_attn.load_bundle(sys.argv[1])
problem = Problem(seqlen_q=1024, seqlen_k=1024, head_dim=64, head_dim_v=64, op=sys.argv[2])
usual = FakeGpu()
fast = [tile for tile in tune(problem, usual).timings.screening if tile != problem.default][0]
tuning = tune(problem, FakeGpu({fast: 50e-6}))
assert tuning.tile == fast and tuning.speedup == 2.0, tuning
assert "cutlass is not here" in tuning.why_not
assert "cutlass" not in sys.modules
print(len(tuning.held), len(tuning.timings.screening))
"""


def tuned_in_a_bare_process(root, op):
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", PROGRAM, str(root), op]
    result = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return [int(number) for number in result.stdout.split()]


@pytest.mark.slow
def test_a_process_in_which_importing_the_compiler_fails_tunes_over_the_bundle_by_its_clock(build):
    held, measured = tuned_in_a_bare_process(build("--candidates", *OPTIONS, "--op", "bwd"), "bwd")
    assert held == measured == len(specs_tried(replace(PROBLEM, op="bwd"), "quick"))


@pytest.mark.slow
def test_a_bundle_of_real_candidates_is_tuned_over_where_there_is_no_compiler(tmp_path):
    root, (default, other, *_) = tmp_path / "bundle", specs_tried(PROBLEM, "quick")
    outcomes = list(module.build_candidates([default, other], root, workers=1))
    assert [outcome.error for outcome in outcomes] == ["", ""]
    found = [read_profile(root, cache.entry_path(spec, root).name) for spec in (default, other)]
    assert all(found)
    unread = Profile(168, 0, unknown="not read")  # whatever the assembler said of it
    write_profile(root, cache.entry_path(other, root).name, unread)
    assert tuned_in_a_bare_process(root, "fwd") == [2, 2]
