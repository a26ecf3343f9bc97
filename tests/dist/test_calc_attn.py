"""calc_attn: on any number of ranks, by any mover, the attention of one device, forward and backward."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from oracle import assert_close
from problems import EXACT, Problem, config, documents, slices, small_masks, solve
from ranks import run_ranks
from torch.distributed.device_mesh import init_device_mesh

from cute_attn import IntervalMask
from cute_attn import mask as masks
from cute_attn.dist import (
    CostModel,
    DistAttnConfig,
    calc_attn,
    compute_pad_size,
    dispatch,
    magi_attn_flex_key,
    undispatch,
)
from cute_attn.dist.movers.group_cast import GroupCast
from cute_attn.dist.plans.predict import choose_mover

MOVERS = ("group_cast", "ring", "ulysses")


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("mover", MOVERS)
def test_ranks_give_what_one_device_gives(mover, world):
    problems = {name: Problem(mask) for name, mask in small_masks().items()}
    run_ranks(world, solve, problems, config(mover))


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 3, 8])
@pytest.mark.parametrize("mover", MOVERS)
def test_one_odd_and_many_ranks_give_what_one_device_gives(mover, world):
    problems = {name: Problem(mask, heads_q=24, heads_k=3) for name, mask in small_masks().items()}
    run_ranks(world, solve, problems, config(mover))


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("mover", MOVERS)
def test_documents_of_awkward_lengths(mover, world):
    mask = documents(137, 2041, 89)
    problem = Problem(mask, heads_q=3 if world == 3 else 8, heads_k=1)
    run_ranks(world, solve, {"documents": problem}, config(mover, min_chunk_size=64), deadline=240)


@pytest.mark.parametrize("mover", MOVERS)
def test_one_key_head_for_many_ranks(mover):
    run_ranks(4, solve, {"causal": Problem(masks.causal(61), heads_q=4, heads_k=1)}, config(mover))


@pytest.mark.parametrize("mover", MOVERS)
def test_key_heads_that_the_ranks_do_not_divide(mover):
    run_ranks(4, solve, {"documents": Problem(documents(31, 40), heads_q=12, heads_k=3)}, config(mover))


@pytest.mark.parametrize("mover", MOVERS)
def test_sinks_count_once(mover):
    problems = {
        "causal": Problem(masks.causal(53), sinks=3),
        "rows without keys": Problem(IntervalMask.from_slices([[5, 11]], [[0, 30]], "full", 50, 50), sinks=1),
    }
    run_ranks(3 if mover != "ulysses" else 4, solve, problems, config(mover))


@pytest.mark.parametrize("mover", MOVERS)
def test_sinks_of_one_dimension_and_of_any_floating_dtype(mover):
    run_ranks(2, _free_sinks, Problem(documents(20, 33), sinks=1), mover)


def _free_sinks(rank, problem, mover):
    pad_size = compute_pad_size(53, 2, 4)
    key = magi_attn_flex_key(problem.mask, None, None, 53, 53, pad_size, 4, dist.group.WORLD, config(mover))
    q, k, v = (dispatch(x, key) for x in problem.inputs[:3])
    dout = dispatch(problem.gradients[0], key)

    def attended(sink):
        sink = sink.clone().requires_grad_()
        out, lse = calc_attn(q, k, v, key, sink)
        return out, lse, torch.autograd.grad(out, sink, dout)[0]

    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        sink = problem.inputs[3].to(dtype)
        wanted = attended(sink.double())
        for got in (attended(sink), attended(sink[0])):
            assert torch.equal(got[0], wanted[0])
            assert torch.equal(got[1], wanted[1])
            assert got[2].dtype == dtype
            assert torch.equal(got[2].view(1, -1), wanted[2].to(dtype)), "rounded once"
    calc_attn(q, k, v, key, softcap=10**30)  # an int that no int64 holds


@pytest.mark.parametrize("mover", MOVERS)
def test_values_of_another_width_softcap_and_scale(mover):
    problems = {
        "narrow values": Problem(documents(40, 21), head_dim=16, head_dim_v=4, softcap=1.5),
        "wide values": Problem(documents(40, 21), head_dim=4, head_dim_v=12, softmax_scale=-0.7),
    }
    run_ranks(2, solve, problems, config(mover))


@pytest.mark.parametrize("mover", ["group_cast", "ring"])
def test_without_overlap_or_with_many_stages(mover):
    problems = {"causal": Problem(masks.causal(90))}
    run_ranks(3, solve, problems, config(mover, enable=False))
    run_ranks(3, solve, problems, config(mover, degree=7, min_chunk_size=3))


def test_the_default_configuration():
    run_ranks(2, solve, {"documents": Problem(documents(60, 13, 44))}, DistAttnConfig())


@pytest.mark.parametrize("mover", MOVERS)
def test_cross_attention_has_two_placements(mover):
    problems = {
        "more queries": Problem(slices(6, 90, 47)),
        "more keys": Problem(slices(6, 33, 101, seed=1), sinks=2),
    }
    run_ranks(2, _cross_attention, problems, config(mover))


def _cross_attention(rank, problems, settings):
    for q_moves, k_moves in ((True, True), (True, False), (False, True), (False, False)):
        solve(rank, problems, settings, is_same_source=False, is_q_permutable=q_moves, is_k_permutable=k_moves)


@pytest.mark.parametrize("mover", MOVERS)
def test_sequences_shorter_than_the_ranks_and_sides_without_tokens(mover):
    none = IntervalMask.from_slices([], [], None, 10, 0)
    run_ranks(4, _tiny, {"one": Problem(masks.causal(1)), "five": Problem(masks.causal(5), sinks=1)}, none, mover)


def _tiny(rank, problems, without_keys, mover):
    solve(rank, problems, config(mover))
    solve(rank, {"no keys": Problem(without_keys, sinks=1)}, config(mover), is_same_source=False)
    key = magi_attn_flex_key([], [], None, 0, 0, 0, 4, dist.group.WORLD, config(mover))
    nothing = dispatch(torch.zeros(0, 8, 8), key)
    out, lse = calc_attn(nothing, nothing, nothing, key)
    assert undispatch(out, key).shape == (0, 8, 8)
    assert lse.shape == (8, 0)


def test_a_group_of_some_ranks():
    run_ranks(3, _outer_two, {"causal": Problem(masks.causal(33), sinks=1)})


def _outer_two(rank, problems):
    group = dist.new_group([0, 2])
    if rank != 1:
        for mover in MOVERS:
            solve(rank, problems, config(mover), lambda: group)
    else:
        with pytest.raises(TypeError, match="of which this process is a member"):
            magi_attn_flex_key([[0, 8]], [[0, 8]], "full", 8, 8, 0, 4, group)


@pytest.mark.slow
@pytest.mark.parametrize(("world", "heads_q"), [(2, 8), (3, 8)])
def test_auto_takes_the_mover_predicted_to_be_fastest_of_those_the_heads_allow(world, heads_q):
    run_ranks(world, _auto, {name: Problem(m, heads_q) for name, m in small_masks().items() if name != "nothing"})


def _auto(rank, problems):
    problem = problems["slices"]
    solve(rank, problems, config("auto"))
    rows = problem.mask.seqlen_q
    pad_size = compute_pad_size(rows, dist.get_world_size(), 4)
    key = magi_attn_flex_key(problem.mask, None, None, rows, rows, pad_size, 4, dist.group.WORLD, config("auto"))
    fast = CostModel(problem.heads_q, problem.heads_k, 8, 8, 8)
    for cost in (fast, replace(fast, head_dim=4096), replace(fast, heads_k=problem.heads_q)):
        wanted = choose_mover(key.manager.placed, key.dist_attn_config.overlap_config, cost)
        route = key.manager.route(cost, torch.device("cpu"))
        assert (type(route.mover) is GroupCast) == (wanted == "group_cast")
        assert (route.exchange is not None) == (wanted == "ulysses")
        assert dist.get_world_size() == 2 or wanted != "ulysses"


@pytest.mark.slow
@pytest.mark.parametrize("mover", MOVERS)
def test_random_slices(mover):
    for seed in range(6):
        problem = Problem(
            slices(3 + 4 * seed, 150 + 31 * seed, seed=seed), heads_k=(1, 2, 4, 8)[seed % 4], sinks=seed % 2
        )
        run_ranks((2, 4, 8)[seed % 3], solve, {f"seed {seed}": problem}, config(mover))


# ---------------------------------------------------------------- meshes


def _mesh_2x2():
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("ring", "ulysses"))


def _mesh_4x2():
    return init_device_mesh("cpu", (4, 2))


def _mesh_2x4():
    return init_device_mesh("cpu", (2, 4))


def _flat_mesh():
    return init_device_mesh("cpu", (dist.get_world_size(),))


def _half_of_a_mesh():
    """Of eight ranks, the four that share this rank's first coordinate, as a 2 x 2 mesh."""
    whole = init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=("replica", "ring", "ulysses"))
    return whole["ring", "ulysses"]


@pytest.mark.slow
@pytest.mark.parametrize("mover", ["ulysses_ring", "group_cast", "ulysses", "auto"])
def test_a_mesh_of_two_dimensions(mover):
    problems = {
        "slices": Problem(slices(9, 107), heads_k=1, sinks=2),
        "documents": Problem(documents(13, 71, 9, 1, 22), heads_k=4),
    }
    run_ranks(4, solve, problems, config(mover), _mesh_2x2)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [_mesh_4x2, _mesh_2x4])
def test_ulysses_in_a_ring_on_eight_ranks(mesh):
    problems = {name: Problem(mask, sinks=1) for name, mask in small_masks().items()}
    run_ranks(8, solve, problems, config("ulysses_ring"), mesh)


@pytest.mark.slow
@pytest.mark.parametrize("mover", ["ulysses_ring", "group_cast"])
def test_a_mesh_inside_a_larger_world(mover):
    run_ranks(8, solve, {"causal": Problem(masks.causal(101), sinks=1)}, config(mover), _half_of_a_mesh)


def test_a_mesh_of_one_dimension():
    run_ranks(2, solve, {"causal": Problem(masks.causal(41))}, config("ring"), _flat_mesh)


# ---------------------------------------------------------------- gradients


def test_only_what_needs_a_gradient_gets_one():
    problem = Problem(masks.causal(40), sinks=1)
    run_ranks(2, _some_gradients, problem, _gradients_of_out(problem))


def _some_gradients(rank, problem, wanted):
    key = magi_attn_flex_key(
        problem.mask, None, None, 40, 40, compute_pad_size(40, 2, 4), 4, dist.group.WORLD, config("group_cast")
    )
    for chosen in ([0], [1], [2], [3], [0, 2]):
        inputs = [x.clone().requires_grad_(i in chosen) for i, x in enumerate(problem.inputs)]
        out, _ = calc_attn(*(dispatch(x, key) for x in inputs[:3]), key, inputs[3])
        out.backward(dispatch(problem.gradients[0], key))
        for i, x in enumerate(inputs):
            if i in chosen:
                assert_close(f"gradient {i}", x.grad, wanted[i], EXACT)
            else:
                assert x.grad is None


def _gradients_of_out(problem):
    """On one device, when only out has a gradient."""
    inputs = [x.clone().requires_grad_() for x in problem.inputs]
    out, _, _ = problem.on_one_device(*inputs)
    return torch.autograd.grad((out * problem.gradients[0]).sum(), inputs)


def test_a_second_backward_is_refused():
    run_ranks(1, _second_backward)


def _second_backward(rank):
    problem = Problem(masks.causal(20))
    key = magi_attn_flex_key(problem.mask, None, None, 20, 20, 0, 4, dist.group.WORLD)
    q, k, v, _ = problem.inputs
    q.requires_grad_()
    out, _ = calc_attn(q, k, v, key)
    (dq,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dq.sum().backward()
