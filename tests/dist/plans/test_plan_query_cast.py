"""The plan of a query cast: every pair once, rows where their peers expect them, bytes and times as predicted."""

from dataclasses import replace

import pytest
import torch
from planned import LENGTH, count_pairs, masks, random_placement

from cute_attn import IntervalMask
from cute_attn.dist import CostModel, OverlapConfig
from cute_attn.dist.placing.tasks import output_bytes
from cute_attn.dist.plans.placed import PlacedMask
from cute_attn.dist.plans.predict import choose_mover, predict_movers
from cute_attn.dist.plans.query_cast import plan_placed_query_cast
from cute_attn.dist.plans.timeline import timelines

WORLD = 3
OVERLAP = OverlapConfig(degree=2, min_chunk_size=8)
FAR = CostModel(8, 8, 32, 32, bandwidth=1e6, latency=0.0)
LATE = replace(FAR, latency=1e-4)


@pytest.mark.parametrize("share", [0.4, 1.0])
@pytest.mark.parametrize("name", masks())
def test_every_pair_is_attended_once_by_the_rank_of_its_queries_or_of_its_keys(name, share, monkeypatch):
    mask, query = masks()[name], random_placement(LENGTH, WORLD, 5)
    chance = torch.rand(WORLD, WORLD)
    moved = (chance < share) & ~torch.eye(WORLD, dtype=torch.bool)
    monkeypatch.setattr(PlacedMask, "moved_tasks", lambda placed, overlap, cost: moved)
    placed = PlacedMask(mask, query, query)
    plans = [plan_placed_query_cast(placed, rank, OVERLAP, FAR) for rank in range(WORLD)]
    parts, length = [], query.padded_length
    for rank, plan in enumerate(plans):
        rows = query.positions(rank)
        parts += [(stage.mask, rows, stage.key_positions) for stage in plan.cast.stages]
        if plan.visits is not None and plan.visits.mask is not None:
            came = []
            for peer, other in enumerate(plans):
                first = sum(other.visits.send_splits[:rank])
                count = other.visits.send_splits[rank]
                assert plan.visits.receive_splits[peer] == count
                came.append(query.positions(peer)[other.visits.send_index[first : first + count]])
            parts.append((plan.visits.mask, torch.cat(came), rows))
    seen = count_pairs(parts, length, length)[:LENGTH, :LENGTH]
    assert torch.equal(seen, mask.to_dense()[0].long())
    assert sum(plan.area for plan in plans) == mask.area()
    assert [plan.area for plan in plans] == placed.moved_areas(OVERLAP, FAR).tolist()


def few_see_all():
    """Rows see themselves, the last two all."""
    begin = torch.arange(LENGTH)
    begin[-2:] = 0
    mask = IntervalMask.from_intervals(begin[None], torch.arange(1, LENGTH + 1)[None], LENGTH)
    return PlacedMask(mask, *[random_placement(LENGTH, WORLD, 5)] * 2)


def test_bytes_are_those_of_the_plans_and_auto_takes_it_where_it_is_fastest():
    placed = few_see_all()
    found = {p.mover: p for p in predict_movers(placed, OVERLAP, FAR)}
    assert choose_mover(placed, OVERLAP, FAR) == "query_cast"
    assert found["query_cast"].seconds < found["group_cast"].seconds
    there, back = FAR.heads_q * FAR.head_dim * FAR.element_size, output_bytes(FAR)
    for rank in range(WORLD):
        plan = plan_placed_query_cast(placed, rank, OVERLAP, FAR)
        out, come = sum(plan.visits.send_splits), sum(plan.visits.receive_splits)
        keys = plan.cast.rows_sent * FAR.key_bytes, plan.cast.rows_received * FAR.key_bytes
        assert found["query_cast"].bytes_sent[rank] == keys[0] + out * there + come * back
        assert found["query_cast"].bytes_received[rank] == keys[1] + come * there + out * back


def test_every_exchange_of_visits_has_its_turn_in_timelines():
    placed = few_see_all()
    rank = int(placed.query.owner()[(LENGTH - 1) // 5])
    visits = plan_placed_query_cast(placed, rank, OVERLAP, LATE).visits
    forward, backward = timelines("query_cast", placed, rank, OVERLAP, LATE)
    for timeline, sizes in (
        (forward, (8 * 32 * 2, output_bytes(FAR))),
        (backward, (8 * 64 * 2, 2 * 8 * 4, 8 * 32 * 4)),
    ):
        events = [event for event in timeline.events if event.lane == "visits"]
        lasting = [event.end - event.begin for event in events]
        rows = max(sum(visits.send_splits), sum(visits.receive_splits))
        assert lasting == pytest.approx([LATE.send_seconds(rows * size) for size in sizes])
        assert timeline.seconds >= events[-1].end
