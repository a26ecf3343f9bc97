"""Outputs left in fp32, to be merged with those over other keys."""

from dataclasses import replace

import pytest
import torch
from cases import Case, draw, with_gaps
from forward_case import check, run
from oracle import assert_close

from cute_attn.mask import causal, sliding_window
from cute_attn.spec.attention import HEAD_DIMS

FP32 = {"fp32_out": True}


def check_unrounded(case, backend):
    """Queries of zero weigh all their keys alike, and weights of one have no rounding: nothing but that of the output
    could be more than some ulps of fp32."""
    problem = draw(case)
    problem.q.zero_()
    out, lse, _ = run(case, backend, problem)
    dense = case.mask.to_dense().double()
    count = dense.sum(2)[:, :, None, None]
    values = problem.v.double().repeat_interleave(case.heads[0] // case.heads[1], 2)
    assert out.dtype == torch.float32
    assert_close("out", out, torch.einsum("bqk,bkhd->bqhd", dense, values) / count.clamp(min=1), 2e-6)
    assert_close("lse", lse, count[..., 0].log().mT.expand_as(lse), 2e-6)


def check_rounds_to_what_the_other_kernel_gives(case, backend):
    problem = draw(case)
    unrounded, lse, _ = run(replace(case, options=FP32), backend, problem)
    rounded, same_lse, _ = run(case, backend, problem)
    assert torch.equal(unrounded.to(case.dtype), rounded)
    assert torch.equal(lse, same_lse)


def test_outputs_have_the_precision_of_fp32(backend):
    check_unrounded(Case(causal(200, 150), dims=(64, 64), options=FP32), backend)


@pytest.mark.slow
@pytest.mark.parametrize("dims", HEAD_DIMS)
def test_every_head_dim_has_it_and_rounds_to_what_the_other_kernel_gives(dims, backend):
    check_unrounded(Case(causal(130, 200), batch=2, dims=dims, options=FP32), backend)
    check_rounds_to_what_the_other_kernel_gives(Case(causal(130, 200), dims=dims), backend)


@pytest.mark.slow
def test_odd_head_dims_of_fp16_leave_the_columns_beyond_alone(backend):
    case = Case(sliding_window(150, left=60, right=9), heads=(4, 2), dims=(72, 56), dtype=torch.float16, options=FP32)
    check_unrounded(case, backend)
    check(case, backend)


@pytest.mark.slow
def test_sinks_largest_logits_and_many_layers_go_along(backend):
    case = Case(with_gaps(200, 400, 20), dims=(64, 64), sink="ssh", options={**FP32, "return_max_logits": True})
    check(case, backend)
