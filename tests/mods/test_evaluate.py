"""Graphs in PyTorch: captured tensors are read only where somebody asks."""

import pytest
import torch

from cute_attn.mods.evaluate import evaluate
from cute_attn.mods.trace import trace

ROWS = torch.arange(4, dtype=torch.int32)[:, None]
KEYS = torch.arange(6, dtype=torch.int32)
TABLE = torch.arange(4.0)


def evaluated(function, attended=None, tensors=None):
    traced = trace(function, "mask_mod")
    inputs = {"q": ROWS, "kv": KEYS}
    return evaluate(traced.graph, inputs, traced.tensors, traced.scalars, torch.float32, attended, "mask_mod")[0]


def test_indices_may_lie_outside_where_nobody_attends():
    assert evaluated(lambda b, h, q, k: TABLE[k] >= 2, KEYS < 4)[:4].tolist() == [False, False, True, True]


def test_an_index_outside_is_refused_where_somebody_attends():
    with pytest.raises(IndexError, match=r"mask_mod reads .* shape \(4,\) at index 4 of dimension 0, where -4 to 3"):
        evaluated(lambda b, h, q, k: TABLE[k] >= 2, KEYS < 5)


def test_an_index_below_minus_the_size_is_refused():
    with pytest.raises(IndexError, match=r"at index -5 of dimension 0"):
        evaluated(lambda b, h, q, k: TABLE[-1 - k] >= 2)


def test_an_empty_table_may_be_captured_where_nobody_attends():
    empty = torch.zeros(0)
    assert not evaluated(lambda b, h, q, k: empty[k] > 0, KEYS < 0).any()


def test_dividing_an_integer_by_zero_is_refused_where_somebody_attends():
    def function(b, h, q, k):
        return q // k == 0

    assert evaluated(function, KEYS > 0).shape == (4, 6)
    with pytest.raises(ZeroDivisionError, match="mask_mod divides an integer by 0"):
        evaluated(function)


def test_small_integers_do_not_wrap():
    bytes_ = torch.full((6,), 100, dtype=torch.int8)
    assert evaluated(lambda b, h, q, k: bytes_[k] * 2 == 200).all()
