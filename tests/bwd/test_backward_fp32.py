"""Gradients left in fp32, to be added to what other keys and queries contribute."""

from dataclasses import replace

import pytest
import torch
from backward_case import NAMES, check, make_problem, run
from cases import Case, Problem, plainly, with_gaps
from oracle import assert_close

from cute_attn.mask import IntervalMask, causal
from cute_attn.reference import attention_forward
from cute_attn.spec.attention import HEAD_DIMS

FP32 = {"fp32_gradients": True}
# 64 keys for the first rows and 128 for the others
HALVES = IntervalMask.from_slices([[0, 70], [70, 150]], [[0, 64], [0, 128]], None, 150, 128)


def without_roundings(case):
    """Queries and keys of different columns, so that every weight is 2^-6 or 2^-7, and dS a small multiple of that:
    P and dS are exact in bf16, and only a rounded gradient could be off by more than some ulps of fp32."""
    (heads_q, heads_k), (dim, dim_v) = case.heads, case.dims
    rows, keys = case.mask.seqlen_q, case.mask.seqlen_k
    q, k = torch.randn(case.batch, rows, heads_q, dim), torch.randn(case.batch, keys, heads_k, dim)
    q[..., dim // 2 :], k[..., : dim // 2] = 0.0, 0.0
    v = torch.zeros(case.batch, keys, heads_k, dim_v)
    v[:, 0::2, :, 0], v[:, 1::2, :, 0] = 1.0, -1.0  # out is zero
    dout = torch.randn(case.batch, rows, heads_q, dim_v)
    dout[..., 0] = dout[..., 0].sign()
    dlse = torch.randint(-1, 2, (case.batch, heads_q, rows)).float()
    q, k, v, dout = (x.to(case.dtype) for x in (q, k, v, dout))
    out, lse, _ = attention_forward(q, k, v, *case.bounds, None, case.softmax_scale, 0.0)
    return Problem(q, k, v, out=out, lse=lse, dout=dout, dlse=dlse)


def check_unrounded(case, backend):
    problem = without_roundings(case)
    gradients = run(case, backend, problem)
    exact = plainly(case, problem, torch.float64)
    for name, got in zip(NAMES, gradients[:3], strict=False):
        assert got.dtype == torch.float32
        assert_close(name, got, exact[name], 2e-6)


def test_gradients_have_the_precision_of_fp32(backend):
    check_unrounded(Case(HALVES, dims=(64, 64), dlse=True, options=FP32), backend)


@pytest.mark.slow
@pytest.mark.parametrize("dims", HEAD_DIMS)
def test_every_head_dim_has_it_and_rounds_to_what_the_other_kernel_gives(dims, backend):
    options = {"deterministic": True}
    check_unrounded(Case(HALVES, batch=2, dims=dims, dlse=True, options=options | FP32), backend)
    case = Case(causal(200, 150), dims=dims, dlse=True, options=options)
    problem = make_problem(case)
    unrounded = run(replace(case, options=case.options | FP32), backend, problem)
    for name, got, wanted in zip(NAMES, unrounded[:3], run(case, backend, problem)[:3], strict=False):
        assert torch.equal(got.to(case.dtype), wanted), name


@pytest.mark.slow
@pytest.mark.parametrize("needs", [(True, False, False), (False, True, True)])
def test_odd_head_dims_of_fp16_leave_the_columns_beyond_alone(needs, backend):
    options = FP32 | {"needs": needs}
    case = Case(with_gaps(150, 300, 3), heads=(4, 2), dims=(72, 56), dtype=torch.float16, dlse=True, options=options)
    check(case, backend)
