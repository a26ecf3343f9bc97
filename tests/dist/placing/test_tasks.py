"""Tasks: what the rows of ranks attend of one another's keys, counted pair by pair, and which of them move."""

import pytest
import torch
from planned import LENGTH, masks, random_placement

from cute_attn import IntervalMask
from cute_attn.dist import CostModel
from cute_attn.dist.placing.tasks import choose_tasks
from cute_attn.dist.plans.placed import PlacedMask

FAR = CostModel(8, 8, 32, 32, bandwidth=1e6, latency=0.0)  # bytes decide


@pytest.mark.parametrize("name", masks())
def test_tasks_are_what_counting_every_pair_gives(name):
    mask, query = masks()[name], random_placement(LENGTH, 3, 5)
    tasks = PlacedMask(mask, query, query).tasks
    dense = mask.to_dense()[0]
    rank = query.owner().repeat_interleave(query.chunk_size)[:LENGTH]
    for r in range(3):
        for s in range(3):
            pairs = dense[rank == r][:, rank == s]
            assert tasks.areas(r)[s] == pairs.sum()
            assert tasks.queries[r, s] == pairs.any(1).sum()
            assert tasks.keys[r, s] == pairs.any(0).sum()
        assert tasks.area[r] == dense[rank == r].sum()


def few_see_all(rows):
    """Rows see themselves, the last two all."""
    begin = torch.arange(rows)
    begin[-2:] = 0
    return IntervalMask.from_intervals(begin[None], torch.arange(1, rows + 1)[None], rows)


def test_queries_move_where_few_rows_need_many_keys_and_nowhere_else():
    placement = random_placement(64, 4, 4)
    last = int(placement.owner()[-1])
    moved = PlacedMask(few_see_all(64), placement, placement).moved_tasks(FAR)
    assert moved.sum() == 3
    assert moved[last].sum() == 3
    causal = PlacedMask(masks()["causal"], *[random_placement(LENGTH, 4, 4)] * 2).tasks
    assert not choose_tasks(causal, CostModel(64, 1)).any(), "64 query heads on one key head"


def test_attention_that_binds_is_shared_by_moving_queries():
    placement = random_placement(64, 4, 4)
    placed = PlacedMask(few_see_all(64), placement, placement)
    cost = CostModel(64, 1, flops=1e6, latency=0.0)  # bytes cost nothing beside attention
    assert placed.moved_areas(cost).max() < placed.areas.max()
    assert placed.moved_areas(cost).sum() == placed.areas.sum()
