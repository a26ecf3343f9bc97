"""The backward on the whole matrix of masks, sizes, dtypes and options: part of `make test-all`."""

from dataclasses import replace

import pytest
import torch
from backward_case import Case, block_sparse, check, make_problem, one_hot, random_inputs, run, with_gaps
from oracle import random_slices

from cute_attn import mask as masks
from cute_attn.mask import IntervalMask, causal, full

pytestmark = pytest.mark.slow

LENGTHS = [1, 127, 129, 257, 384]
BUILDERS = {
    "full": full(200, 333),
    "causal": causal(257, 300),
    "sliding_window": masks.sliding_window(384, left=60, right=5),
    "documents": masks.documents(384, cu_seqlens=[0, 100, 157, 285, 384]),
    "causal_documents": masks.causal_documents(384, cu_seqlens=[0, 100, 157, 285, 384]),
    "prefix_lm": masks.prefix_lm(300, prefix_length=140),
    "shared_prefix": masks.shared_prefix(384, prefix_length=100, lengths=[100, 90, 80]),
    "chunked_causal": masks.chunked_causal(384, chunk_size=100),
    "block_causal": masks.block_causal(384, block_size=48),
    "block_diffusion": masks.block_diffusion(384, block_size=32),
    "bidirectional_runs": masks.bidirectional_runs(300, runs=[[30, 80], [100, 230]]),
    "global_tokens": masks.global_tokens(300, positions=[0, 150, 299], left=20, right=20),
}
DIMS = [(64, 64), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256)]
ODD_DIMS = [(8, 8), (80, 80), (104, 128), (136, 136), (200, 200), (248, 256)]
SCHEDULES = [("eager", 0), ("late", 0), *(("random", seed) for seed in range(3))]


@pytest.mark.parametrize("name", BUILDERS)
def test_every_mask_builder(name, runtime):
    check(Case(BUILDERS[name]), runtime)


@pytest.mark.parametrize(("n", "rows", "keys"), [(1, 200, 300), (4, 257, 300), (12, 384, 384), (30, 300, 640)])
def test_random_slices_of_mixed_types(n, rows, keys, runtime):
    check(Case(IntervalMask.from_slices(*random_slices(n, rows, keys), rows, keys)), runtime)


@pytest.mark.parametrize("layers", [2, 3, 4, 20])
@pytest.mark.parametrize("softcap", [0.0, 3.0])
def test_any_number_of_layers(layers, softcap, runtime):
    check(Case(with_gaps(260, 500, layers), softcap=softcap), runtime)


@pytest.mark.parametrize("density", [0.2, 0.6])
def test_block_sparse_masks_whose_tiles_are_all_full(density, runtime):
    blocks = torch.rand(3, 5) < density
    blocks[0, 2] = True
    check(Case(block_sparse(blocks)), runtime)


@pytest.mark.parametrize("rows", LENGTHS)
@pytest.mark.parametrize("keys", LENGTHS)
@pytest.mark.parametrize("builder", [causal, full])
def test_every_pair_of_lengths(builder, rows, keys, runtime):
    check(Case(builder(rows, keys)), runtime)


@pytest.mark.parametrize("heads", [(2, 2), (4, 1), (8, 1), (6, 3)])
@pytest.mark.parametrize("batch", [1, 3])
def test_grouped_queries_and_batches(heads, batch, runtime):
    check(Case(causal(200), batch=batch, heads=heads, mode="random", seed=batch), runtime)


@pytest.mark.parametrize("dims", DIMS + ODD_DIMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_head_dim_and_dtype(dims, dtype, runtime):
    check(Case(causal(300), dims=dims, dtype=dtype), runtime)
    check(Case(causal(140, 300), dims=dims, dtype=dtype, mode="late"), runtime)


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize(("mode", "seed"), SCHEDULES)
def test_every_order_of_warps_and_copies_is_right(dims, mode, seed, runtime):
    check(Case(causal(257, 300), dims=dims, mode=mode, seed=seed, batch=2), runtime)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inputs", [one_hot, lambda c: [30 * x for x in random_inputs(c)]])
@pytest.mark.parametrize("mask", [causal(400), full(150, 384), masks.sliding_window(384, left=200, right=100)])
def test_hard_inputs(mask, inputs, dtype, runtime):
    check(Case(mask, inputs=inputs, dtype=dtype), runtime)


@pytest.mark.parametrize("name", ["full", "causal", "shared_prefix", "global_tokens"])
@pytest.mark.parametrize("heads", [(2, 2), (4, 1)])
@pytest.mark.parametrize("sm_margin", [0, 130])
def test_deterministic_gradients_have_the_same_bits_in_every_schedule(name, heads, sm_margin, runtime):
    case = Case(BUILDERS[name], heads=heads, options={"deterministic": True, "sm_margin": sm_margin})
    problem = make_problem(case)
    runs = [run(replace(case, mode=mode, seed=seed), runtime, problem) for mode, seed in SCHEDULES]
    for gradients in runs[1:]:
        for field in ("dq", "dk", "dv"):
            assert torch.equal(getattr(gradients, field), getattr(runs[0], field)), field


def test_without_deterministic_the_schedules_of_the_simulator_do_differ():
    case = Case(full(200, 700))
    problem = make_problem(case)
    runs = [run(replace(case, mode=mode, seed=seed), "sim", problem) for mode, seed in SCHEDULES]
    assert any(not torch.equal(gradients.dq, runs[0].dq) for gradients in runs[1:])


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True)])
@pytest.mark.parametrize("dims", [(64, 64), (192, 192), (256, 256)])
@pytest.mark.parametrize("mode", ["eager", "late", "random"])
def test_any_gradient_alone(needs, dims, mode, runtime):
    check(Case(causal(200), dims=dims, mode=mode, options={"needs": needs}), runtime)


@pytest.mark.parametrize("scale", [0.0, -0.2, 1e-9])
def test_any_finite_scale(scale, runtime):
    check(Case(causal(200), scale=scale), runtime)
