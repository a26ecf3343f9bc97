"""Which query heads share the tiles of a forward."""

import pytest
import torch
from cases import stacked

from cute_attn.launch.forward import plan_forward
from cute_attn.launch.packing import choose_heads, packed, packed_choices, positions, shared_by
from cute_attn.launch.shapes import spec_for
from cute_attn.mask import causal, full
from cute_attn.spec.forward import ForwardSpec
from cute_attn.spec.mask import MaskForm


def plan(mask, heads, **given):
    return plan_forward(mask, torch.bfloat16, (64, 64), heads, given.pop("softmax", "stale"), **given)


@pytest.mark.parametrize(
    ("rows", "ratio", "shared"),
    [
        *[(1, 1, 1), (1, 8, 8), (64, 8, 8), (80, 8, 8), (96, 8, 1), (128, 8, 1), (130, 8, 8), (4096, 8, 1)],
        *[(64, 2, 2), (65, 2, 1), (33, 3, 3), (65, 3, 1), (48, 5, 5), (64, 6, 2), (16, 6, 6), (1, 128, 64)],
    ],
)
def test_heads_share_tiles_where_a_third_of_them_is_saved(rows, ratio, shared):
    assert choose_heads(full(rows, 128), (2 * ratio, 2), 128) == shared


@pytest.mark.parametrize("ratio", [*range(1, 20), 64, 96, 128])
def test_no_choice_has_more_tiles_than_one_head_each(ratio):
    for rows in range(1, 300):
        shared = choose_heads(full(rows, 1), (ratio, 1), 128)
        tiles = ratio // shared * -(-rows // positions(128, shared))
        assert shared == 1 or tiles <= ratio * -(-rows // 128) * 2 / 3
        assert shared_by(packed(shared), (ratio, 1)) in range(shared, ratio + 1)


@pytest.mark.slow
@pytest.mark.parametrize("m", [64, 128, 192])
@pytest.mark.parametrize("ratio", [*range(1, 20), 64, 96, 128])
def test_all_choices_of_a_ratio_are_those_of_any_number_of_rows(ratio, m):
    chosen = {choose_heads(full(rows, 1), (3 * ratio, 3), m) for rows in range(1, 1200)}
    assert packed_choices((3 * ratio, 3), m) == sorted({packed(shared) for shared in chosen} - {1})


def test_planes_of_heads_graphs_unrounded_outputs_and_exact_maxima_are_not_packed():
    mask, heads = causal(20), (8, 1)
    assert plan(mask, heads).form.heads_in_tile == 8
    assert plan(stacked(*[mask] * 8, heads=8), heads).form.heads_in_tile == 1
    for given in ({"has_graph": True}, {"fp32_out": True}, {"softmax": "exact"}):
        assert plan(mask, heads, **given).form.heads_in_tile == 1


def test_a_plan_and_a_spec_without_tensors_agree():
    mask = causal(20)
    form = plan(mask, (6, 1)).form
    assert spec_for("fwd", "bf16", 64, 64, mask, heads=(6, 1)).packed_heads == packed(form.heads_in_tile) == 8
    assert spec_for("fwd", "bf16", 64, 64, mask, heads=(6, 1), softmax="exact").packed_heads == 1
    assert spec_for("fwd", "bf16", 64, 64, mask, heads=(6, 1), fp32_out=True).packed_heads == 1
    assert spec_for("fwd", "bf16", 64, 64, mask).packed_heads == 1


def test_a_spec_refuses_what_packed_tiles_do_not_serve():
    with pytest.raises(ValueError, match="packed_heads must be one of 1, 2, 4, 8, 16, 32, 64, got 6"):
        ForwardSpec(packed_heads=6)
    for more in ({"softmax": "exact"}, {"fp32_out": True}, {"piece": 64, "mask": MaskForm(True)}):
        with pytest.raises(ValueError, match="packed_heads needs softmax='stale', no fp32_out, no piece and no graphs"):
            ForwardSpec(packed_heads=8, **more)


def test_specs_have_no_number_of_heads_that_no_ratio_leads_to():
    with pytest.raises(ValueError, match="have no 8 that share a key head"):
        shared_by(8, (4, 1))
