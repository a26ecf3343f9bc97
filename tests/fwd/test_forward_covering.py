"""The forward on a covering set: every feature once, in few kernels. The whole matrix is in test_forward_matrix."""

import pytest
import torch
from cases import LENGTHS, NARROW, Case, falling, growing, huge, one_hot, packed, stacked, with_gaps
from forward_case import check

from cute_attn.mask import IntervalMask, causal, full, sliding_window


@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.slow), *LENGTHS[1:]])
def test_causal_of_any_length(n, backend):
    check(Case(causal(n)), backend)


@pytest.mark.parametrize(("mode", "seed"), [("late", 0), ("random", 1), ("random", 2)])
def test_every_order_of_warps_and_copies_gives_the_same(mode, seed, backend):
    check(Case(causal(257, 300), mode=mode, seed=seed), backend)


def test_more_queries_than_keys_leave_rows_without_keys(backend):
    check(Case(causal(300, 130)), backend)


def test_more_items_than_ctas(backend):
    check(Case(causal(384), batch=2, heads=(3, 3), options={"sm_margin": 129}, mode="late"), backend)


@pytest.mark.parametrize("inputs", [growing, falling])
def test_maxima_that_come_late_are_repaired(inputs, backend):
    check(Case(causal(100, 500), inputs=inputs, scale=1.0), backend)


def test_one_key_that_takes_all_weight(backend):
    check(Case(causal(300), inputs=one_hot), backend)


def test_huge_logits(backend):
    check(Case(causal(300), inputs=huge), backend)


def test_strided_inputs_run_without_a_copy(backend, caplog):
    with caplog.at_level("INFO", "cute_attn.copy"):
        check(Case(causal(300), batch=2, inputs=packed), backend)
    assert not caplog.records


@pytest.mark.slow
def test_two_layers_fp16_with_sinks_of_every_head(backend):
    mask = IntervalMask.from_slices([[0, 300], [100, 300]], [[0, 100], [200, 450]], [0, 1], 300, 450)
    check(Case(mask, heads=(4, 1), dims=(64, 64), dtype=torch.float16, sink="sh"), backend)


@pytest.mark.slow
def test_many_layers_and_the_largest_logit(backend):
    check(Case(with_gaps(200, 400, 20), options={"return_max_logits": True}, heads=(2, 2)), backend)


@pytest.mark.slow
def test_odd_head_dim_softcap_and_a_mask_for_each_batch(backend):
    mask = stacked(sliding_window(260, left=40, right=0), causal(260))
    check(Case(mask, batch=2, heads=(8, 1), dims=(80, 72), softcap=5.0, sink="ssh"), backend)


@pytest.mark.slow
def test_a_negative_scale_at_head_dim_256(backend):
    check(Case(full(140, 200), dims=(256, 256), heads=(1, 1), scale=-0.05, options={"tile": NARROW}), backend)
