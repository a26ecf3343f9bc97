"""Graphs in PyTorch: captured tensors are read only where somebody asks."""

import pytest
import torch

from cute_attn.mods.evaluate import evaluate
from cute_attn.mods.ranges import may_wrap
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


BYTES = torch.full((6,), 100, dtype=torch.int8)


@pytest.mark.parametrize(
    "function",
    [
        lambda b, h, q, k: BYTES[k] * 2 == 200,
        lambda b, h, q, k: BYTES[k] - BYTES[q] > 0,
        lambda b, h, q, k: -BYTES[k] < 0,
        lambda b, h, q, k: BYTES[k] + torch.tensor(1, dtype=torch.uint8) > 0,
        lambda b, h, q, k: ~BYTES[k] > 0,
        lambda b, h, q, k: (q > k) - BYTES[k] > 0,
        lambda b, h, q, k: torch.where(q > k, BYTES[q], BYTES[k]) * 2 > 0,
        lambda b, h, q, k: torch.minimum(BYTES[q], BYTES[k]) + 100 > 0,
        lambda b, h, q, k: BYTES[k].clamp(max=100) + BYTES[q].masked_fill(q > k, 7) > 0,
        lambda b, h, q, k: torch.sign(BYTES[k] % 7) * 100 > 0,
        lambda b, h, q, k: (BYTES[k] | BYTES[q]) + 100 > 0,
    ],
)
def test_small_integers_that_would_wrap_are_refused(function):
    with pytest.raises(ValueError, match=r"mask_mod uses \w+ of integers of 8 or 16 bits alone: .*x.to\(torch.int32\)"):
        evaluated(function)


def test_small_integers_meet_wider_ones_and_are_compared():
    assert evaluated(lambda b, h, q, k: BYTES[k].to(torch.int32) * 2 == 200).all()
    assert evaluated(lambda b, h, q, k: BYTES[k].int() - BYTES[q] == 0).all()
    assert evaluated(lambda b, h, q, k: (BYTES[k] * (q + 2) >= 200) & (BYTES[k] == BYTES[q])).all()
    assert evaluated(lambda b, h, q, k: torch.where(q >= 0, BYTES[k], q) * 2 == 200).all()
    assert evaluated(lambda b, h, q, k: torch.maximum(BYTES[k], BYTES[q]).int() * 2 == 200).all()


@pytest.mark.parametrize(
    "function",
    [
        lambda b, h, q, k: q.type_as(BYTES[0]) == k,
        lambda b, h, q, k: q.to(BYTES[0]) == k,
        lambda b, h, q, k: q.type_as(BYTES[k]) == k,
        lambda b, h, q, k: q.to(BYTES[k]) == k,
    ],
)
def test_casts_to_small_integers_are_refused(function):
    with pytest.raises(ValueError, match=r"mask_mod casts to .*(8 or 16 bits|torch.int8)"):
        trace(function, "mask_mod")


@pytest.mark.parametrize("fill", [1.75, -1.75, 3, True, torch.tensor(2.5), torch.tensor(-7)])
def test_masked_fill_keeps_the_dtype_of_what_it_fills(fill):
    def function(b, h, q, k):
        return q.masked_fill(q > k, fill) * 4 + k

    def as_score(s, b, h, q, k):
        return function(b, h, q, k)

    traced = trace(as_score, "score_mod")
    inputs, rest = {"q": ROWS, "kv": KEYS}, (traced.tensors, traced.scalars, torch.float32)
    want = function(0, 0, ROWS.expand(4, 6), KEYS.expand(4, 6)).float()
    assert torch.equal(evaluate(traced.graph, inputs, *rest)[0], want)


@pytest.mark.parametrize(
    "function",
    [
        lambda b, h, q, k: (q * (1 << 30) ^ k) > 0,
        lambda b, h, q, k: (k + q * ((1 << 31) - 1) ^ k) > 0,
        lambda b, h, q, k: (-((-1 << 31) + k) ^ q) > 0,
        lambda b, h, q, k: (1 << (q * 16) ^ k) > 0,
        lambda b, h, q, k: (q**40 ^ k) > 0,
    ],
)
def test_indices_that_would_wrap_are_refused_where_somebody_attends(function):
    traced = trace(function, "mask_mod")
    inputs = {"q": ROWS.long(), "kv": KEYS.long()}
    inputs = {name: x for name, x in inputs.items() if traced.graph.reads(name)}

    def checked(attended):
        rest = traced.tensors, traced.scalars, torch.float32, attended, "mask_mod"
        return evaluate(traced.graph, inputs, *rest, refuses_wrapping=True)

    assert may_wrap(traced.graph, (1, 1, 4, 6), traced.scalars)
    with pytest.raises(ValueError, match=r"mask_mod meets an int32 with -?\d{10,}: .*x.long\(\) makes one an int64"):
        checked(None)
    checked(torch.zeros(4, 6, dtype=torch.bool))


def test_int32_that_stay_int32_and_int64_are_not_refused():
    codes = torch.full((6,), 1 << 30, dtype=torch.int32)
    for function, may in [
        (lambda b, h, q, k: q.long() * (1 << 30) > k, False),
        (lambda b, h, q, k: (q * (1 << 29) - k) % 3 > 0, False),
        (lambda b, h, q, k: codes[k] * codes[q] == 0, True),  # wraps in torch too
    ]:
        traced = trace(function, "mask_mod")
        assert may_wrap(traced.graph, (1, 1, 4, 6), traced.scalars) == may
        inputs, rest = {"q": ROWS.long(), "kv": KEYS.long()}, (traced.tensors, traced.scalars, torch.float32)
        (said,) = evaluate(traced.graph, inputs, *rest, refuses_wrapping=True)
        assert torch.equal(said, function(0, 0, ROWS.long(), KEYS.long()))
