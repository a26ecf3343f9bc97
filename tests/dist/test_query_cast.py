"""The query cast on several ranks: the attention of one device, whichever queries move, and where they are worth it."""

import pickle
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.distributed as dist
from problems import Problem, check, config, documents, on_ranks, results, slices, small_masks, solve
from ranks import error_of, run_ranks

from cute_attn import IntervalMask
from cute_attn import mask as masks
from cute_attn.dist import (
    CostModel,
    calc_attn,
    clear_cache,
    compute_pad_size,
    dispatch,
    magi_attn_flex_key,
    undispatch,
)
from cute_attn.dist.plans.placed import PlacedMask


@pytest.fixture
def moved(monkeypatch):
    """Says of which pairs of ranks (with a generator's numbers) the queries move."""

    def of_share(share):
        def tasks(placed, overlap, cost):
            world = placed.world
            chance = torch.rand(world, world, generator=torch.Generator().manual_seed(world))
            return (chance < share) & ~torch.eye(world, dtype=torch.bool)

        monkeypatch.setattr(PlacedMask, "moved_tasks", tasks)

    return of_share


def cast(**overlap):
    return replace(config("group_cast", **overlap), mover="query_cast")


def some_see_all(rows, few):
    """A window, but for a few last rows that attend everything before them."""
    begin = torch.arange(rows) - 7
    begin[rows - few :] = 0
    return IntervalMask.from_intervals(begin.clamp(min=0)[None], torch.arange(1, rows + 1)[None], rows)


def test_queries_that_visit_give_what_one_device_gives(moved):
    moved(0.6)
    problems = {name: Problem(mask, sinks=1, softcap=3.0) for name, mask in small_masks().items()}
    run_ranks(4, solve, problems, cast())


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("world", [1, 2, 3, 5, 8])
def test_any_ranks_and_tasks_give_what_one_device_gives(moved, world, share):
    moved(share)
    problems = {name: Problem(mask, heads_q=6, heads_k=3, head_dim_v=4) for name, mask in small_masks().items()}
    run_ranks(world, solve, problems, cast())


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [{"enable": False}, {"degree": 1}, {"degree": 5, "min_chunk_size": 3}])
def test_any_stages_beside_visits_give_what_one_device_gives(moved, overlap):
    moved(0.5)
    problems = {"slices": Problem(slices(20, 150)), "documents": Problem(documents(31, 100, 19))}
    run_ranks(4, solve, problems, cast(**overlap))


def test_queries_visit_keys_of_another_source_too(moved):
    moved(0.5)
    run_ranks(3, _other_source, {"slices": Problem(slices(9, 60, 150))})


def _other_source(rank, problems):
    solve(rank, problems, cast(), is_same_source=False)


def test_two_runs_give_the_same_bits(moved):
    moved(0.7)
    run_ranks(3, _twice, Problem(masks.causal(70)))


def _twice(rank, problem):
    a, b = (on_ranks(problem, cast()) for _ in range(2))
    for name, x in a.items():
        assert x is None or torch.equal(x, b[name]), name


@pytest.mark.slow
def test_a_saved_key_and_a_graph_have_the_same_visits(moved):
    moved(0.7)
    run_ranks(2, _saved_and_compiled, Problem(masks.causal(42)), deadline=300.0)


def _saved_and_compiled(rank, problem):
    first = magi_attn_flex_key(problem.mask, None, None, 42, 42, 0, 4, dist.group.WORLD, cast())
    saved = pickle.dumps(first)
    clear_cache()
    key = pickle.loads(saved)
    compiled = torch.compile(calc_attn, fullgraph=True, backend="aot_eager")

    def attention(attend, q, k, v, sink):
        out, lse, most = attend(*(dispatch(x, key) for x in (q, k, v)), key, sink, return_max_logits=True)
        return undispatch(out, key), undispatch(lse.T, key).T, most

    for attend in (calc_attn, compiled):
        got = results(problem.inputs, problem.gradients, partial(attention, attend))
        check(str(attend), got, problem.wanted)
    assert key.manager.route(CostModel(8, 2, 8, 8, 8), torch.device("cpu")).queries is not None


FAR = CostModel(bandwidth=1e6, latency=0.0)  # bytes decide


def test_auto_moves_the_queries_of_few_rows_that_need_many_keys():
    run_ranks(4, _worth_it, Problem(some_see_all(256, 5), heads_q=2, heads_k=2))


def _worth_it(rank, problem):
    settings = replace(config("auto"), cost=FAR)
    on_ranks(problem, settings)
    rows = problem.mask.seqlen_q
    key = magi_attn_flex_key(
        problem.mask, None, None, rows, rows, compute_pad_size(rows, 4, 4), 4, dist.group.WORLD, settings
    )
    route = key.manager.route(CostModel(2, 2, 8, 8, 8), torch.device("cpu"))
    assert route.queries is not None
    solve(rank, {"auto": problem}, settings)


def test_a_rank_that_fails_at_its_visitors_leaves_nobody_waiting(moved):
    moved(1.0)
    errors = run_ranks(3, _fails, masks.causal(48), timeout=3)
    assert errors[1] == ("MemoryError", "of rank 1")
    for name, text in (errors[0], errors[2]):
        assert name == "RuntimeError"
        assert "an exchange with the other ranks of the process group failed or timed out" in text


def _fails(rank, mask):
    key = magi_attn_flex_key(mask, None, None, 48, 48, compute_pad_size(48, 3, 4), 4, dist.group.WORLD, cast())
    q, k, v = (torch.randn(16, heads, 8, dtype=torch.float64) for heads in (4, 2, 2))
    route = key.manager.route(CostModel(4, 2, 8, 8, 8), torch.device("cpu"))
    if rank == 1:

        def attend(*_):
            raise MemoryError("of rank 1")

        object.__setattr__(route.queries, "attend", attend)
    return error_of(calc_attn, q, k, v, key)
