"""The plan of a group cast: every attended pair once, every needed row sent once."""

import pytest
import torch
from planned import LENGTH, chain, count_pairs, masks, random_placement, random_slices

from cute_attn.dist import AttnOverlapMode, CostModel, OverlapAlgType, OverlapConfig, Placement, plan_group_cast
from cute_attn.mask import builders

OVERLAPS = {
    "off": OverlapConfig(enable=False),
    "one": OverlapConfig(),
    "three": OverlapConfig(degree=3, min_chunk_size=5),
    "greedy": OverlapConfig(degree=4, min_chunk_size=3, alg=OverlapAlgType.GREEDY),
    "dynamic": OverlapConfig(mode=AttnOverlapMode.DYNAMIC, degree=None, min_chunk_size=2),
}
SLOW_NETWORK = CostModel(bandwidth=1e6, latency=1e-5)  # small masks are worth several stages only here


def plans_of(mask, query, key, overlap=None):
    return [plan_group_cast(mask, query, key, rank, overlap, SLOW_NETWORK) for rank in range(query.world)]


def parts_of(plans):
    return chain([(s.mask, p.query.positions(p.rank), s.key_positions) for s in p.stages] for p in plans)


@pytest.mark.parametrize("overlap", OVERLAPS.values(), ids=OVERLAPS)
@pytest.mark.parametrize(("world", "chunk_size"), [(1, 16), (3, 8), (8, 4)])
@pytest.mark.parametrize("name", masks())
def test_every_attended_pair_is_computed_exactly_once_over_ranks_and_stages(name, world, chunk_size, overlap):
    mask = masks()[name]
    place = random_placement(LENGTH, world, chunk_size)
    plans = plans_of(mask, place, place, overlap)
    assert torch.equal(count_pairs(parts_of(plans), LENGTH, LENGTH), mask.to_dense()[0].long())
    assert sum(plan.area for plan in plans) == mask.area()


@pytest.mark.parametrize("name", masks())
def test_rows_sent_equal_the_lower_bound_of_the_placement(name):
    mask = masks()[name]
    place = random_placement(LENGTH, 4, 8)
    dense = mask.to_dense()[0]
    for plan in plans_of(mask, place, place, OVERLAPS["three"]):
        mine = place.positions(plan.rank)
        rows = mine[mine < LENGTH]
        needed = dense[rows].any(0)
        needed[rows] = False
        assert plan.rows_received == int(needed.sum())
        got = [s.key_positions for s in plan.stages if not s.includes_local]
        assert torch.equal(torch.cat([*got, torch.empty(0, dtype=torch.int64)]), needed.nonzero().squeeze(1))


@pytest.mark.parametrize("overlap", OVERLAPS.values(), ids=OVERLAPS)
def test_what_one_rank_sends_is_what_the_other_expects(overlap):
    place = random_placement(LENGTH, 5, 6)
    plans = plans_of(random_slices(LENGTH, LENGTH), place, place, overlap)
    assert len({len(plan.stages) for plan in plans}) == 1
    for stages in zip(*[plan.stages for plan in plans], strict=True):
        sent = torch.tensor([s.send_splits for s in stages])
        assert torch.equal(sent, torch.tensor([s.receive_splits for s in stages]).T)
        assert not sent.diagonal().any()
        assert {s.communicates for s in stages} == {bool(sent.any())}
        for s in stages:
            assert all(len(x.unique()) == len(x) for x in s.send_index.split(s.send_splits))


@pytest.mark.parametrize("overlap", [OVERLAPS["off"], OVERLAPS["three"]], ids=["off", "three"])
def test_cast_delivers_the_keys_it_names_and_reduce_is_its_adjoint(overlap):
    world = 4
    place = random_placement(LENGTH, world, 7)
    plans = plans_of(random_slices(LENGTH, LENGTH), place, place, overlap)
    x = torch.randn(place.padded_length, dtype=torch.float64)
    local = [x[place.positions(rank)] for rank in range(world)]
    forward = backward = torch.zeros((), dtype=torch.float64)
    for stages in zip(*[plan.stages for plan in plans], strict=True):
        returned = []
        for rank, stage in enumerate(stages):
            received = [local[r][s.send_index].split(s.send_splits)[rank] for r, s in enumerate(stages)]
            buffer = torch.cat([*([local[rank]] if stage.includes_local else []), *received])
            keys = buffer if stage.key_index is None else buffer[stage.key_index]
            assert torch.equal(keys, x[stage.key_positions])
            gradient = torch.randn_like(keys)
            forward = forward + keys @ gradient
            in_buffer = gradient.clone()
            if stage.key_index is not None:
                in_buffer[stage.key_index] = gradient
            own = len(local[rank]) if stage.includes_local else 0
            backward = backward + in_buffer[:own] @ buffer[:own]
            returned.append(in_buffer[own:].split(stage.receive_splits))
        for rank, stage in enumerate(stages):
            dx = torch.zeros_like(local[rank]).index_add(
                0, stage.send_index, torch.cat([returned[peer][rank] for peer in range(world)])
            )
            backward = backward + dx @ local[rank]
    assert abs(forward - backward) <= 1e-11 * abs(forward)


def test_own_keys_are_attended_first_and_need_no_gathering():
    place = random_placement(LENGTH, 4, 8)
    for plan in plans_of(masks()["causal"], place, place):
        first, second = plan.stages
        assert first.includes_local
        assert first.key_index is None
        assert not first.communicates
        assert torch.equal(first.key_positions, place.positions(plan.rank))
        assert not second.includes_local
        assert second.communicates


def test_stages_are_cut_at_multiples_of_the_chunk_and_have_about_equal_rows():
    place = random_placement(1024, 4, 32)
    overlap = OverlapConfig(degree=4, min_chunk_size=16)
    for plan in plans_of(masks(1024)["full"], place, place, overlap):
        assert [sum(s.receive_splits) for s in plan.stages] == [0, 192, 192, 192, 192]
    few = OverlapConfig(degree=4, min_chunk_size=1, max_num_chunks=2)
    assert len(plans_of(masks(1024)["full"], place, place, few)[0].stages) == 3


def test_greedy_stages_grow_where_computing_a_row_takes_longer_than_sending_it():
    place = random_placement(1024, 2, 32)
    overlap = OverlapConfig(degree=3, min_chunk_size=1, max_num_chunks=512, alg=OverlapAlgType.GREEDY)
    for bandwidth, grows in ((1e15, True), (1.0, False)):
        plan = plan_group_cast(masks(1024)["full"], place, place, 0, overlap, CostModel(bandwidth=bandwidth))
        rows = [sum(s.receive_splits) for s in plan.stages[1:]]
        assert sum(rows) == 512
        assert (rows == sorted(rows)) is grows
        assert rows[0] != rows[2]


def test_dynamic_overlap_takes_one_stage_where_latency_rules_and_more_where_traffic_does():
    place = random_placement(1024, 4, 32)
    overlap = OverlapConfig(mode=AttnOverlapMode.DYNAMIC, degree=None, min_chunk_size=1)
    counts = [
        len(plan_group_cast(masks(1024)["full"], place, place, 0, overlap, cost).stages) - 1
        for cost in (CostModel(latency=1.0), CostModel(latency=0.0, flops=1e12, bandwidth=1e9))
    ]
    assert counts[0] == 1
    assert counts[1] > 1


def test_a_rank_with_nothing_but_padding_has_empty_masks_and_keeps_the_number_of_stages():
    mask = builders.full(3)
    place = Placement.contiguous(3, 2, 8, 1)
    plans = plans_of(mask, place, place)
    assert [plan.area for plan in plans] == [6, 3, 0, 0, 0, 0, 0, 0]
    assert {len(plan.stages) for plan in plans} == {2}
    assert torch.equal(count_pairs(parts_of(plans), 3, 3), torch.ones(3, 3, dtype=torch.int64))


@pytest.mark.parametrize("overlap", [OVERLAPS["off"], OVERLAPS["three"]], ids=["off", "three"])
def test_cross_attention_uses_the_placement_of_its_keys(overlap):
    mask = random_slices(90, 210)
    query, key = random_placement(90, 3, 8), random_placement(210, 3, 16)
    plans = plans_of(mask, query, key, overlap)
    assert torch.equal(count_pairs(parts_of(plans), 90, 210), mask.to_dense()[0].long())
    assert all(plan.stages[0].mask.seqlen_q == query.rows_per_rank for plan in plans)


def test_the_same_plan_comes_out_every_time():
    mask, place = masks()["slices"], random_placement(LENGTH, 4, 8)
    for a, b in zip(*[plan_group_cast(mask, place, place, 2, OVERLAPS["three"]).stages for _ in range(2)], strict=True):
        assert torch.equal(a.send_index, b.send_index)
        assert torch.equal(a.key_positions, b.key_positions)
        assert a.receive_splits == b.receive_splits
        assert a.mask.equals(b.mask)


def test_arguments_that_do_not_fit_are_refused():
    mask, place = masks()["causal"], random_placement(LENGTH, 4, 8)
    with pytest.raises(ValueError, match="rank must be below 4, got 4"):
        plan_group_cast(mask, place, place, 4)
    with pytest.raises(ValueError, match="does not fit placements of 203 and 100"):
        plan_group_cast(mask, place, random_placement(100, 4, 8), 0)
    with pytest.raises(ValueError, match="equally many ranks, got 4 and 2"):
        plan_group_cast(mask, place, random_placement(LENGTH, 2, 8), 0)
    twice = type(mask)(mask.lo.expand(2, -1, -1), mask.hi.expand(2, -1, -1), LENGTH)
    with pytest.raises(ValueError, match="batch 1"):
        plan_group_cast(twice, place, place, 0)
