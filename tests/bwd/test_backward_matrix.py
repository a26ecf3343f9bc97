"""The backward on the whole matrix of masks, sizes, dtypes and options: part of `make test-all`."""

from dataclasses import replace

import pytest
import torch
from backward_case import check, check_same_bits, make_problem, run
from cases import (
    BUILDERS,
    DIMS,
    HEADS,
    LENGTHS,
    NEEDS_ONE,
    ODD_DIMS,
    SCHEDULES,
    SLICES,
    Case,
    huge,
    one_hot,
    random_blocks,
    with_gaps,
)
from oracle import random_slices

from cute_attn import mask as masks
from cute_attn.mask import IntervalMask, causal, full

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", BUILDERS)
def test_every_mask_builder(name, backend):
    check(Case(BUILDERS[name]), backend)


@pytest.mark.parametrize(("n", "rows", "keys"), SLICES)
def test_random_slices_of_mixed_types(n, rows, keys, backend):
    check(Case(IntervalMask.from_slices(*random_slices(n, rows, keys), rows, keys)), backend)


@pytest.mark.parametrize("layers", [2, 3, 4, 20])
@pytest.mark.parametrize("softcap", [0.0, 3.0])
def test_any_number_of_layers(layers, softcap, backend):
    check(Case(with_gaps(260, 500, layers), softcap=softcap), backend)


@pytest.mark.parametrize("density", [0.2, 0.6])
def test_block_sparse_masks_whose_tiles_are_all_full(density, backend):
    check(Case(random_blocks(density)), backend)


@pytest.mark.parametrize("rows", LENGTHS)
@pytest.mark.parametrize("keys", LENGTHS)
@pytest.mark.parametrize("builder", [causal, full])
def test_every_pair_of_lengths(builder, rows, keys, backend):
    check(Case(builder(rows, keys)), backend)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("batch", [1, 3])
def test_grouped_queries_and_batches(heads, batch, backend):
    check(Case(causal(200), batch=batch, heads=heads, mode="random", seed=batch), backend)


@pytest.mark.parametrize("dims", DIMS + ODD_DIMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_head_dim_and_dtype(dims, dtype, backend):
    check(Case(causal(300), dims=dims, dtype=dtype), backend)
    check(Case(causal(140, 300), dims=dims, dtype=dtype, mode="late"), backend)


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize(("mode", "seed"), SCHEDULES)
def test_every_order_of_warps_and_copies_is_right(dims, mode, seed, backend):
    check(Case(causal(257, 300), dims=dims, mode=mode, seed=seed, batch=2), backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inputs", [one_hot, huge])
@pytest.mark.parametrize("mask", [causal(400), full(150, 384), masks.sliding_window(384, left=200, right=100)])
def test_hard_inputs(mask, inputs, dtype, backend):
    check(Case(mask, inputs=inputs, dtype=dtype), backend)


@pytest.mark.parametrize("name", ["full", "causal", "shared_prefix", "global_tokens"])
@pytest.mark.parametrize("heads", [(2, 2), (4, 1)])
@pytest.mark.parametrize("sm_margin", [0, 130])
def test_deterministic_gradients_have_the_same_bits_in_every_schedule(name, heads, sm_margin, backend):
    case = Case(BUILDERS[name], heads=heads, options={"deterministic": True, "sm_margin": sm_margin})
    check_same_bits(case, backend, SCHEDULES)


def test_without_deterministic_the_schedules_of_the_simulator_do_differ():
    case = Case(full(200, 700))
    problem = make_problem(case)
    runs = [run(replace(case, mode=mode, seed=seed), "sim", problem) for mode, seed in SCHEDULES]
    assert any(not torch.equal(gradients.dq, runs[0].dq) for gradients in runs[1:])


@pytest.mark.parametrize("needs", NEEDS_ONE)
@pytest.mark.parametrize("dims", [(64, 64), (192, 192), (256, 256)])
@pytest.mark.parametrize("mode", ["eager", "late", "random"])
def test_any_gradient_alone(needs, dims, mode, backend):
    check(Case(causal(200), dims=dims, mode=mode, options={"needs": needs}), backend)


@pytest.mark.parametrize("scale", [0.0, -0.2, 1e-9])
def test_any_finite_scale(scale, backend):
    check(Case(causal(200), scale=scale), backend)
