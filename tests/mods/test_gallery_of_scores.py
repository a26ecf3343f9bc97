"""The score_mods of docs/score_mods.py: flex_attention gives what dense attention does, and kernels serve all."""

import importlib.util
import inspect
from pathlib import Path

import pytest
import torch
from mods_case import dense_flex
from oracle import assert_close

from cute_attn import backend, flex_attention
from cute_attn.mask import causal

spec = importlib.util.spec_from_file_location("score_mods", Path(__file__).parents[2] / "docs" / "score_mods.py")
gallery = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gallery)
MODS = {name: mod for name, mod in vars(gallery).items() if inspect.isfunction(mod)}


def inputs(dtype, dim):
    numbers = torch.Generator().manual_seed(0)
    shapes = (gallery.BATCH, gallery.HEADS, 150, dim), (gallery.BATCH, 2, 150, dim), (gallery.BATCH, 2, 150, dim)
    return [torch.randn(shape, generator=numbers, dtype=torch.float64).to(dtype) for shape in shapes]


@pytest.mark.parametrize("name", MODS)
def test_each_is_what_dense_attention_gives(name):
    qkv = inputs(torch.float64, 8)
    out, lse = flex_attention(*qkv, MODS[name], causal(150), enable_gqa=True, return_lse=True)
    wanted, wanted_lse, _ = dense_flex(*qkv, MODS[name], causal(150).to_dense())
    assert_close("out", out, wanted, 1e-6)  # the tensors of the page are fp32
    assert_close("lse", lse, wanted_lse, 1e-5)


@pytest.mark.slow
def test_those_that_are_no_bias_of_the_distance_in_one_kernel():
    def together(score, b, h, q_idx, kv_idx):
        for name in ("retention", "temperature", "other_documents", "key_bias"):
            score = MODS[name](score, b, h, q_idx, kv_idx)
        return score

    qkv, seen = inputs(torch.bfloat16, 64), causal(150).to_dense()
    with backend("sim"):
        out, lse = flex_attention(*qkv, together, causal(150), enable_gqa=True, return_lse=True)
    wanted, wanted_lse, _ = dense_flex(*qkv, together, seen)
    rough, _, _ = dense_flex(*qkv, lambda *at: together(*at).bfloat16(), seen, dtype=torch.bfloat16)
    assert_close("out", out, wanted, 2 * (rough.double() - wanted).abs().max().item())
    assert_close("lse", lse, wanted_lse, 1e-4)
