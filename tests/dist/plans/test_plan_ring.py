"""The plan of the ring and of Ulysses: every attended pair once, rows travel no further than they are needed."""

import pytest
import torch
from planned import LENGTH, chain, count_pairs, masks, random_placement, random_slices

from cute_attn.dist import plan_ring, ulysses_heads

SIZES = [(1, 1), (4, 1), (4, 2), (4, 4), (6, 3), (8, 1)]


def plans_of(mask, query, key, ulysses_size):
    return [plan_ring(mask, query, key, rank, ulysses_size) for rank in range(query.world)]


def parts_of(plans):
    """Of one rank for each ring position: its ulysses ranks hold the same rows for other heads."""
    leaders = [p for p in plans if p.ulysses_rank == 0]
    return chain([(s.mask, p.query_positions, s.key_positions) for s in p.steps] for p in leaders)


@pytest.mark.parametrize(("world", "ulysses_size"), SIZES)
@pytest.mark.parametrize("name", masks())
def test_every_attended_pair_is_computed_exactly_once_for_each_head(name, world, ulysses_size):
    mask = masks()[name]
    place = random_placement(LENGTH, world, 6)
    plans = plans_of(mask, place, place, ulysses_size)
    assert torch.equal(count_pairs(parts_of(plans), LENGTH, LENGTH), mask.to_dense()[0].long())
    assert sum(plan.area for plan in plans) == mask.area() * ulysses_size


@pytest.mark.parametrize(("world", "ulysses_size"), SIZES)
def test_each_block_is_what_the_neighbour_sent_on(world, ulysses_size):
    place = random_placement(LENGTH, world, 6)
    plans = plans_of(random_slices(LENGTH, LENGTH), place, place, ulysses_size)
    assert len({len(plan.steps) for plan in plans}) == 1
    for plan in plans:
        after = plans[(plan.rank + ulysses_size) % world]
        for step, here in enumerate(plan.steps):
            assert after.steps[step].receive_rows == len(here.send_index)
            if step + 1 < len(plan.steps):
                assert torch.equal(after.steps[step + 1].key_positions, here.key_positions[here.send_index])
        assert len(plan.steps[-1].send_index) == plan.steps[-1].receive_rows == 0


@pytest.mark.parametrize("name", masks())
def test_rows_travel_to_the_last_rank_that_needs_them_and_no_further(name):
    mask, world = masks()[name], 5
    place = random_placement(LENGTH, world, 7)
    dense = mask.to_dense()[0]
    needed = torch.zeros(world, place.padded_length, dtype=torch.bool)
    for rank in range(world):
        rows = place.positions(rank)
        needed[rank, :LENGTH] = dense[rows[rows < LENGTH]].any(0)
    for plan in plans_of(mask, place, place, 1):
        for step in range(1, len(plan.steps)):
            owner = (plan.rank - step) % world
            own = place.positions(owner)
            later = [(owner + distance) % world for distance in range(step, world)]
            assert torch.equal(plan.steps[step].key_positions, own[needed[later][:, own].any(0)])


@pytest.mark.parametrize("ulysses_size", [1, 2])
@pytest.mark.parametrize("name", masks())
def test_gradients_come_home_once_from_where_the_journey_of_their_row_ends(name, ulysses_size):
    place = random_placement(LENGTH, 6, 7)
    plans = plans_of(masks()[name], place, place, ulysses_size)
    for plan in plans:
        own = plan.steps[0].key_positions
        assert torch.equal(torch.cat([s.home_index for s in plan.steps]).sort().values, torch.arange(len(own)))
        for number, step in enumerate(plan.steps):
            there = plans[(plan.rank + number * ulysses_size) % 6].steps[number]
            assert torch.equal(own[step.home_index], there.key_positions[there.end_index])


def test_ulysses_alone_is_one_step_over_all_keys_in_global_order():
    place = random_placement(LENGTH, 4, 6)
    for plan in plans_of(masks()["slices"], place, place, 4):
        (step,) = plan.steps
        assert torch.equal(step.key_positions, torch.arange(place.padded_length))
        assert torch.equal(plan.query_positions, place.order())
        assert torch.equal(place.order()[plan.key_index], step.key_positions)


def test_ring_and_cross_attention():
    mask = random_slices(90, 210)
    query, key = random_placement(90, 4, 8), random_placement(210, 4, 16)
    for ulysses_size in (1, 2, 4):
        plans = plans_of(mask, query, key, ulysses_size)
        assert torch.equal(count_pairs(parts_of(plans), 90, 210), mask.to_dense()[0].long())


@pytest.mark.parametrize(
    ("ulysses_size", "error", "message"),
    [
        (0, ValueError, "must be >= 1, got 0"),
        (3, ValueError, "must divide the world of 4, got 3"),
        (8, ValueError, "must divide the world of 4, got 8"),
        (True, TypeError, "must be an int, got True"),
    ],
)
def test_a_ulysses_size_that_does_not_divide_the_world_is_refused(ulysses_size, error, message):
    place = random_placement(LENGTH, 4, 8)
    with pytest.raises(error, match=f"ulysses_size {message}"):
        plan_ring(masks()["causal"], place, place, 0, ulysses_size)


@pytest.mark.parametrize(("heads_q", "heads_k"), [(8, 8), (8, 2), (8, 1), (6, 3), (12, 4), (24, 8)])
def test_after_the_exchange_every_query_head_meets_its_own_key_head(heads_q, heads_k):
    for size in (n for n in range(1, heads_q + 1) if heads_q % n == 0):
        heads = ulysses_heads(heads_q, heads_k, size)
        assert heads.query % heads.key == 0
        assert heads.key_heads.shape == (size, heads.key)
        for rank in range(size):
            for head in range(heads.query):
                used = heads.key_heads[rank, head // (heads.query // heads.key)]
                assert int(used) == (rank * heads.query + head) // (heads_q // heads_k)


def test_key_heads_are_copied_only_where_they_are_fewer_than_ranks():
    assert ulysses_heads(8, 4, 2).key_heads.tolist() == [[0, 1], [2, 3]]
    assert ulysses_heads(8, 2, 4).key_heads.tolist() == [[0], [0], [1], [1]]
    with pytest.raises(ValueError, match="heads_q = 6 and a group of 4; group sizes that work: 1, 2, 3, 6"):
        ulysses_heads(6, 2, 4)
