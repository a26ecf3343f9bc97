"""Which reads of captured tensors need no guard: those whose indices lie inside at all pairs of a call."""

import pytest
import torch

from cute_attn.launch.captured import text_of
from cute_attn.mods.graph import Graph
from cute_attn.mods.trace import trace

TABLE = torch.randn(4, 250)
WHOLE = torch.zeros(150, dtype=torch.int32)


def loads(score_mod, rows=100, keys=150):
    """Of the loads in order, whether each is known to lie inside, for 2 batch elements and 4 heads."""
    graph = Graph.parse(text_of(trace(score_mod, "score_mod"), (2, 4, rows, keys)))
    return [node.op == "load_inside" for node in graph.nodes if node.action == "load"]


@pytest.mark.parametrize(
    ("score_mod", "inside"),
    [
        (lambda s, b, h, q, k: s + TABLE[h, q - k + 149], [True]),
        (lambda s, b, h, q, k: s + TABLE[h, q - k + 148], [False]),
        (lambda s, b, h, q, k: s + TABLE[h, q - k], [False]),
        (lambda s, b, h, q, k: s + TABLE[h, -1 - k], [False]),
        (lambda s, b, h, q, k: s + TABLE[3 - h, (k - q).abs()], [True]),
        (lambda s, b, h, q, k: s + TABLE[b * 2 + 1, k % 50 + q // 2 + 49], [True]),
        (lambda s, b, h, q, k: s + TABLE[b * 2 + 2, k], [False]),
        (lambda s, b, h, q, k: s + TABLE[h, torch.minimum(k * k, 249 - q)], [True]),
        (lambda s, b, h, q, k: s + TABLE[h, k * 2000000000], [False]),
        (lambda s, b, h, q, k: s + TABLE[h, WHOLE[k]], [True, False]),
    ],
)
def test_indices_are_known_by_the_ranges_of_what_they_are_made_of(score_mod, inside):
    assert loads(score_mod) == inside


def test_lengths_matter_only_where_a_tensor_is_too_short():
    def score_mod(s, b, h, q, k):
        return s + TABLE[h, q - k + 149]

    assert loads(score_mod, rows=1, keys=1) == [True]
    assert loads(score_mod, rows=102) == [False]


def test_everything_else_of_the_graph_stays():
    traced = trace(lambda s, b, h, q, k: s * 2 + TABLE[h, k] - 0.5 * (q - k), "score_mod")
    assert text_of(traced, (2, 4, 100, 150)).replace("load_inside", "load") == traced.text
