"""Dispatch: equal chunks, balance within the limit, and few bytes."""

import pytest
import torch
from planned import LENGTH, masks, random_slices

from cute_attn.dist import (
    AutoDispatchAlg,
    ContiguousDispatchAlg,
    CostModel,
    DispatchConfig,
    LocalityDispatchAlg,
    MinHeapDispatchAlg,
    OverlapConfig,
    Placement,
    ZigzagDispatchAlg,
    place,
    plan_ring,
)
from cute_attn.dist.placing import solve
from cute_attn.dist.placing.placement import rank_areas
from cute_attn.dist.plans.placed import PlacedMask
from cute_attn.dist.plans.predict import predict_movers
from cute_attn.dist.workload import lognormal_documents
from cute_attn.mask import IntervalMask, builders, packed

ALGS = [MinHeapDispatchAlg(), ContiguousDispatchAlg(), ZigzagDispatchAlg(), LocalityDispatchAlg(), AutoDispatchAlg()]


def balance(mask, query):
    areas = rank_areas(mask, query)
    return float(areas.max() / areas.double().mean())


def rows_received(mask, query, key):
    cost = CostModel()
    for prediction in predict_movers(PlacedMask(mask, query, key), OverlapConfig(), cost):
        if prediction.mover == "group_cast":
            return int(prediction.bytes_received.sum()) // cost.key_bytes
    raise AssertionError("group_cast is always predicted")


@pytest.mark.parametrize("alg", ALGS, ids=lambda alg: type(alg).__name__)
@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("name", masks())
def test_placement_is_a_permutation_with_equally_many_chunks_a_rank(name, world, alg):
    query, key = place(masks()[name], world, 7, config=DispatchConfig(alg))
    assert key is query
    assert query.world == world
    assert query.padded_length - LENGTH < 7 * world
    assert torch.equal(query.order().sort().values, torch.arange(query.padded_length))
    assert torch.equal(query.order()[query.inverse()], torch.arange(query.padded_length))
    assert torch.equal(torch.cat([query.positions(r) for r in range(world)]), query.order())


@pytest.mark.parametrize("alg", ALGS, ids=lambda alg: type(alg).__name__)
def test_placement_is_the_same_every_time(alg):
    mask = lognormal_documents(1 << 14)
    a, b = (place(mask, 8, 128, config=DispatchConfig(alg))[0] for _ in range(2))
    assert torch.equal(a.chunks, b.chunks)


def test_contiguous_and_zigzag_are_what_their_names_say():
    mask = builders.causal(64)
    contiguous, _ = place(mask, 2, 8, config=DispatchConfig(ContiguousDispatchAlg()))
    assert contiguous.chunks.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    zigzag, _ = place(mask, 2, 8, config=DispatchConfig(ZigzagDispatchAlg()))
    assert zigzag.chunks.tolist() == [[0, 1, 6, 7], [2, 3, 4, 5]]
    odd, _ = place(builders.causal(48), 2, 8, config=DispatchConfig(ZigzagDispatchAlg()))
    assert odd.chunks.tolist() == [[0, 1, 5], [2, 3, 4]]


def test_min_heap_balances_causal_attention_perfectly():
    mask = builders.causal(1 << 12)
    query, _ = place(mask, 4, 64, config=DispatchConfig(MinHeapDispatchAlg()))
    assert balance(mask, query) <= 1.001


@pytest.mark.parametrize("epsilon", [0.02, 0.05, 0.3])
def test_locality_keeps_the_balance_it_is_given_and_spends_it_on_fewer_rows(epsilon):
    mask = lognormal_documents(1 << 16)
    query, key = place(mask, 8, 512, config=DispatchConfig(LocalityDispatchAlg(epsilon)))
    greedy, greedy_key = place(mask, 8, 512, config=DispatchConfig(MinHeapDispatchAlg()))
    assert balance(mask, query) <= 1 + epsilon
    assert 2 * rows_received(mask, query, key) <= rows_received(mask, greedy, greedy_key)


@pytest.mark.parametrize("chunk_size", [512, 1024])
def test_on_64_ranks_packed_documents_need_at_most_half_the_bytes_of_min_heap(chunk_size):
    mask = lognormal_documents(64 * 8192)
    query, key = place(mask, 64, chunk_size, config=DispatchConfig(LocalityDispatchAlg()))
    greedy, greedy_key = place(mask, 64, chunk_size, config=DispatchConfig(MinHeapDispatchAlg()))
    assert balance(mask, query) <= 1.05
    assert 2 * rows_received(mask, query, key) <= rows_received(mask, greedy, greedy_key)


def test_where_chunks_are_too_coarse_for_the_limit_locality_is_as_balanced_as_min_heap():
    mask = packed.causal_documents(640, cu_seqlens=[0, 512, 640])
    areas = [
        balance(mask, place(mask, 5, 64, config=DispatchConfig(alg))[0])
        for alg in (LocalityDispatchAlg(0.0), MinHeapDispatchAlg())
    ]
    assert 1.0 < areas[0] <= areas[1]


def test_masks_that_are_local_stay_where_they_are():
    mask = builders.sliding_window(1 << 13, left=63, right=0)
    for alg in (LocalityDispatchAlg(), AutoDispatchAlg()):
        query, key = place(mask, 8, 64, config=DispatchConfig(alg))
        assert rows_received(mask, query, key) == 7 * 63


def test_auto_is_never_predicted_slower_than_the_others():
    cost, overlap = CostModel(), OverlapConfig()
    for mask in (builders.causal(1 << 13), lognormal_documents(1 << 14), random_slices(1 << 12, 1 << 12)):
        seconds = []
        for alg in ALGS:
            placed = PlacedMask(mask, *place(mask, 4, 128, config=DispatchConfig(alg)))
            predictions = predict_movers(placed, overlap, cost)
            seconds += [p.seconds for p in predictions if p.mover == "group_cast"]
        assert seconds[-1] <= min(seconds)


def test_auto_is_not_slower_than_locality_where_rows_decide():
    mask, cost = lognormal_documents(32 << 14, seed=1), CostModel()
    auto, locality = (
        PlacedMask(mask, *place(mask, 32, 512, config=DispatchConfig(alg)))
        for alg in (AutoDispatchAlg(), LocalityDispatchAlg())
    )
    rows = [x.traffic(1).seconds(cost) for x in (auto, locality)]
    even = cost.compute_seconds(mask.area() / 32)
    assert rows[1] > even, "the problem is one of rows"
    times = [
        cost.total_seconds(cost.compute_seconds(int(x.areas.max())), x.traffic(1).seconds(cost))
        for x in (auto, locality)
    ]
    assert times[0] <= times[1]


@pytest.mark.parametrize(("flops", "tried"), [(6e13, 0), (None, 1)])
def test_auto_tries_to_save_rows_unless_even_area_is_nearly_reached(flops, tried, monkeypatch):
    calls = []

    def more_local(*arguments):
        calls.append(arguments)
        return search(*arguments)

    search = solve._more_local
    monkeypatch.setattr(solve, "_more_local", more_local)
    mask, cost = lognormal_documents(1 << 16), CostModel(flops=flops)
    query, key = place(mask, 16, 512, cost=cost)
    assert len(calls) == tried
    placed = PlacedMask(mask, query, key)
    seconds = cost.total_seconds(cost.compute_seconds(int(placed.areas.max())), placed.traffic(1).seconds(cost))
    assert (seconds < 1.1 * cost.compute_seconds(mask.area() / 16)) is not bool(tried)


def test_auto_leaves_area_uneven_where_it_hides_behind_the_traffic(monkeypatch):
    limits = []

    def local_search(areas, needs, owner, world, limit, *rest):
        area = torch.zeros(world, dtype=torch.int64).index_add_(0, owner, areas)
        limits.append((limit, int(area.max()), float(areas.sum()) / world))
        return search(areas, needs, owner, world, limit, *rest)

    search = solve.local_search
    monkeypatch.setattr(solve, "local_search", local_search)
    place(lognormal_documents(1 << 16), 16, 512, cost=CostModel(bandwidth=1e10))
    [(limit, area, even)] = limits
    assert limit == area > 1.05 * even


# ---------------------------------------------------------------- cross-attention, padding, groups


def test_keys_of_another_source_go_where_their_queries_are():
    mask = packed.documents(64, 128, cu_seqlens=[0, 16, 32, 48, 64], cu_seqlens_k=[0, 32, 64, 96, 128])
    shuffled = mask.permute_rows(torch.tensor([*range(48, 64), *range(16), *range(32, 48), *range(16, 32)]))
    query, key = place(shuffled, 4, 8, is_same_source=False, is_q_permutable=False)
    assert query.chunks.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert rows_received(shuffled, query, key) == 0
    query, key = place(shuffled, 4, 8, is_same_source=False, is_k_permutable=False)
    assert key.chunks.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert rows_received(shuffled, query, key) == 0
    query, key = place(shuffled, 4, 8, is_same_source=False)
    assert rows_received(shuffled, query, key) == 0


def test_keys_of_another_source_have_their_own_padding():
    query, key = place(random_slices(90, 210), 4, 8, is_same_source=False)
    assert (query.length, query.pad_size) == (90, 6)
    assert (key.length, key.pad_size) == (210, 14)
    assert key.chunks.shape == (4, 7)


def test_rows_that_may_not_move_are_contiguous():
    mask = lognormal_documents(1 << 12)
    query, _ = place(mask, 4, 64, is_q_permutable=False, is_k_permutable=False)
    assert torch.equal(query.order(), torch.arange(1 << 12))


def test_padding_rows_carry_the_last_valid_position():
    query = Placement.contiguous(10, 4, 2, 2)
    assert query.pad_size == 6
    assert query.positions(1).tolist() == [8, 9, 10, 11, 12, 13, 14, 15]
    assert query.position_ids(1).tolist() == [8, 9, 9, 9, 9, 9, 9, 9]
    assert Placement.contiguous(0, 4, 1, 1).position_ids(0).tolist() == [0, 0, 0, 0]


def test_more_padding_than_needed_makes_ranks_of_padding():
    query, _ = place(builders.causal(10), 4, 4, pad_size=22, config=DispatchConfig(ContiguousDispatchAlg()))
    assert query.padded_length == 32
    assert query.length == 10


def test_an_empty_sequence_still_gives_every_rank_a_chunk():
    query, _ = place(builders.causal(0), 2, 4)
    assert query.chunks.tolist() == [[0], [1]]


def test_ranks_that_exchange_heads_share_one_consecutive_part_of_their_groups_rows():
    mask = lognormal_documents(1 << 13)
    query, _ = place(mask, 8, 64, ulysses_size=4)
    for group in range(2):
        together = query.chunks[4 * group : 4 * group + 4].reshape(-1)
        assert torch.equal(together, together.sort().values)
    assert plan_ring(mask, query, query, 0, 4).key_index is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pad_size": 3}, "pad_size must be >= 0 and make 203 tokens a multiple of chunk_size"),
        ({"pad_size": -1}, "pad_size must be >= 0"),
        ({"world": 0}, "world must be >= 1, got 0"),
        ({"chunk_size": 0}, "chunk_size must be >= 1, got 0"),
        ({"ulysses_size": 3}, "ulysses_size must divide the world of 4, got 3"),
        ({"is_q_permutable": False}, "must be equal when queries and keys have the same source"),
        ({"mask": builders.causal(4, 8)}, "must be equally long, got 4 and 8"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        place(**({"mask": masks()["causal"], "world": 4, "chunk_size": 8} | arguments))


def test_a_placement_must_hold_every_chunk_once_in_ascending_order():
    for chunks, message in (
        [[[0, 0]], "every chunk once"],
        [[[1, 0]], "ascend"],
        [[[0, 1]], r"length must be in \[0, 8\]"],
    ):
        with pytest.raises(ValueError, match=message):
            Placement(9, 4, torch.tensor(chunks))


# ---------------------------------------------------------------- the search


@pytest.mark.slow
@pytest.mark.parametrize(("world", "chunks"), [(127, 3), (96, 7), (70, 24), (6, 53)])
def test_the_search_in_groups_and_blocks_keeps_every_promise(world, chunks):
    mask = lognormal_documents(world * chunks * 16, mean=300)
    query, key = place(mask, world, 16, config=DispatchConfig(LocalityDispatchAlg()))
    greedy, greedy_key = place(mask, world, 16, config=DispatchConfig(MinHeapDispatchAlg()))
    assert query.chunks.shape == (world, chunks)
    assert balance(mask, query) <= max(1.05, balance(mask, greedy))
    assert rows_received(mask, query, key) <= rows_received(mask, greedy, greedy_key)


def test_queries_are_placed_near_keys_that_stay():
    total = 1 << 14
    mask = lognormal_documents(total)
    shifted = mask.permute_rows((torch.arange(total) + total // 2) % total)
    query, key = place(
        shifted, 8, 128, config=DispatchConfig(LocalityDispatchAlg()), is_same_source=False, is_k_permutable=False
    )
    blind, _ = place(
        shifted, 8, 128, config=DispatchConfig(MinHeapDispatchAlg()), is_same_source=False, is_k_permutable=False
    )
    assert balance(shifted, query) <= 1.05
    assert 2 * rows_received(shifted, query, key) <= rows_received(shifted, blind, key)


def test_chunks_that_need_many_scattered_keys_are_placed_too():
    blocks = (torch.rand(64, 64) < 0.3).nonzero() * 64
    ranges = [torch.stack([x, x + 64], 1) for x in blocks.unbind(1)]
    mask = IntervalMask.from_slices(*ranges, None, 4096, 4096)
    assert mask.layers > 8
    query, key = place(mask, 4, 64, config=DispatchConfig(LocalityDispatchAlg()))
    assert balance(mask, query) <= 1.05
    assert rows_received(mask, query, key) <= 3 * 4096


# ---------------------------------------------------------------- the fastest


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "ranks_per_node"), [(0, 1), (0, 8), (1, 8)])
def test_auto_is_predicted_faster_than_a_fixed_limit_of_area_on_packed_documents(seed, ranks_per_node):
    mask, cost = lognormal_documents(64 * 8192, seed=seed), CostModel(ranks_per_node=ranks_per_node)
    seconds = []
    for alg in (LocalityDispatchAlg(), MinHeapDispatchAlg(), AutoDispatchAlg()):
        placed = PlacedMask(mask, *place(mask, 64, 1024, config=DispatchConfig(alg), cost=cost))
        predictions = predict_movers(placed, OverlapConfig(), cost)
        seconds.append(min(p.seconds for p in predictions if p.mover in ("group_cast", "node_cast")))
    assert seconds[2] < min(seconds[:2])


@pytest.mark.slow
@pytest.mark.parametrize(("world", "ranks_per_node", "chunks"), [(96, 8, 5), (130, 1, 3), (24, 4, 7), (256, 4, 2)])
def test_the_search_in_nodes_and_groups_places_every_chunk_once_and_again_the_same(world, ranks_per_node, chunks):
    cost = CostModel(ranks_per_node=ranks_per_node)
    mask = lognormal_documents(world * chunks * 16, mean=300)
    a, b = (place(mask, world, 16, cost=cost)[0] for _ in range(2))
    assert a.chunks.shape == (world, chunks)
    assert torch.equal(a.chunks, b.chunks)


def test_more_bandwidth_is_spent_on_better_balance():
    mask = lognormal_documents(64 * 8192)
    slow, fast = (place(mask, 64, 1024, cost=CostModel(bandwidth=x))[0] for x in (4e10, 4e12))
    assert balance(mask, fast) <= 1.02 < balance(mask, slow)


def test_nodes_must_divide_the_ranks():
    with pytest.raises(ValueError, match="ranks_per_node must divide the number of ranks, got 4 for 6 ranks"):
        place(builders.causal(64), 6, 4, cost=CostModel(ranks_per_node=4))


def test_ranks_that_exchange_heads_are_whole_parts_of_nodes():
    mask = lognormal_documents(1 << 14)
    for ulysses_size in (2, 4, 8):
        query, _ = place(mask, 16, 64, cost=CostModel(ranks_per_node=4), ulysses_size=ulysses_size)
        assert query.chunks.shape == (16, 16)
