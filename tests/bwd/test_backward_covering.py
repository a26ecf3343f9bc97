"""The backward on a covering set: every feature once, in few kernels. The whole matrix is in test_backward_matrix."""

import pytest
import torch
from backward_case import check, check_same_bits
from cases import LENGTHS, SCHEDULES, Case, block_sparse, huge, one_hot, packed, stacked, with_gaps

from cute_attn.mask import IntervalMask, causal, full, sliding_window


@pytest.mark.parametrize("n", LENGTHS[:4])
def test_causal_of_any_length(n, runtime):
    check(Case(causal(n)), runtime)


@pytest.mark.parametrize(("mode", "seed"), [("late", 0), ("random", 1), ("random", 2)])
def test_every_order_of_warps_and_copies_is_right(mode, seed, runtime):
    check(Case(causal(257, 300), mode=mode, seed=seed, batch=2), runtime)


def test_rows_without_keys_get_zero_and_give_nothing(runtime):
    gradients = check(Case(causal(300, 130)), runtime)
    assert (gradients.dq[:, :170] == 0).all()
    assert (gradients.delta[:, :, :170] == 0).all()


def test_keys_that_nobody_attends_get_zero_and_each_element_is_written(runtime):
    mask = IntervalMask.from_slices([[0, 100]], [[0, 50]], [0], 150, 300)
    gradients = check(Case(mask, heads=(2, 2)), runtime)
    assert (gradients.dk[:, 50:] == 0).all()
    assert (gradients.dv[:, 50:] == 0).all()


@pytest.mark.parametrize("inputs", [one_hot, huge])
def test_peaked_rows_and_huge_logits(inputs, runtime):
    check(Case(causal(300), inputs=inputs), runtime)


def test_masks_whose_tiles_are_all_full(runtime):
    blocks = torch.tensor([[1, 0, 1], [0, 1, 1], [0, 0, 0]], dtype=torch.bool)
    check(Case(block_sparse(blocks), heads=(4, 2)), runtime)


def test_strided_inputs_run_without_a_copy(runtime, caplog):
    with caplog.at_level("INFO", "cute_attn.copy"):
        check(Case(causal(300), batch=2, inputs=packed), runtime)
    assert not caplog.records


def test_deterministic_gradients_have_the_same_bits_in_every_schedule(runtime):
    check_same_bits(Case(causal(300), heads=(4, 2), options={"deterministic": True}), runtime, SCHEDULES[:4])


def test_two_layers_fp16_with_sinks_and_a_gradient_of_lse(runtime):
    mask = IntervalMask.from_slices([[0, 300], [100, 300]], [[0, 100], [200, 450]], [0, 1], 300, 450)
    check(Case(mask, heads=(4, 1), dims=(64, 64), dtype=torch.float16, sink="sh", dlse=True), runtime)


def test_many_layers_and_a_sink_for_each_row(runtime):
    check(Case(with_gaps(200, 400, 20), heads=(2, 2), sink="ssh", mode="late"), runtime)


def test_odd_head_dim_softcap_and_a_mask_for_each_batch(runtime):
    mask = stacked(sliding_window(260, left=40, right=0), causal(260))
    check(Case(mask, batch=2, heads=(8, 1), dims=(80, 72), softcap=5.0, scale=0.3), runtime)


def test_a_negative_scale_at_head_dim_256(runtime):
    check(Case(full(140, 200), dims=(256, 256), heads=(1, 1), scale=-0.05, mode="late"), runtime)


def test_only_the_gradients_that_are_needed(runtime):
    gradients = check(Case(causal(200), dims=(192, 128), options={"needs": (True, False, True)}), runtime)
    assert gradients.dk is None
