"""Measuring on a GPU: graphs replay, times are times, the flow ends with a table."""

import pytest

pytestmark = pytest.mark.gpu


@pytest.fixture
def problems():
    from autotune import Problem

    shape = {"heads_q": 4, "heads_k": 2, "seqlen_q": 1024, "seqlen_k": 1024, "head_dim": 64, "head_dim_v": 64}
    return [Problem(op=op, **shape) for op in ("fwd", "bwd")]


def test_a_prepared_call_takes_microseconds_and_longer_problems_take_longer(problems):
    from dataclasses import replace

    from autotune.cuda import CudaDevice

    device = CudaDevice()
    for problem in problems:
        longer = replace(problem, seqlen_q=8192, seqlen_k=8192)
        with device.lock():
            runs = [device.prepare(p, p.default) for p in (problem, longer)]
            short, long = (min(device.seconds(run) for _ in range(10)) for run in runs)
        assert 1e-6 < short < 1e-2
        assert long > 4 * short


def test_tuning_measures_the_default_and_finds_nothing_slower(problems, monkeypatch, tmp_path):
    from statistics import median

    from autotune import tune
    from autotune.cuda import CudaDevice

    monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", str(tmp_path))
    tuning = tune(problems[0], CudaDevice(), budget=60.0, workers=2)
    assert tuning.measured
    final = tuning.timings.final
    assert median(final[tuning.tile]) <= median(final[problems[0].default])


def test_cached_kernels_and_bundles_run_on_hardware_without_the_compiler(tmp_path):
    import os
    import subprocess
    import sys

    import torch

    program = (
        "import sys, torch; import cute_attn\n"
        "torch.manual_seed(0); q, k, v = (torch.randn(256, 2, 64, device='cuda').bfloat16() for _ in range(3))\n"
        "r = torch.tensor([[0, 256]], device='cuda')\n"
        "out, _ = cute_attn.flex_flash_attn_func(q, k, v, r, r, attn_type_map=[1])\n"
        "torch.save(out.cpu(), sys.argv[1]); print('cutlass' in sys.modules)"
    )
    outputs = []
    for mode in ("jit", "cached-only"):
        environment = {**os.environ, "CUTE_ATTN_CACHE_DIR": str(tmp_path), "CUTE_ATTN_CACHE_MODE": mode}
        path = str(tmp_path / f"{mode}.pt")
        command = [sys.executable, "-c", program, path]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
        assert result.returncode == 0, result.stderr
        outputs.append((result.stdout.strip(), torch.load(path)))
    assert [said for said, _ in outputs] == ["True", "False"]
    assert torch.equal(outputs[0][1], outputs[1][1])
