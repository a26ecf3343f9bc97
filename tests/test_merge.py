"""Partial results merge into the result over all keys, whatever the parts and their order."""

from itertools import pairwise

import pytest
import torch
from oracle import assert_close

from cute_attn import mask as masks
from cute_attn import reference
from cute_attn.merge import Merger


def partial(q, k, v, mask):
    out, lse, max_logits = reference.attention_forward(q[None], k[None], v[None], mask.lo, mask.hi, None, 0.5, 0.0)
    return out[0], lse[0], max_logits[0]


def merged(parts, rows, heads, dim):
    merger = Merger(rows, heads, dim, torch.float64, torch.device("cpu"))
    for part in parts:
        merger.add(*part)
    return merger


@pytest.fixture
def inputs():
    return torch.randn(30, 4, 8).double(), torch.randn(50, 2, 8).double(), torch.randn(50, 2, 6).double()


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_parts_of_the_keys_give_the_whole(inputs, order):
    q, k, v = inputs
    mask = masks.sliding_window(30, 50, left=9, right=3)  # many rows have no key in a part
    cuts = [0, 11, 29, 50]
    parts = [partial(q, k[a:b], v[a:b], mask.remap(torch.arange(a, b))) for a, b in pairwise(cuts)]
    got = merged([parts[i] for i in order], 30, 4, 6)
    for name, x, wanted in zip(
        ("out", "lse", "max_logits"), (got.out, got.lse, got.max_logits), partial(q, k, v, mask), strict=True
    ):
        assert_close(name, x, wanted, 1e-14)


def test_nothing_and_nothing_is_nothing():
    empty = torch.zeros(3, 2, 4), torch.full((2, 3), -torch.inf), torch.full((2,), -torch.inf)
    got = merged([[x.double() for x in empty]] * 2, 3, 2, 4)
    assert (got.out == 0).all()
    assert (got.lse == -torch.inf).all()
    assert (got.max_logits == -torch.inf).all()


def test_far_apart_parts_neither_overflow_nor_vanish():
    out = torch.ones(1, 1, 1).double()
    large, small = (torch.full((1, 1), x).double() for x in (900.0, -900.0))
    got = merged([(out * 2, small, small[0]), (out * 3, large, large[0])], 1, 1, 1)
    assert_close("out", got.out, out * 3, 0.0)
    assert_close("lse", got.lse, large, 0.0)


def test_sinks_take_weight_and_leave_max_logits_alone():
    merger = merged([(torch.ones(1, 1, 1).double(), torch.zeros(1, 1).double(), torch.zeros(1).double())], 1, 1, 1)
    merger.add_sinks(torch.tensor([[0.0], [-torch.inf], [0.0]]).double())
    assert_close("out", merger.out, torch.ones(1, 1, 1).double() / 3, 1e-15)
    assert_close("lse", merger.lse, torch.tensor([[3.0]]).double().log(), 1e-15)
    assert merger.max_logits.tolist() == [0.0]


def test_a_row_with_minus_infinite_sinks_alone_stays_empty():
    merger = merged([], 2, 1, 1)
    merger.add_sinks(torch.full((2, 1), -torch.inf).double())
    assert (merger.out == 0).all()
    assert (merger.lse == -torch.inf).all()
