"""What follows from a mask on its placements is computed once, whoever asks."""

import pytest
import torch
from planned import LENGTH, masks, random_placement

from cute_attn.dist import CostModel, OverlapConfig, Placement
from cute_attn.dist.placing.needs import chunk_needs
from cute_attn.dist.plans import placed as placed_module
from cute_attn.dist.plans.group_cast import plan_placed_group_cast
from cute_attn.dist.plans.placed import PlacedMask
from cute_attn.dist.plans.predict import predict_movers
from cute_attn.dist.plans.ring import plan_placed_ring
from cute_attn.mask import IntervalMask, builders


def test_needs_are_computed_once_and_the_reach_once_for_each_size_of_a_ring(monkeypatch):
    calls = []
    for name in ("chunk_needs", "rank_needs", "remote_needs", "rank_areas", "ring_reach"):
        monkeypatch.setattr(placed_module, name, counted(name, getattr(placed_module, name), calls))
    place, cost = random_placement(LENGTH, 4, 8), CostModel(heads_q=8)
    placed = PlacedMask(masks()["slices"], place, place)
    for _ in range(2):
        predict_movers(placed, OverlapConfig(), cost, ulysses_size=2)
        plan_placed_group_cast(placed, 1, OverlapConfig(), cost)
        for size in (1, 2, 4):
            plan_placed_ring(placed, 1, size)
    assert calls.count("ring_reach") == calls.count("rank_needs") == calls.count("rank_areas") == 3
    assert calls.count("remote_needs") == 1


def counted(name, function, calls):
    def call(*arguments):
        calls.append(name)
        return function(*arguments)

    return call


def test_a_mask_keeps_the_needs_of_its_chunks():
    mask = masks()["many_layers"]
    assert chunk_needs(mask, 8) is chunk_needs(mask, 8)
    for size in (8, 50):
        needs = chunk_needs(mask, size)
        for chunk in range(-(-LENGTH // size)):
            needed = torch.zeros(LENGTH, dtype=torch.bool)
            for lo, hi in zip(*needs.of(chunk)[1:], strict=True):
                needed[lo:hi] = True
            assert torch.equal(needed, mask.to_dense()[0, chunk * size : (chunk + 1) * size].any(0))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (IntervalMask(*torch.zeros(2, 2, 1, 64, dtype=torch.int32), 64), "mask must have batch 1 .*, got batch 2"),
        (builders.causal(63), "mask of 63 rows and 63 keys does not fit placements of 64 and 64"),
    ],
)
def test_a_mask_that_does_not_fit_the_placements_is_refused(mask, message):
    place = Placement.contiguous(64, 8, 2, 4)
    with pytest.raises(ValueError, match=message):
        PlacedMask(mask, place, place)
    with pytest.raises(ValueError, match="equally many ranks, got 2 and 4"):
        PlacedMask(builders.causal(64), place, Placement.contiguous(64, 8, 4, 2))
