"""Which reads of captured tensors need no guard, against all places that there are."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cute_attn.mods.evaluate import evaluate
from cute_attn.mods.graph import Graph
from cute_attn.mods.ranges import with_reads_inside
from cute_attn.mods.trace import trace

TABLE, DOCUMENTS, SIZES = torch.arange(40.0), torch.zeros(9, dtype=torch.int32), (2, 3, 6, 9)


def is_inside(index, table=TABLE, sizes=SIZES):
    traced = trace(lambda s, b, h, q, k: s + table[index(b, h, q, k)], "score_mod")
    shapes = [x.shape for x in traced.tensors]
    marked = with_reads_inside(traced.graph, sizes, shapes, traced.scalars)
    assert Graph.parse(marked.text) == marked
    return marked.reads("load_inside") and not marked.reads("load")


@pytest.mark.parametrize(
    ("index", "wanted"),
    [
        (lambda b, h, q, k: q - k + 8, True),
        (lambda b, h, q, k: q - k + 7, False),
        (lambda b, h, q, k: q * 7 + b, True),
        (lambda b, h, q, k: q * 7 + k, False),
        (lambda b, h, q, k: torch.clamp(q - k, -3, 4) + 3, True),
        (lambda b, h, q, k: torch.clamp(k - q, 0, 90), True),
        (lambda b, h, q, k: (q + k) % 40, True),
        (lambda b, h, q, k: (q - k).abs() // 2, True),
        (lambda b, h, q, k: torch.where(q >= k, q - k, 0), False),  # each branch by itself
        (lambda b, h, q, k: DOCUMENTS[k], False),  # nobody looks at values
        (lambda b, h, q, k: q * (1 << 30), False),
    ],
)
def test_a_read_is_inside_where_the_ranges_of_its_index_say_so(index, wanted):
    assert is_inside(index) == wanted


def test_lengths_and_shapes_decide_and_nothing_else_changes():
    assert is_inside(lambda b, h, q, k: q, torch.zeros(6))
    assert not is_inside(lambda b, h, q, k: q, torch.zeros(5))
    assert not is_inside(lambda b, h, q, k: q, torch.zeros(0))


indices = st.recursive(
    st.sampled_from(["b", "h", "q", "k", "3", "5"]),
    lambda inner: (
        st.builds("({} {} {})".format, inner, st.sampled_from(["+", "-", "*", "//", "%"]), inner)
        | st.builds("torch.{}({}, {})".format, st.sampled_from(["minimum", "maximum"]), inner, inner).filter(
            lambda text: not text.endswith((" 3)", " 5)")) and "(3" not in text and "(5" not in text
        )
    ),
    max_leaves=6,
)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(indices)
def test_no_index_that_is_called_inside_is_outside_anywhere(text):
    index = eval(f"lambda b, h, q, k: {text}")
    try:
        traced = trace(lambda s, b, h, q, k: s + TABLE[index(b, h, q, k)], "score_mod")
    except (ValueError, ZeroDivisionError, TypeError):
        return
    except IndexError:  # of numbers alone, which PyTorch reads by itself
        assert not set("bhqk") & set(text.replace("torch", ""))
        return
    marked = with_reads_inside(traced.graph, SIZES, [TABLE.shape], traced.scalars)
    for load in (node for node in marked.nodes if node.op == "load_inside" and node.operands):
        places = torch.tensor(list(itertools.product(*map(range, SIZES))), dtype=torch.int32)
        inputs = dict(zip(("b", "h", "q", "kv"), places.T, strict=True))
        part = marked.only(load.operands)
        (at,) = evaluate(part, inputs, traced.tensors, traced.scalars, torch.float32, clamps=True)
        assert 0 <= int(at.min()) <= int(at.max()) < len(TABLE)
