"""docs/deployment.md as a user would follow it: recorded, built, carried to where no compiler is, and loaded."""

import pytest
import torch
from click.testing import CliRunner
from pages import blocks

import cute_attn
from cute_attn import cli
from cute_attn.jit import bundle
from cute_attn.jit.obtain import KernelNotBuilt
from cute_attn.launch import run as launch


@pytest.mark.slow
def test_what_a_program_needs_is_recorded_built_and_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bundle, "_loaded", [])
    q, k, v = (torch.randn(70, heads, 64, dtype=torch.bfloat16) for heads in (4, 2, 2))

    def train_one_step():
        with cute_attn.backend("sim"):
            return cute_attn.flex_flash_attn_func(q, k, v, cute_attn.mask.causal(70))[0]

    record, load = blocks("deployment.md", __file__)
    names = {"cute_attn": cute_attn, "train_one_step": train_one_step}
    exec(record, names)
    before = train_one_step()
    result = CliRunner().invoke(cli.main, ["build", "--output", "kernels", "--specs", "specs.json"])
    assert result.exit_code == 0, result.output

    monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", str(tmp_path / "nothing"))
    monkeypatch.setenv("CUTE_ATTN_CACHE_MODE", "cached-only")
    monkeypatch.setattr(launch, "_kernels", {})
    with pytest.raises(KernelNotBuilt):
        train_one_step()
    exec(load, names)
    assert torch.equal(train_one_step(), before)
