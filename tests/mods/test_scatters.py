"""How kernels gather what flows to captured tensors, and what PyTorch does of it."""

import pytest
import torch

from cute_attn.mods.derivative import derivative
from cute_attn.mods.evaluate import evaluate
from cute_attn.mods.gather import gather_from
from cute_attn.mods.graph import Graph
from cute_attn.mods.scatters import kind_of
from cute_attn.mods.trace import trace

TABLE, NUMBER, DOCUMENTS = torch.randn(9), torch.tensor(0.5), torch.tensor([0, 0, 1, 2, 2])


def scatters(score_mod):
    traced = trace(score_mod, "score_mod")
    graph = derivative(traced.graph, tuple(x.is_floating_point() for x in traced.tensors))
    return traced, graph, [i for i in graph.outputs if graph.nodes[i].op == "scatter"]


@pytest.mark.parametrize(
    ("kind", "score_mod"),
    [
        ("row", lambda s, b, h, q, k: s + TABLE[h]),
        ("row", lambda s, b, h, q, k: s + TABLE[q] * (q + h)),
        ("row", lambda s, b, h, q, k: s * k - TABLE[DOCUMENTS[q]]),
        ("row", lambda s, b, h, q, k: s + NUMBER),
        ("key", lambda s, b, h, q, k: s + TABLE[h] * k),
        ("key", lambda s, b, h, q, k: s + TABLE[DOCUMENTS[k]]),
        ("key", lambda s, b, h, q, k: s * NUMBER),
        ("key", lambda s, b, h, q, k: torch.where(q > k, s + NUMBER, s)),
        ("anywhere", lambda s, b, h, q, k: s + TABLE[q - k]),
        ("anywhere", lambda s, b, h, q, k: s * TABLE[q]),
        ("anywhere", lambda s, b, h, q, k: s + TABLE[s.int()]),
    ],
)
def test_a_read_has_the_kind_of_what_its_index_and_its_value_depend_on(kind, score_mod):
    _, graph, (scatter,) = scatters(score_mod)
    assert kind_of(graph, scatter) == kind


def test_a_part_of_a_graph_has_its_own_nodes_alone():
    traced, graph, (scatter,) = scatters(lambda s, b, h, q, k: s.tanh() + TABLE[DOCUMENTS[k] - 4] * k)
    part = graph.only(graph.nodes[scatter].operands)
    assert Graph.parse(part.text) == part
    assert not part.reads("score")
    index, value = evaluate(part, {"kv": torch.tensor([1, 3])}, traced.tensors, traced.scalars, torch.float64)
    assert (index.tolist(), value.tolist()) == ([-4, -2], [1, 3])


@pytest.mark.parametrize("weighs", [False, True])
def test_shares_go_where_kernels_look(weighs):
    """At negative indices from the end, outside at the nearest element; 0 times infinity is 0."""
    traced, graph, (scatter,) = scatters(lambda s, b, h, q, k: s + TABLE[k * 3 - 4 + h] * (1 / (k - 4)))
    gradient, share = torch.zeros(9), torch.tensor([[[1.0, 2.0, 4.0, 8.0, 0.0]]])
    gather_from(gradient, traced, graph, scatter, share, "kv", weighs)
    weights = [-1 / 4, -1 / 3, -1 / 2, -1.0] if weighs else [1.0] * 4
    wanted = torch.zeros(9)
    for place, weight, x in zip((5, 8, 2, 5), weights, share[0, 0].tolist(), strict=False):
        wanted[place] += weight * x
    assert torch.allclose(gradient, wanted)
