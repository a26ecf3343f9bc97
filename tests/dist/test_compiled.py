"""calc_attn in graphs of torch.compile: no graph break, no plan in the graph, the results of eager mode."""

import pytest
import torch
import torch._dynamo.utils
import torch.distributed as dist
from oracle import assert_close
from problems import EXACT, Problem, check, config, documents, results
from ranks import error_of, run_ranks

from cute_attn import mask as masks
from cute_attn.dist import (
    calc_attn,
    clear_cache,
    dispatch,
    get_position_ids,
    magi_attn_flex_key,
    make_flex_key_for_new_mask_after_dispatch,
    undispatch,
)

LENGTH = 42  # no number of ranks divides it by the chunk
NAMES = ("out", "lse", "dq", "dk", "dv", "dsink")


def make_key(mask, mover="group_cast"):
    return magi_attn_flex_key(mask, None, None, LENGTH, LENGTH, 0, 4, dist.group.WORLD, config(mover))


def compiled(function, compiler="aot_eager"):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return torch.compile(function, fullgraph=True, backend=compiler)


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def problems():
    return [Problem(documents(13, 28, 1), sinks=1), Problem(masks.sliding_window(LENGTH, left=9, right=0), sinks=1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "mover", "compiler"),
    [
        (2, "group_cast", "aot_eager"),
        *(
            pytest.param(world, mover, compiler, marks=pytest.mark.slow)
            for world, mover, compiler in (
                (1, "ring", "aot_eager"),
                (2, "ring", "aot_eager"),
                (2, "ulysses", "aot_eager"),
                (2, "group_cast", "inductor"),
            )
        ),
    ],
)
def test_a_graph_serves_every_key_of_its_shapes_with_gradients(world, mover, compiler):
    run_ranks(world, _one_graph, problems(), mover, compiler, deadline=300.0)


def _one_graph(rank, problems, mover, compiler):
    keys = [make_key(problem.mask, mover) for problem in problems]
    attend = compiled(lambda q, k, v, key, sink: calc_attn(q, k, v, key, sink, return_max_logits=True), compiler)

    for key, problem in [*zip(keys, problems, strict=True), (keys[0], problems[0])]:

        def attention(q, k, v, sink, key=key):
            out, lse, most = attend(*(dispatch(x, key) for x in (q, k, v)), key, sink)
            return undispatch(out, key), undispatch(lse.T, key).T, most

        check(compiler, results(problem.inputs, problem.gradients, attention), problem.wanted)
    assert graphs() == 1


class Layer(torch.nn.Module):
    def __init__(self, key):
        super().__init__()
        self.key, self.weight = key, torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x):
        return calc_attn(x * self.weight, x, x, self.key)[0]


@pytest.mark.slow
def test_the_key_of_a_layer_may_be_changed_and_the_old_plan_is_not_used():
    run_ranks(1, _changed, deadline=120.0)


def _changed(rank):
    first = make_key(masks.causal(LENGTH))
    local = dispatch(torch.randn(LENGTH, 2, 8, dtype=torch.float64), first)
    layer = Layer(first)
    attend = compiled(layer)
    for mask in (masks.causal(LENGTH), masks.full(LENGTH), masks.sliding_window(LENGTH, left=3, right=0)):
        layer.key = make_flex_key_for_new_mask_after_dispatch(mask, None, None, first)
        out = attend(local)
        assert torch.equal(out, layer(local))
        layer.weight.grad = None
        out.sum().backward()
        compiled_gradient, layer.weight.grad = layer.weight.grad, None
        layer(local).sum().backward()
        assert_close("weight", compiled_gradient, layer.weight.grad, EXACT)
    assert graphs() == 1
    clear_cache()
    assert "key is unknown" in error_of(attend, local)[1]


@pytest.mark.slow
def test_ranks_that_differ_all_raise_from_a_graph_too():
    errors = run_ranks(2, _differing, deadline=120.0)
    for own, other in zip(*errors, strict=True):
        assert own == other
        assert own[0] == "ValueError"
    assert "softcap is 0.0 on rank 0; 30.0 on rank 1" in errors[0][0][1]
    assert "key is " in errors[0][1][1]
    assert "q must have 24 rows" in errors[0][2][1]


def _differing(rank):
    keys = [make_key(mask) for mask in (masks.causal(LENGTH), masks.full(LENGTH))]
    local = dispatch(torch.randn(LENGTH, 2, 8), keys[0])
    attend = compiled(lambda x, key, softcap: calc_attn(x, x, x, key, softcap=softcap)[0])
    errors = [error_of(attend, local, keys[0], 30.0 * rank), error_of(attend, local, keys[rank], 0.0)]
    errors.append(error_of(attend, local[1:], keys[0], 0.0))
    attend(local, keys[0], 0.0)
    return errors


@pytest.mark.slow
def test_a_key_that_is_gone_before_its_backward_is_missed_by_name():
    run_ranks(1, _gone)


def _gone(rank):
    key = make_key(masks.causal(LENGTH))
    local = dispatch(torch.randn(LENGTH, 2, 8), key).requires_grad_()
    attend = compiled(lambda x, key: calc_attn(x, x, x, key)[0])
    out = attend(local, key)
    clear_cache()
    out.sum().backward()  # cleared, still held
    key = make_key(masks.causal(LENGTH))
    out = attend(local.detach().requires_grad_(), key)
    del key
    clear_cache()
    error = error_of(out.sum().backward)
    assert error[0] == "ValueError"
    assert "the backward of calc_attn: key is unknown" in error[1]
    assert "be held until its backwards have run" in error[1]


@pytest.mark.slow
def test_what_moves_rows_and_makes_keys_is_left_out_of_graphs():
    run_ranks(2, _left_out, deadline=120.0)


def _left_out(rank):
    def step(x):
        key = make_key(masks.causal(LENGTH))
        local = dispatch(x, key) + get_position_ids(key)[:, None, None]
        return undispatch(calc_attn(local, local, local, key)[0], key)

    x = torch.randn(LENGTH, 2, 8, dtype=torch.float64)
    torch._dynamo.reset()
    assert_close("step", torch.compile(step, backend="aot_eager")(x), step(x), EXACT)


@pytest.mark.slow
def test_the_ops_pass_opcheck():
    run_ranks(1, _opcheck, deadline=120.0)


def _opcheck(rank):
    key = make_key(masks.causal(LENGTH))
    q, k = (torch.randn(44, heads, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2))
    sink = torch.randn(2, 4, requires_grad=True)
    scalars = (None, 1.5, True, False, "reference", [True] * 4)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    ops = torch.ops.cute_attn
    torch.library.opcheck(ops.calc_attn.default, (q, k, k, sink, key.number, *scalars), test_utils=checks)
    q, k, sink = (x.detach() for x in (q, k, sink))
    out, lse, _, number = ops.calc_attn(q, k, k, sink, key.number, *scalars)
    for needs in ([True] * 4, [False, True, False, False]):
        given = (out, lse, q, k, k, sink, out, lse, key.number, number, *scalars[:-1], needs)
        torch.library.opcheck(ops.calc_attn_backward.default, given, test_utils=checks[::2])
