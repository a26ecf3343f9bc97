"""The backward on the whole matrix of masks, sizes, dtypes and options: part of `make test-all`."""

from dataclasses import replace

import pytest
import torch
from backward_case import check, check_same_bits, make_problem, run
from cases import (
    BUILDERS,
    DIMS,
    NEEDS_ONE,
    SCHEDULES,
    Case,
    huge,
    one_hot,
    with_gaps,
)
from matrix import *  # noqa: F403

from cute_attn import mask as masks
from cute_attn.mask import causal, full

pytestmark = pytest.mark.slow


@pytest.fixture(name="check")
def check_of_matrix():
    return check


@pytest.mark.parametrize("layers", [2, 3, 4, 20])
@pytest.mark.parametrize("softcap", [0.0, 3.0])
def test_any_number_of_layers(layers, softcap, backend):
    check(Case(with_gaps(260, 500, layers), softcap=softcap), backend)


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
