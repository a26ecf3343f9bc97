"""The backward on a covering set: every feature once, in few kernels. The whole matrix is in test_backward_matrix."""

import pytest
import torch
from backward_case import check, check_same_bits
from cases import LENGTHS, SCHEDULES, Case, block_sparse, huge, one_hot, packed, stacked, with_gaps

from cute_attn.launch.tensors import SIMULATED_SMS
from cute_attn.mask import IntervalMask, causal, full, sliding_window
from cute_attn.sim.host import capture


@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.slow), *LENGTHS[1:4]])
def test_causal_of_any_length(n, backend):
    check(Case(causal(n)), backend)


@pytest.mark.parametrize(("mode", "seed"), [("late", 0), ("random", 1), ("random", 2)])
def test_every_order_of_warps_and_copies_is_right(mode, seed, backend):
    check(Case(causal(257, 300), mode=mode, seed=seed, batch=2), backend)


def test_rows_without_keys_get_zero_and_give_nothing(backend):
    gradients = check(Case(causal(300, 130)), backend)
    assert (gradients.dq[:, :170] == 0).all()
    assert (gradients.delta[:, :, :170] == 0).all()


def test_keys_that_nobody_attends_get_zero_and_each_element_is_written(backend):
    mask = IntervalMask.from_slices([[0, 100]], [[0, 50]], [0], 150, 300)
    gradients = check(Case(mask, heads=(2, 2)), backend)
    assert (gradients.dk[:, 50:] == 0).all()
    assert (gradients.dv[:, 50:] == 0).all()


@pytest.mark.parametrize("inputs", [one_hot, huge])
def test_peaked_rows_and_huge_logits(inputs, backend):
    check(Case(causal(300), inputs=inputs), backend)


@pytest.mark.slow
def test_masks_whose_tiles_are_all_full(backend):
    blocks = torch.tensor([[1, 0, 1], [0, 1, 1], [0, 0, 0]], dtype=torch.bool)
    check(Case(block_sparse(blocks), heads=(4, 2)), backend)


def test_strided_inputs_run_without_a_copy(backend, caplog):
    with caplog.at_level("INFO", "cute_attn.copy"):
        check(Case(causal(300), batch=2, inputs=packed), backend)
    assert not caplog.records


def test_deterministic_gradients_have_the_same_bits_in_every_schedule(backend):
    check_same_bits(Case(causal(300), heads=(4, 2), options={"deterministic": True}), backend, SCHEDULES[:4])


@pytest.mark.slow
@pytest.mark.parametrize("deterministic", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_ctas_that_take_turns_in_several_items_are_launched_to_be_resident_together(deterministic, monkeypatch):
    launches = []

    def execute(launch, *arguments, **options):
        launches.append((launch.grid[0], launch.cooperative))
        return original(launch, *arguments, **options)

    original = capture.execute
    monkeypatch.setattr(capture, "execute", execute)
    for margin, ctas in ((0, 6), (SIMULATED_SMS - 6, 6), (SIMULATED_SMS - 2, 2)):
        options = {"deterministic": deterministic, "sm_margin": margin}
        check(Case(causal(300), heads=(4, 2), options=options), "sim")
        assert (ctas, deterministic and ctas < 6) in launches
        assert not any(cooperative for grid, cooperative in launches if grid != 2)


@pytest.mark.slow
def test_two_layers_fp16_with_sinks_and_a_gradient_of_lse(backend):
    mask = IntervalMask.from_slices([[0, 300], [100, 300]], [[0, 100], [200, 450]], [0, 1], 300, 450)
    check(Case(mask, heads=(4, 1), dims=(64, 64), dtype=torch.float16, sink="sh", dlse=True), backend)


@pytest.mark.slow
def test_many_layers_and_a_sink_for_each_row(backend):
    check(Case(with_gaps(200, 400, 20), heads=(2, 2), sink="ssh", mode="late"), backend)


@pytest.mark.slow
def test_odd_head_dim_softcap_and_a_mask_for_each_batch(backend):
    mask = stacked(sliding_window(260, left=40, right=0), causal(260))
    check(Case(mask, batch=2, heads=(8, 1), dims=(80, 72), softcap=5.0, scale=0.3), backend)


@pytest.mark.slow
def test_a_negative_scale_at_head_dim_256(backend):
    check(Case(full(140, 200), dims=(256, 256), heads=(1, 1), scale=-0.05, mode="late"), backend)


@pytest.mark.slow
def test_only_the_gradients_that_are_needed(backend):
    gradients = check(Case(causal(200), dims=(192, 128), options={"needs": (True, False, True)}), backend)
    assert gradients.dk is None
