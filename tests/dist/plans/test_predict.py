"""Predictions of movers: their bytes are those of the plans, and the choice follows the mask."""

import pytest
from planned import masks

from cute_attn.dist import CostModel, OverlapConfig, place, plan_group_cast, plan_ring
from cute_attn.dist.plans.placed import PlacedMask
from cute_attn.dist.plans.predict import choose_mover, predict_movers
from cute_attn.mask import builders


@pytest.mark.parametrize("name", masks())
def test_predicted_bytes_are_those_of_the_plans(name):
    mask, cost = masks()[name], CostModel(heads_q=8, heads_k=2)
    query, key = place(mask, 4, 8)
    predictions = {
        p.mover: p for p in predict_movers(PlacedMask(mask, query, key), OverlapConfig(), cost, ulysses_size=2)
    }
    for mover, share, exchanged, plan in (
        ("group_cast", 1, 0, lambda rank: plan_group_cast(mask, query, key, rank)),
        ("ring", 1, 0, lambda rank: plan_ring(mask, query, key, rank)),
        ("ulysses_ring", 2, 1, lambda rank: plan_ring(mask, query, key, rank, 2)),
    ):
        head_rows = exchanged * query.rows_per_rank * (cost.query_bytes + cost.key_bytes) // share
        for rank in range(4):
            expected = plan(rank)
            assert predictions[mover].bytes_sent[rank] == expected.rows_sent * cost.key_bytes // share + head_rows
            assert (
                predictions[mover].bytes_received[rank] == expected.rows_received * cost.key_bytes // share + head_rows
            )


def test_heads_decide_which_movers_are_predicted():
    mask = masks()["causal"]
    placed = PlacedMask(mask, *place(mask, 4, 8))
    names = [p.mover for p in predict_movers(placed, OverlapConfig(), CostModel(heads_q=6, heads_k=2))]
    assert names == ["all_gather", "group_cast", "ring"]
    names = [p.mover for p in predict_movers(placed, OverlapConfig(), CostModel(heads_q=8), 2)]
    assert names == ["all_gather", "group_cast", "ring", "ulysses", "ulysses_ring"]


def test_the_mover_follows_the_mask():
    few_heads = CostModel(heads_q=8, heads_k=8, flops=1e18)
    window, causal = builders.sliding_window(1 << 14, left=63, right=0), builders.full(1 << 14)
    chosen = [choose_mover(PlacedMask(m, *place(m, 8, 128)), OverlapConfig(), few_heads) for m in (window, causal)]
    assert chosen == ["group_cast", "ulysses"]
