"""The calls that docs/simulator.md shows, with a kernel of the tests, and what it prints of `cute-attn verify`."""

import subprocess

import kernels
import pytest
import torch
from click.testing import CliRunner
from cutlass import Float32, cute
from pages import blocks

from cute_attn import cli

CALLS, PRINTED = blocks("simulator.md", __file__)


@cute.jit
def my_kernel(a: cute.Tensor, b: cute.Tensor, c: cute.Tensor) -> None:
    kernels._scaled_sum(a, b, c, Float32(2)).launch(grid=(3, 1, 1), block=(128, 1, 1))


@pytest.mark.slow
def test_the_calls_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a, b, c = torch.randn(300), torch.randn(300), torch.full((300,), torch.nan)
    q, k, v = (torch.randn(70, 2, 64, dtype=torch.bfloat16) for _ in range(3))
    placeholders = [kernels.fake(Float32, cute.sym_int(), align=4)] * 3
    compiled = cute.compile(my_kernel, *placeholders, options=f"--enable-tvm-ffi --keep-ptx --dump-dir={tmp_path}")
    compiled.export_to_c(object_file_path="kernel.o", function_name="kernel")
    subprocess.run(["cc", "-shared", "-o", "kernel.so", "kernel.o"], check=True)

    def their_attention(*given):
        out = torch.empty(300)
        compiled(a, b, out)
        return out

    names = dict(locals()) | {"cute": cute, "my_kernel": my_kernel, "there": tmp_path, "ptx_text": compiled.__ptx__}
    exec(CALLS, names)
    torch.testing.assert_close(names["c"], 2 * a + b)
    assert torch.equal(names["out"], c)
    assert names["lse"].shape == (2, 70)
    assert [launch.holds for launch in names["launches"]] == [True]


@pytest.mark.slow
def test_verify_says_of_the_deterministic_backward_what_is_printed(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    command, _, printed = PRINTED.partition("\n")
    result = CliRunner().invoke(cli.main, command.removeprefix("$ cute-attn ").split())
    assert result.exit_code == 0, result.output
    assert [line.rstrip() for line in result.output.strip().splitlines()] == printed.rstrip().splitlines()
