"""What placements make ranks send: the same numbers as counted row by row."""

import pytest
import torch
from planned import LENGTH, masks, random_placement

from cute_attn.dist import CostModel
from cute_attn.dist.placing.needs import rows_within
from cute_attn.dist.plans.placed import PlacedMask


def wanted_rows(mask, place):
    """bool `(world, positions)`: the rows that each rank needs and does not hold; and the owner of each position."""
    owner = place.owner().repeat_interleave(place.chunk_size)
    wanted = torch.zeros(place.world, place.padded_length, dtype=torch.bool)
    dense = mask.to_dense()[0]
    for rank in range(place.world):
        positions = place.positions(rank)
        wanted[rank, :LENGTH] = dense[positions[positions < LENGTH]].any(0)
        wanted[rank, positions] = False
    return wanted, owner


@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize("node_size", [1, 2, 8])
def test_rows_of_a_group_cast_are_told_apart_by_where_they_come_from(name, node_size):
    mask, place = masks()[name], random_placement(LENGTH, 8, 4)
    traffic = PlacedMask(mask, place, place).traffic(node_size)
    wanted, owner = wanted_rows(mask, place)
    is_inside = torch.arange(8)[:, None] // node_size == owner // node_size
    for rows, sent, received in (
        (wanted & is_inside, traffic.inside_sent, traffic.inside_received),
        (wanted & ~is_inside, traffic.across_sent, traffic.across_received),
    ):
        assert received.tolist() == rows.sum(1).tolist()
        assert sent.tolist() == [int(rows[:, owner == rank].sum()) for rank in range(8)]


@pytest.mark.parametrize("name", masks())
def test_relayed_rows_cross_once_to_each_node_that_needs_them(name):
    mask, place = masks()[name], random_placement(LENGTH, 8, 4)
    traffic = PlacedMask(mask, place, place).traffic(4, relayed=True)
    wanted, owner = wanted_rows(mask, place)
    crossing = [wanted[4 * node : 4 * node + 4].any(0) & (owner // 4 != node) for node in range(2)]
    assert traffic.across_sent.tolist() == [int(crossing[1 - r // 4][owner == r].sum()) for r in range(8)]
    for node, rows in enumerate(crossing):
        received = traffic.across_received[4 * node : 4 * node + 4]
        assert int(received.sum()) == int(rows.sum())
        assert int(received.max() - received.min()) <= 1
    assert int(traffic.inside_sent.sum()) == int(traffic.inside_received.sum())
    # Every wanted row is handed on once, but those that its rank relays to itself.
    relayed_to_itself = int(wanted.sum()) - int(traffic.inside_received.sum())
    assert 0 <= relayed_to_itself <= int(sum(rows.sum() for rows in crossing))


def test_rows_within_are_counted_where_spans_overlap():
    begin, end = torch.tensor([5, 0, 3]), torch.tensor([9, 4, 6])
    lo, hi = torch.tensor([0, 4, 8, 2]), torch.tensor([4, 8, 12, 2])
    assert rows_within((begin, end), lo, hi).tolist() == [5, 5, 1, 0]


def test_both_networks_work_at_once_but_what_is_handed_on_waits():
    mask, place = masks()["full"], random_placement(LENGTH, 4, 4)
    placed = PlacedMask(mask, place, place)
    cost = CostModel(1, 1, 1, 1, 1, bandwidth=1.0, latency=0.0, ranks_per_node=2, node_bandwidth=1.0)
    direct, relayed = placed.traffic(2), placed.traffic(2, relayed=True)
    rows = place.rows_per_rank  # 2 bytes a row
    assert direct.seconds(cost) == pytest.approx(2 * 2 * rows, rel=0.2)
    assert relayed.seconds(cost) == pytest.approx(2 * (rows + 2 * rows), rel=0.2)


def test_nodes_must_divide_the_ranks():
    assert CostModel(ranks_per_node=8).node_size(4) == 4
    with pytest.raises(ValueError, match="ranks_per_node must divide the number of ranks, got 8 for 12 ranks"):
        CostModel(ranks_per_node=8).node_size(12)
