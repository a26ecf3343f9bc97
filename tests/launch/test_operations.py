"""A new operation is one row: compiled, cached, bundled, profiled and built by code that has never heard of it."""

import json

import pytest
import torch
from click.testing import CliRunner
from toy_operation import TOY, ToySpec, ToyTile

from autotune import Problem
from cute_attn import load_bundle, sim
from cute_attn.cli import main
from cute_attn.jit import cache
from cute_attn.jit.compile import compile
from cute_attn.jit.obtain import obtain
from cute_attn.launch import run as launch
from cute_attn.spec.operation import operation, operations, parse_spec

SPEC = ToySpec()


def run():
    x, out = torch.randn(300), torch.full((300,), torch.nan)
    found = launch.kernel(SPEC, "sim")
    sim.run(found.function, x, out, 3.0, ptx=found.ptx, fresh=(out,))
    torch.testing.assert_close(out, 3.0 * x, rtol=0, atol=0)


def test_the_table_names_what_it_holds():
    assert {"fwd", "bwd", "decode", "toy"} <= {row.name for row in operations()}
    assert operation("toy") is TOY
    with pytest.raises(ValueError, match="op must be one of 'fwd', 'bwd', 'decode', 'toy', got 'encode'"):
        operation("encode")
    assert parse_spec(SPEC.canonical()) == SPEC
    with pytest.raises(ValueError, match="threads must be at most 1024, got 2048"):
        compile(ToySpec(tile=ToyTile(2048)))


def test_an_operation_that_is_not_tuned_is_no_problem_of_autotune():
    with pytest.raises(ValueError, match=r"Problem.op must be one of fwd, bwd, got 'toy'"):
        Problem(op="toy")


def test_a_new_operation_is_compiled_cached_and_run(empty_cache):
    entry = obtain(SPEC)
    assert (entry.spec, entry.manifest["shared_memory_bytes"]) == (SPEC, 0)
    assert cache.read(SPEC).directory == cache.entry_path(SPEC)
    run()


@pytest.mark.slow
def test_the_command_builds_it_into_a_bundle_that_runs_without_a_compiler(empty_cache, tmp_path, monkeypatch):
    arguments = ["build", "--spec", SPEC.canonical(), "--output", str(tmp_path / "kernels"), "--workers", "1"]
    arguments += ["--mask", "full", "--seqlen", "128", "--op", "toy", "--dtype", "fp16"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", str(tmp_path / "another"))
    monkeypatch.setenv("CUTE_ATTN_CACHE_MODE", "cached-only")
    assert set(load_bundle(tmp_path / "kernels").specs) == {SPEC, ToySpec("fp16")}
    run()


@pytest.mark.slow
@pytest.mark.parametrize("which", [["--spec", SPEC.canonical()], ["--op", "toy", "--mask", "full"]], ids=["spec", "op"])
def test_the_command_inspects_it(which):
    result = CliRunner().invoke(main, ["inspect", *which, "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    assert (report["spill_bytes"], report["smem_bytes"], report["loops"]) == (0, 0, [])
    assert report["registers"] > 0


@pytest.mark.parametrize(
    "command", [["inspect"], ["build", "--output", "nowhere", "--mask", "full"]], ids=lambda c: c[0]
)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--op", "toy", "--sink"], "--sink goes with --op fwd or decode"),
        (["--op", "toy", "--softcap"], "--softcap goes with --op fwd or bwd or decode"),
        (["--op", "toy", "--field", "split=true"], "--field split goes with --op decode"),
        (["--op", "toy", "--field", "colour=1"], "--field colour: no operation has it"),
        (["--op", "encode"], "'encode' is not one of 'fwd', 'bwd', 'decode', 'toy'."),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_commands_know_of_every_operation_what_its_specs_have(command, options, message):
    result = CliRunner().invoke(main, [*command, *options])
    assert result.exit_code == 2
    assert message in result.stderr
