"""The plan of a node cast: a row crosses once to each node that needs it, and reaches every rank that does."""

import pytest
import torch
from planned import LENGTH, chain, count_pairs, masks, random_placement

from cute_attn.dist import AttnOverlapMode, CostModel, OverlapAlgType, OverlapConfig
from cute_attn.dist.plans.node_cast import plan_placed_node_cast
from cute_attn.dist.plans.placed import PlacedMask
from cute_attn.dist.plans.predict import choose_mover, predict_movers

OVERLAPS = {
    "off": OverlapConfig(enable=False),
    "three": OverlapConfig(degree=3, min_chunk_size=5),
    "greedy": OverlapConfig(degree=4, min_chunk_size=3, alg=OverlapAlgType.GREEDY),
    "dynamic": OverlapConfig(mode=AttnOverlapMode.DYNAMIC, degree=None, min_chunk_size=2),
}


def cost_of(node_size, **numbers):
    return CostModel(8, 2, ranks_per_node=node_size, **({"bandwidth": 1e6, "latency": 1e-5} | numbers))


def plans_of(mask, place, node_size, overlap):
    placed = PlacedMask(mask, place, place)
    return [plan_placed_node_cast(placed, rank, overlap, cost_of(node_size)) for rank in range(place.world)]


def exchanged(parts, exchanges):
    """What every rank receives where rank r sends rows of `parts[r]` as `exchanges[r]` says."""
    sent = [x[e.send_index].split(e.send_splits) for x, e in zip(parts, exchanges, strict=True)]
    for rank, e in enumerate(exchanges):
        assert [len(rows[rank]) for rows in sent] == e.receive_splits
    return [torch.cat([rows[rank] for rows in sent]) for rank in range(len(parts))]


@pytest.mark.parametrize("overlap", OVERLAPS.values(), ids=OVERLAPS)
@pytest.mark.parametrize(("world", "node_size"), [(4, 2), (6, 3), (8, 4), (4, 4)])
@pytest.mark.parametrize("name", masks())
def test_every_rank_gets_the_keys_its_stages_name_and_every_pair_is_attended_once(name, world, node_size, overlap):
    mask, place = masks()[name], random_placement(LENGTH, world, 5)
    plans = plans_of(mask, place, node_size, overlap)
    own = [place.positions(rank) for rank in range(world)]
    crossings = []
    for stages in zip(*[plan.stages for plan in plans], strict=True):
        assert len({(stage.communicates, stage.across is None) for stage in stages}) == 1
        crossed = [x[:0] for x in own]
        if stages[0].across is not None:
            assert stages[0].communicates
            crossed = exchanged(own, [stage.across for stage in stages])
        crossings += [(rank // node_size, row) for rank, rows in enumerate(crossed) for row in rows.tolist()]
        received = exchanged([torch.cat(both) for both in zip(own, crossed, strict=True)], stages)
        for rank, stage in enumerate(stages):
            keys = torch.cat([own[rank][: len(own[rank]) if stage.includes_local else 0], received[rank]])
            assert torch.equal(keys if stage.key_index is None else keys[stage.key_index], stage.key_positions)
            peers = [peer for peer, count in enumerate(stage.send_splits) if count]
            assert all(peer // node_size == rank // node_size for peer in peers)
    assert len(crossings) == len(set(crossings)), "a row crosses to a node once, whatever the stages"
    parts = chain([(s.mask, p.query.positions(p.rank), s.key_positions) for s in p.stages] for p in plans)
    assert torch.equal(count_pairs(parts, LENGTH, LENGTH), mask.to_dense()[0].long())


@pytest.mark.parametrize("name", masks())
def test_predicted_bytes_are_those_of_the_plans(name):
    mask, place, cost = masks()[name], random_placement(LENGTH, 8, 5), cost_of(4)
    overlap = OverlapConfig()
    (found,) = (p for p in predict_movers(PlacedMask(mask, place, place), overlap, cost) if p.mover == "node_cast")
    plans = plans_of(mask, place, 4, overlap)
    assert found.bytes_sent.tolist() == [plan.rows_sent * cost.key_bytes for plan in plans]
    assert found.bytes_received.tolist() == [plan.rows_received * cost.key_bytes for plan in plans]
    assert found.steps == 2 * sum(stage.communicates for stage in plans[0].stages)


def test_it_is_chosen_where_ranks_of_a_node_need_the_same_rows_over_a_slow_network():
    placed = PlacedMask(masks()["full"], *[random_placement(LENGTH, 8, 5)] * 2)
    chosen = [
        choose_mover(placed, OverlapConfig(), cost) == "node_cast"
        for cost in (cost_of(4), cost_of(4, bandwidth=1e12, node_bandwidth=1e6), cost_of(1))
    ]
    assert chosen == [True, False, False]
