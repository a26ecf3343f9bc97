"""Biases that the distance alone says become one table: which they are, what it holds, what flows through it."""

import math

import pytest
import torch
from mods_case import places

from cute_attn.mods.distance import ROOM, TABLED, bias_of, by_table, distances_of, table_gradients
from cute_attn.mods.evaluate import evaluate
from cute_attn.mods.trace import trace

HEADS, ROWS, KEYS = 3, 7, 10
SLOPES = torch.tensor([0.5, 0.25, 0.125])
BIAS = torch.randn(HEADS, ROWS + KEYS - 1, generator=torch.Generator().manual_seed(0))
BY_DISTANCE = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).bfloat16()
BUCKETS = torch.randn(8, HEADS, generator=torch.Generator().manual_seed(2))


def buckets(score, b, h, q, k):
    """T5's, with logarithms of what is negative where another branch is taken."""
    back = q - k
    far = 2 + (torch.log(back / 2) / math.log(8 / 2) * 2).to(torch.int32)
    bucket = torch.where(back < 2, back.clamp(min=0), far.clamp(max=3))
    return score + BUCKETS[bucket + 4 * (back < 0), h]


TABLES = {
    "alibi": lambda s, b, h, q, k: s + SLOPES[h] * (k - q),
    "alibi by formula": lambda s, b, h, q, k: s - (q - k).abs() * torch.exp2(-8 * (h + 1) / HEADS),
    "learned": lambda s, b, h, q, k: s + BIAS[h, q - k + KEYS - 1],
    "of all heads": lambda s, b, h, q, k: BY_DISTANCE[(q - k).clamp(-20, 19)] + s,
    "buckets": buckets,
    "causal inside": lambda s, b, h, q, k: s + torch.where(q >= k, -0.1 * (q - k), -1e4),
    "offset first": lambda s, b, h, q, k: s + BIAS[h, (q + (KEYS - 1)) - k],
    "int64": lambda s, b, h, q, k: s + SLOPES[h] * (k.long() - q),
    "two of them": lambda s, b, h, q, k: s + SLOPES[h] * (k - q) - (q == k) * 0.5,
    "a float remainder": lambda s, b, h, q, k: s + ((q - k) * 0.3) % 0.7,
}
OTHERS = {
    "no bias": lambda s, b, h, q, k: s,
    "of the head": lambda s, b, h, q, k: s + SLOPES[h],
    "of the row": lambda s, b, h, q, k: s + BY_DISTANCE[q],
    "of a sum": lambda s, b, h, q, k: s + BY_DISTANCE[q + k],
    "of the row and the distance": lambda s, b, h, q, k: s + BY_DISTANCE[q] * (q - k),
    "of the batch": lambda s, b, h, q, k: s + (q - k) * b,
    "of the score": lambda s, b, h, q, k: s + s * (q - k),
    "scaled": lambda s, b, h, q, k: 0.5 * s + (q - k),
    "of the negated score": lambda s, b, h, q, k: (q - k) - s,
    "the score twice": lambda s, b, h, q, k: s + (s + (q - k)),
    "capped": lambda s, b, h, q, k: torch.tanh(s) + (q - k),
    "a product of positions": lambda s, b, h, q, k: s + q * k,
    "a multiple of one": lambda s, b, h, q, k: s + (2 * q - k),
    "bits": lambda s, b, h, q, k: s + (q ^ k),
    "floats that round": lambda s, b, h, q, k: s + (q.float() - k.float()),
    "sums that may wrap, compared": lambda s, b, h, q, k: s + (q + 5 >= k),
    "sums that may wrap, widened": lambda s, b, h, q, k: s + ((q + 5).long() - k),
    "by key also": lambda s, b, h, q, k: s + SLOPES[h] * (k - q) + BY_DISTANCE[k],
    "replaced": lambda s, b, h, q, k: SLOPES[h] * (q - k),
}


def dense(function, scores, attended=None):
    traced = trace(function, "score_mod")
    inputs = dict(zip(("score", "b", "h", "q", "kv"), (scores, *places(1, HEADS, ROWS, KEYS)), strict=True))
    return evaluate(traced.graph, inputs, traced.tensors, traced.scalars, scores.dtype, attended)[0][0]


@pytest.mark.parametrize("name", TABLES)
def test_a_bias_of_the_distance_is_one_graph_with_a_table_that_says_the_same(name):
    traced = trace(TABLES[name], "score_mod")
    tabled = by_table(traced, HEADS, ROWS, KEYS, torch.device("cpu"))
    assert tabled.text == TABLED
    (table,), (offset,) = tabled.tensors, tabled.scalars
    columns = distances_of(ROWS, KEYS)
    assert (columns.start + ROOM, columns.stop - ROOM) == (1 - KEYS, ROWS)
    assert (table.shape, table.dtype, offset) == ((HEADS, len(columns)), torch.float32, -columns.start)
    at = torch.arange(ROWS)[:, None] - torch.arange(KEYS) + offset
    assert torch.equal(table[:, at], dense(TABLES[name], torch.zeros(1, HEADS, ROWS, KEYS)))


@pytest.mark.parametrize("name", OTHERS)
def test_nothing_else_becomes_one(name):
    traced = trace(OTHERS[name], "score_mod")
    assert bias_of(traced.graph) is None
    assert by_table(traced, HEADS, ROWS, KEYS, torch.device("cpu")) is traced


def test_numbers_lengths_and_tables_are_no_part_of_the_graph():
    made = [by_table(trace(f, "score_mod"), 2, n, n, torch.device("cpu")) for f in TABLES.values() for n in (1, 9)]
    assert {traced.text for traced in made} == {TABLED}


def test_every_graph_that_is_taken_for_one_is_one():
    """Random graphs: equal distances have equal values, shifted far along too."""
    numbers = torch.Generator().manual_seed(3)

    def below(n):
        return int(torch.randint(n, (), generator=numbers))

    def grown(q, k, h, depth):
        if depth == 0:
            return (q, k, q - k, h, q.new_ones(()))[below(5)]
        x, y = grown(q, k, h, depth - 1), grown(q, k, h, depth - 1)
        forms = (
            lambda: x + y,
            lambda: x - y,
            lambda: -x,
            lambda: x * y,
            lambda: torch.where(x >= y, x, y),
            lambda: torch.maximum(x, y),
            lambda: x.long() + y,
            lambda: x.abs() // (y.abs() + 1),
        )
        return forms[below(len(forms))]()

    taken = 0
    for seed in range(400):
        state = numbers.get_state()

        def bias(s, b, h, q, k, state=state):
            numbers.set_state(state)
            return s + grown(q, k, h, 2)

        traced = trace(bias, "score_mod")
        if bias_of(traced.graph) is None:
            continue
        taken += 1
        values = dense(bias, torch.zeros(1, HEADS, ROWS, KEYS, dtype=torch.float64))
        assert torch.equal(values[:, 1:, 1:].expand(HEADS, -1, -1), values[:, :-1, :-1].expand(HEADS, -1, -1)), seed
    assert taken > 40


def test_distances_that_nobody_attends_may_index_outside_and_be_nan_and_give_no_gradient():
    leaves = [
        torch.randn(HEADS, ROWS, dtype=torch.float64, requires_grad=True),  # distances 0 to ROWS - 1
        torch.randn(HEADS, dtype=torch.bfloat16, requires_grad=True),
        torch.randn((), requires_grad=True),
    ]
    learned, by_head, gain = leaves

    def bias(s, b, h, q, k):
        return s + learned.exp()[h, q - k] * gain + by_head[h] * torch.log(q - k + 1)

    attended = torch.arange(ROWS)[:, None] >= torch.arange(KEYS)
    dscores = torch.randn(HEADS, ROWS, KEYS).masked_fill(~attended, 0.0)
    traced = trace(bias, "score_mod")
    tabled = by_table(traced, HEADS, ROWS, KEYS, torch.device("cpu"))
    at = torch.arange(ROWS)[:, None] - torch.arange(KEYS) + tabled.scalars[0]
    scores = dense(bias, torch.zeros(1, HEADS, ROWS, KEYS), attended).detach()
    assert torch.equal(tabled.tensors[0][:, at][:, attended], scores[:, attended])
    gradient = (
        torch.zeros_like(tabled.tensors[0])
        .contiguous()
        .index_put((torch.arange(HEADS)[:, None, None], at), dscores, accumulate=True)
    )
    found = table_gradients(traced, gradient, [True, True, True], ROWS, KEYS)
    assert [x.dtype for x in found] == [x.dtype for x in traced.tensors]
    torch.autograd.backward(traced.tensors, found)
    got = [x.grad.double() for x in leaves]
    for x in leaves:
        x.grad = None
    safe = torch.where(attended, torch.arange(ROWS)[:, None] - torch.arange(KEYS), 0)
    wanted = learned.exp()[:, safe] * gain + by_head.double()[:, None, None] * torch.log(safe + 1.0)
    (wanted * dscores).sum().backward()
    for mine, x in zip(got, leaves, strict=True):
        rounded_once = 2**-8 if x.dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(mine, x.grad.double(), rtol=rounded_once, atol=1e-5)


def test_only_what_is_wanted_gets_a_gradient():
    traced = trace(lambda s, b, h, q, k: s + SLOPES[h] * (k - q) + BIAS[h, q - k], "score_mod")
    found = table_gradients(traced, torch.ones(HEADS, len(distances_of(ROWS, KEYS))), [False, True], ROWS, KEYS)
    assert found[0] is None
    assert found[1].shape == BIAS.shape


def test_a_problem_without_pairs_needs_no_table():
    traced = trace(TABLES["alibi"], "score_mod")
    assert by_table(traced, HEADS, 0, 5, torch.device("cpu")) is traced
