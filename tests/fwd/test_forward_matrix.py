"""The forward on the whole matrix of masks, sizes, dtypes and options: part of `make test-all`."""

import dataclasses

import pytest
import torch
from cases import (
    SCHEDULES,
    Case,
    falling,
    growing,
    huge,
    one_hot,
    random_inputs,
    stacked,
    with_gaps,
)
from forward_case import check
from matrix import *  # noqa: F403

from cute_attn import mask as masks
from cute_attn.mask import IntervalMask, causal, full
from cute_attn.spec.tiles import TileConfig

pytestmark = pytest.mark.slow


@pytest.fixture(name="check")
def check_of_matrix():
    return check


@pytest.mark.parametrize("layers", [2, 3, 4, 20])
@pytest.mark.parametrize("softmax", ["stale", "exact"])
def test_any_number_of_layers(layers, softmax, backend):
    check(Case(with_gaps(260, 500, layers), options={"softmax": softmax}), backend)


@pytest.mark.parametrize("softmax", ["stale", "exact"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inputs", [growing, falling, one_hot, huge])
@pytest.mark.parametrize("mask", [causal(400), full(150, 384), masks.sliding_window(384, left=200, right=100)])
def test_hard_inputs(mask, inputs, dtype, softmax, backend):
    check(Case(mask, inputs=inputs, dtype=dtype, options={"softmax": softmax}), backend)


@pytest.mark.parametrize("inputs", [random_inputs, growing, falling])
def test_rows_whose_first_key_comes_late(inputs, backend):
    lo = torch.where(torch.arange(128) % 3 == 0, 330, 0)
    check(Case(IntervalMask.from_intervals(lo, torch.full((128,), 400), 400), inputs=inputs), backend)


@pytest.mark.parametrize("sink", ["sh", "ssh"])
@pytest.mark.parametrize("mask", [causal(300, 200), full(130, 200)])
@pytest.mark.parametrize("softcap", [0.0, 20.0])
def test_sinks_and_softcap(mask, sink, softcap, backend):
    check(Case(mask, batch=2, heads=(4, 2), sink=sink, softcap=softcap), backend)


@pytest.mark.parametrize("scale", [1.0, 0.0, -0.1, 1e-9])
@pytest.mark.parametrize("softcap", [0.0, 10.0])
def test_any_finite_scale(scale, softcap, backend):
    check(Case(causal(300), scale=scale, softcap=softcap), backend)


@pytest.mark.parametrize("softcap", [1e-3, 1.0, 1e6, 1e12])
def test_any_softcap(softcap, backend):
    check(Case(with_gaps(300, 400, 2), softcap=softcap), backend)


def test_bounds_that_lie_row_by_row_in_memory(backend):
    mask = causal(200)
    lo, hi = (x.transpose(1, 2).repeat(1, 1, 2).transpose(1, 2)[:, :1] for x in (mask.lo, mask.hi))
    assert hi.stride(-1) != 1
    check(Case(IntervalMask(lo, hi, 200)), backend)


@pytest.mark.parametrize("mask", [causal(300, 200), full(130, 200), with_gaps(200, 300, 5)])
@pytest.mark.parametrize("softcap", [0.0, 10.0])
def test_the_largest_logit_of_every_head(mask, softcap, backend):
    options = {"return_max_logits": True}
    check(Case(mask, heads=(4, 2), softcap=softcap, options=options, mode="random", seed=1), backend)


@pytest.mark.parametrize(("mode", "seed"), SCHEDULES[1:])
@pytest.mark.parametrize(
    ("dims", "options"),
    [
        ((128, 128), {}),
        ((128, 128), {"softmax": "exact"}),
        ((64, 64), {"softmax": "exact", "tile": TileConfig(192, 128)}),
        ((64, 64), {"tile": TileConfig(128, 176, 4, False)}),
        ((192, 192), {}),  # the output leaves through the memory of Q
    ],
)
def test_every_schedule_of_warps_and_copies(dims, options, mode, seed, backend):
    case = {"dims": dims, "mode": mode, "seed": seed, "options": {**options, "sm_margin": 127}}
    check(Case(with_gaps(300, 600, 4), **case), backend)
    check(Case(masks.sliding_window(384, left=100, right=100), batch=2, **case), backend)


@pytest.mark.parametrize("seed", range(6))
def test_no_warpgroup_writes_its_output_over_queries_that_another_still_reads(seed, backend):
    case = Case(causal(384), batch=2, heads=(3, 1), dims=(192, 128), mode="random", seed=seed)
    check(dataclasses.replace(case, options={"sm_margin": 129}), backend)


def test_heads_and_batches_that_share_keys_by_a_stride_of_zero(backend):
    def shared(c):
        q = torch.randn(3, 200, 4, 128, dtype=c.dtype)
        k, v = (torch.randn(1, 200, 1, 128, dtype=c.dtype).expand(3, -1, 2, -1) for _ in range(2))
        return q, k, v

    check(Case(causal(200), batch=3, heads=(4, 2), inputs=shared), backend)


def test_a_mask_for_each_batch(backend):
    mask = stacked(causal(260), masks.sliding_window(260, left=40, right=0), full(260))
    check(Case(mask, batch=3, heads=(4, 2)), backend)
