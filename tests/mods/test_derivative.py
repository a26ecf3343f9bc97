"""The derivative of a score_mod's graph, against autograd."""

import pytest
import torch
from mods.operators_case import OPERATORS
from mods_case import LONGEST, Captured, default_dtype, mods, places

from cute_attn.mods.derivative import derivative
from cute_attn.mods.evaluate import evaluate
from cute_attn.mods.trace import trace

SHAPE = (2, 4, 9, 11)


def differentiated(function, scores):
    traced = trace(function, "score_mod")
    graph = derivative(traced.graph, tuple(x.requires_grad for x in traced.tensors))
    inputs = dict(zip(("score", "b", "h", "q", "kv"), (scores.detach(), *places(*SHAPE)), strict=True))
    scatters = []
    with torch.no_grad():
        values = evaluate(graph, inputs, traced.tensors, traced.scalars, torch.float64, scatters=scatters)
    return traced, values, scatters


@pytest.mark.parametrize("name", [name for name in OPERATORS if name != "isnan"])
def test_the_derivative_by_the_score_is_that_of_autograd(name):
    scores = torch.randn(SHAPE, dtype=torch.float64, requires_grad=True)
    with default_dtype(torch.float64):
        wanted = OPERATORS[name](scores, *places(*SHAPE)) + 0 * scores
    grad = torch.randn(SHAPE, dtype=torch.float64)
    (by_score,) = torch.autograd.grad(wanted, scores, grad)
    _, (value, slope), _ = differentiated(OPERATORS[name], scores)
    assert torch.allclose(value.expand(SHAPE), wanted, rtol=1e-13)
    assert torch.allclose(slope * grad, by_score, rtol=1e-12, atol=1e-13)


TIES = {
    "clamp": lambda s, b, h, q, k: s.clamp(0.0, 1.0),
    "relu": lambda s, b, h, q, k: s.relu(),
    "maximum": lambda s, b, h, q, k: torch.maximum(s, s.new_zeros(())) + torch.minimum(s, s.new_zeros(())),
    "abs": lambda s, b, h, q, k: s.abs(),
    "pow": lambda s, b, h, q, k: s**2 + s**1.5 + 0**s,
    "remainder": lambda s, b, h, q, k: (s * 0 + 1) % (s + 0.1) + torch.fmod(s * 0 + 1, s + 0.1),  # 1 / 0.1 < 10
}


@pytest.mark.parametrize("name", TIES)
def test_the_derivative_where_two_branches_meet_is_torchs(name):
    scores = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(*SHAPE[:3], 6)[..., :11].requires_grad_()
    wanted = TIES[name](scores, *places(*SHAPE)) + 0 * scores
    (by_score,) = torch.autograd.grad(wanted.sum(), scores)
    _, (_, slope), _ = differentiated(TIES[name], scores)
    assert torch.equal(slope.expand(SHAPE), by_score)


@pytest.mark.parametrize("name", mods(None))
def test_what_flows_to_captured_tensors_is_that_of_autograd(name):
    captured = Captured(heads=SHAPE[1], batch=SHAPE[0])
    function = mods(captured)[name]
    scores = torch.randn(SHAPE, dtype=torch.float64, requires_grad=True)
    with default_dtype(torch.float64):
        wanted = function(scores, *places(*SHAPE)) + 0 * scores
    wanted = torch.where(wanted == -torch.inf, 0.0, wanted)
    grad = torch.randn(SHAPE, dtype=torch.float64)
    traced, _, scatters = differentiated(function, scores)
    found = [torch.zeros_like(x) for x in traced.tensors]
    for number, indices, value in scatters:
        share = (value * grad).expand(SHAPE)
        if indices:
            found[number].index_put_(tuple(i.expand(SHAPE) for i in indices), share, accumulate=True)
        else:
            found[number] += share.sum()
    tensors = [(x, g) for x, g in zip(traced.tensors, found, strict=True) if x.requires_grad]
    leaves = captured.leaves()
    if tensors:
        got = torch.autograd.grad([x for x, _ in tensors], leaves, [g for _, g in tensors], allow_unused=True)
    else:
        got = [None] * len(leaves)
    (*by_leaf, _) = torch.autograd.grad(wanted, (*leaves, scores), grad, allow_unused=True)
    for mine, torchs in zip(got, by_leaf, strict=True):
        assert (mine is None) == (torchs is None)
        assert mine is None or torch.allclose(mine, torchs, rtol=1e-12, atol=1e-12)


def test_nothing_is_computed_for_tensors_that_need_no_gradient():
    table = torch.zeros(2 * LONGEST)
    traced = trace(lambda s, b, h, q, k: s + table[q - k + LONGEST].exp() * 2, "score_mod")
    graph = derivative(traced.graph, (False,))
    assert [node.op for node in graph.nodes if node.op == "scatter"] == []
    assert graph.nodes[graph.outputs[1]].args == (1.0,)  # the slope
