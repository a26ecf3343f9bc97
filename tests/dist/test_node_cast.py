"""The node cast on several ranks: the attention of one device, the same bits every time, and rows that cross once."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from problems import Problem, config, documents, on_ranks, slices, small_masks, solve
from ranks import error_of, run_ranks

from cute_attn import mask as masks
from cute_attn.dist import CostModel, compute_pad_size, magi_attn_flex_key
from cute_attn.dist.movers import group_cast as cast_module


def of_nodes(node_size, mover="node_cast", **overlap):
    return replace(config("group_cast", **overlap), mover=mover, cost=CostModel(ranks_per_node=node_size))


@pytest.mark.slow
def test_ranks_in_nodes_give_what_one_device_gives():
    problems = {name: Problem(mask, sinks=1) for name, mask in small_masks().items()}
    run_ranks(4, solve, problems, of_nodes(2))


@pytest.mark.slow
@pytest.mark.parametrize(("world", "node_size"), [(1, 8), (2, 8), (3, 3), (6, 2), (6, 3), (8, 2), (8, 4), (8, 8)])
def test_any_nodes_give_what_one_device_gives(world, node_size):
    problems = {name: Problem(mask, heads_q=6, heads_k=3) for name, mask in small_masks().items()}
    run_ranks(world, solve, problems, of_nodes(node_size))


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [{"enable": False}, {"degree": 1}, {"degree": 5, "min_chunk_size": 3}])
def test_any_stages_give_what_one_device_gives(overlap):
    problems = {"slices": Problem(slices(20, 150)), "documents": Problem(documents(31, 100, 19))}
    run_ranks(4, solve, problems, of_nodes(2, **overlap))


def test_keys_of_another_source_cross_too():
    run_ranks(4, _other_source, {"slices": Problem(slices(9, 60, 150))})


def _other_source(rank, problems):
    solve(rank, problems, of_nodes(2), is_same_source=False)


def test_two_runs_give_the_same_bits_and_auto_takes_it_where_nodes_are_far_apart():
    run_ranks(4, _twice, Problem(masks.causal(150)))


def _twice(rank, problem):
    slow = replace(of_nodes(2, "auto"), cost=CostModel(ranks_per_node=2, bandwidth=1e3, latency=0.0))
    a, b = (on_ranks(problem, settings) for settings in (of_nodes(2), slow))
    for name, x in a.items():
        assert x is None or torch.equal(x, b[name]), name
    key = magi_attn_flex_key(problem.mask, None, None, 150, 150, compute_pad_size(150, 4, 4), 4, dist.group.WORLD, slow)
    shape = CostModel(problem.heads_q, problem.heads_k, 8, 8, 8)
    route = key.manager.route(shape, torch.device("cpu"))
    assert any(stage.across is not None for stage in route.mover._stages)


def test_sums_of_gradients_cross_as_often_as_rows():
    run_ranks(4, _bytes, Problem(masks.causal(150)))


def _bytes(rank, problem):
    """Rows that go to another node, forward and back: K and V twice, and once their gradients, summed in the node."""
    sent, send_rows = [], cast_module.send_rows

    def counting(rows, send_splits, receive_splits, group):
        sent.append(sum(n for peer, n in enumerate(send_splits) if peer // 2 != rank // 2))
        return send_rows(rows, send_splits, receive_splits, group)

    cast_module.send_rows = counting
    on_ranks(problem, of_nodes(2))
    crossing = torch.tensor([sum(sent)])
    dist.all_reduce(crossing)
    key = magi_attn_flex_key(
        problem.mask, None, None, 150, 150, compute_pad_size(150, 4, 4), 4, dist.group.WORLD, of_nodes(2)
    )
    traffic = key.manager.placed.traffic(2, relayed=True)
    assert int(crossing) == 3 * int(traffic.across_sent.sum()) > 0


def test_nodes_that_do_not_divide_the_ranks_are_refused_by_all():
    for error in run_ranks(3, _uneven):
        assert error == ("ValueError", "CostModel: ranks_per_node must divide the number of ranks, got 2 for 3 ranks")


def _uneven(rank):
    return error_of(magi_attn_flex_key, masks.causal(24), None, None, 24, 24, 0, 4, dist.group.WORLD, of_nodes(2))
