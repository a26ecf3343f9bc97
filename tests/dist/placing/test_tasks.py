"""Tasks: what the rows of ranks attend of one another's keys, counted pair by pair, and which of them move."""

import pytest
import torch
from planned import LENGTH, masks, random_placement

from cute_attn import IntervalMask
from cute_attn.dist import CostModel, OverlapConfig, Placement
from cute_attn.dist.placing.tasks import _Choice, choose_tasks
from cute_attn.dist.plans.placed import PlacedMask
from cute_attn.dist.plans.predict import predict_movers

OVERLAP = OverlapConfig()
FAR = CostModel(8, 8, 32, 32, bandwidth=1e6, latency=0.0)  # bytes decide


@pytest.mark.parametrize("name", masks())
def test_tasks_are_what_counting_every_pair_gives(name):
    mask, query = masks()[name], random_placement(LENGTH, 3, 5)
    tasks = PlacedMask(mask, query, query).tasks
    dense = mask.to_dense()[0]
    assert all(tuple(x.shape) == (3, 3) for x in vars(tasks).values()), "nothing is kept by chunk"
    rank = query.owner().repeat_interleave(query.chunk_size)[:LENGTH]
    for r in range(3):
        for s in range(3):
            pairs = dense[rank == r][:, rank == s]
            assert tasks.areas[r, s] == pairs.sum()
            assert tasks.queries[r, s] == pairs.any(1).sum()
            assert tasks.keys[r, s] == pairs.any(0).sum()


def few_see_all(rows):
    """Rows see themselves, the last two all."""
    begin = torch.arange(rows)
    begin[-2:] = 0
    return IntervalMask.from_intervals(begin[None], torch.arange(1, rows + 1)[None], rows)


def test_queries_move_where_few_rows_need_many_keys_and_nowhere_else():
    placement = random_placement(64, 4, 4)
    last = int(placement.owner()[-1])
    moved = PlacedMask(few_see_all(64), placement, placement).moved_tasks(OVERLAP, FAR)
    assert moved.sum() == 3
    assert moved[last].sum() == 3
    causal = PlacedMask(masks()["causal"], *[random_placement(LENGTH, 4, 4)] * 2).tasks
    assert not choose_tasks(causal, CostModel(64, 1)).any(), "64 query heads on one key head"


def test_attention_that_binds_is_shared_by_moving_queries():
    placement = random_placement(64, 4, 4)
    placed = PlacedMask(few_see_all(64), placement, placement)
    cost = CostModel(64, 1, flops=1e6, latency=0.0)  # bytes cost nothing beside attention
    assert placed.moved_areas(OVERLAP, cost).max() < placed.areas.max()
    assert placed.moved_areas(OVERLAP, cost).sum() == placed.areas.sum()


def summaries(world, size, causal):
    """A window of 10, but for the last eight of every `size` rows, which see all, or all before them."""
    rows = torch.arange(world * size)
    sees_all = rows % size >= size - 8
    begin = torch.where(sees_all, 0, rows - 10).clamp(min=0)
    end = torch.where(sees_all & (not causal), world * size, rows + 1)
    placement = Placement.contiguous(world * size, size, world, 1)
    return PlacedMask(IntervalMask.from_intervals(begin[None], end[None], world * size), placement, placement)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("world", [16, 32, 64])
def test_queries_move_where_very_many_ranks_wait_equally(world, causal):
    placed, cost = summaries(world, 1000, causal), CostModel(32, 32, bandwidth=4e10)
    tasks = world * (world - 1)
    assert placed.moved_tasks(OVERLAP, cost).sum() == (tasks // 2 if causal else tasks)
    found = {p.mover: p.seconds for p in predict_movers(placed, OVERLAP, cost)}
    assert found["query_cast"] < found["group_cast"] / 25


def test_attention_that_binds_on_many_ranks_equally_is_shared():
    """Of 48 ranks 24 attend all keys, 24 their own: all of the 24 have to give away before any is faster."""
    world, size = 48, 16
    rows = torch.arange(world * size)
    sees_all = rows // size % 2 == 0
    begin = torch.where(sees_all, 0, rows // size * size)
    end = torch.where(sees_all, world * size, (rows // size + 1) * size)
    placement = Placement.contiguous(world * size, size, world, 1)
    mask = IntervalMask.from_intervals(begin[None], end[None], world * size)
    placed = PlacedMask(mask, placement, placement)
    areas = placed.moved_areas(OVERLAP, CostModel(64, 1, flops=1e6, latency=0.0))
    assert areas.sum() == placed.areas.sum()
    assert areas.max() < 0.9 * placed.areas.max()


def test_queries_move_where_attention_would_hide_keys_but_may_not():
    placed = summaries(4, 64, False)
    cost = CostModel(8, 8, 32, 32, flops=1e6, bandwidth=1e9, latency=0.0, overlap=1.0)
    hidden, bare = (placed.moved_tasks(OverlapConfig(enable=enable), cost) for enable in (True, False))
    assert not hidden.any()
    assert bare.all(1).logical_not().all()
    assert bare.sum() == 12


def test_bytes_of_moves_one_by_one_are_exactly_those_of_all_at_once():
    tasks, cost = summaries(8, 64, True).tasks, CostModel(8, 8, 32, 32, bandwidth=7e5, ranks_per_node=4)
    one_by_one, at_once = _Choice(tasks, cost), _Choice(tasks, cost)
    at_once.move_all_that_save()
    for task in at_once.moved.nonzero().flip(0).tolist():
        one_by_one.move(*task)
    assert torch.equal(one_by_one.traffic, at_once.traffic)
    assert torch.equal(one_by_one.area, at_once.area)
    assert one_by_one.seconds() == at_once.seconds() < _Choice(tasks, cost).seconds()
