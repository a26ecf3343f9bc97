"""Gradients of score_mods on the kernels, in simulation, against the dense formula in fp64."""

import copy
import math

import pytest
import torch
from mods_case import LONGEST, Captured, dense_flex, mods
from oracle import assert_close
from planes import mask_of

from cute_attn import backend, flex_attention, record_specs
from cute_attn.mask import causal, full, sliding_window

DOCUMENTS = (torch.arange(LONGEST, dtype=torch.int32) // 40) % 3
BF16 = torch.bfloat16


class Learned(Captured):
    """Captured, with a table for pairs of documents."""

    def __init__(self, heads, batch, dtype=torch.float32):
        super().__init__(heads, batch, dtype)
        self.pairs = torch.randn(3, 3, dtype=dtype, requires_grad=True)

    def to(self, dtype):
        other = copy.copy(self)
        for name, x in vars(self).items():
            setattr(other, name, x.detach().to(dtype).requires_grad_())
        return other


def every_kind_of_read(c):
    """Of the score_mods: what is read at the row, the key, the head, nowhere, both; documents; negative indices."""

    def score_mod(s, b, h, q, k):
        at_the_row = c.by_row[q - 7] + c.by_head[h]
        at_the_key = c.by_key[b, -1 - k] * 0.3 + c.by_row[DOCUMENTS[k]]
        s = s * c.gain + at_the_row + at_the_key + c.by_head[h] * (k - q) * 0.01
        return s + c.distance[h, q - k + LONGEST] + c.pairs[DOCUMENTS[q], DOCUMENTS[k]]

    return score_mod


def in_one_order(c):
    """Nothing is read at an index that depends on the row, but where the row alone counts."""

    def score_mod(s, b, h, q, k):
        return s * torch.exp(c.by_head[h] * 0.2) + c.by_key[b, k] * s.tanh() + c.gain * (q - k) * 0.1 + c.by_row[q]

    return score_mod


def check(mask, made, *, heads=(4, 2), batch=1, dims=(64, 64), exact=None, dtype=BF16, table=torch.float32, **how):
    """At most twice as far from the formula in fp64 as the formula in the inputs' dtype is.

    made: from what is captured to the score_mod; exact: the same on attended pairs, with numbers elsewhere. how: lse,
    whether it has a gradient; scale; deterministic; leaves: "all", or "captured" where q, k and v need none; attended:
    dense, of a mask that is not intervals.
    """
    attended = how.get("attended")
    if attended is None:
        attended = mask.to_dense().view(mask.batch, mask.heads, mask.seqlen_q, mask.seqlen_k)
    rows, keys = attended.shape[2:]
    shapes = (batch, heads[0], rows, dims[0]), (batch, heads[1], keys, dims[0]), (batch, heads[1], keys, dims[1])
    shapes = *shapes, (*shapes[0][:3], dims[1]), shapes[0][:3]  # and of the gradients of out and lse
    captured = Learned(heads[0], batch, table)
    needs, has_lse = how.get("leaves", "all") == "all", how.get("lse", True)

    def results(kind, given, captured, attend):
        *qkv, dout, dlse = given
        inputs = [x.to(dtype).to(kind).requires_grad_(needs) for x in qkv]
        out, lse = attend(inputs, captured)
        loss = (out * dout.to(dtype).to(out.dtype)).sum()
        if has_lse:
            seen = lse > -torch.inf
            loss = loss + (lse[seen] * dlse.to(lse.dtype)[seen]).sum()
        leaves = [x for x in (*inputs, *captured.leaves()) if x.requires_grad]
        return out.detach(), lse.detach(), *torch.autograd.grad(loss, leaves, allow_unused=True)

    def kernels(inputs, captured):
        scale = how.get("scale")
        return flex_attention(*inputs, made(captured), mask, scale=scale, enable_gqa=True, return_lse=True)

    def by_formula(kind, given):
        def formula(inputs, captured):
            return dense_flex(*inputs, (exact or made)(captured), attended, how.get("scale"), kind)[:2]

        return results(kind, given, captured.to(kind), formula)

    # A few numbers may be right by luck: the largest error of four draws.
    draws = [[torch.randn(shape) for shape in shapes] for _ in range(4)]
    torch.use_deterministic_algorithms(how.get("deterministic", False))
    try:
        got = results(dtype, draws[0], captured, kernels)
    finally:
        torch.use_deterministic_algorithms(False)
    wide, low = ([by_formula(kind, given) for given in draws] for kind in (torch.float64, dtype))
    names = ["out", "lse", *["dq", "dk", "dv"] * needs, *(f"d{name}" for name in vars(captured))]
    for i, (name, mine, wanted) in enumerate(zip(names, got, wide[0], strict=True)):
        if wanted is None:
            assert mine is None or not mine.any()
            continue
        errors = [(x[i].double() - y[i]).masked_fill(y[i].isinf(), 0.0).abs() for x, y in zip(low, wide, strict=True)]
        tolerance = 2 * max(error.max().item() for error in errors) + 1e-5 if wanted.numel() else 0.0
        assert_close(name, torch.zeros_like(wanted) if mine is None else mine, wanted, tolerance)
    return got


@pytest.mark.slow
def test_every_kind_of_read_has_its_gradient():
    with backend("sim"):
        check(causal(150, 170), every_kind_of_read)


@pytest.mark.slow
def test_what_is_infinite_or_outside_of_a_table_where_nobody_attends_reaches_no_gradient():
    def made(c, at_least=-math.inf, first=-1000, last=1000):
        def score_mod(s, b, h, q, k):
            distance = q - k
            share = 1 / torch.clamp(distance + 1, min=at_least)
            return s * share + c.by_key[b, k] * share + c.pairs[0, torch.clamp(distance, first, last)]

        return score_mod

    with backend("sim"):
        check(sliding_window(200, 150, left=2, right=0), made, exact=lambda c: made(c, at_least=1.0, first=0, last=2))


@pytest.mark.slow
def test_scores_that_are_not_linear_and_branch():
    with backend("sim", mode="random", seed=3):
        check(causal(150, 170), lambda c: mods(c)["everything"], batch=2, dtype=torch.float16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows_and_keys", "heads"),
    [
        ((0, 5), (3, 1)),
        ((5, 0), (8, 1)),
        ((1, 1), (2, 2)),
        ((127, 129), (8, 1)),
        ((129, 127), (3, 1)),
        ((257, 257), (2, 2)),
    ],
)
def test_lengths_and_groups_of_every_kind_with_tables_of_bf16(rows_and_keys, heads):
    with backend("sim"):
        check(full(*rows_and_keys), every_kind_of_read, heads=heads, batch=2 - heads[0] % 2, table=BF16)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "seed"), [("late", 0), ("random", 1)])
def test_planes_and_rows_without_keys(mode, seed):
    with backend("sim", mode=mode, seed=seed):
        check(mask_of("both", 2, 4, 150, 300), every_kind_of_read, batch=2)


@pytest.mark.slow
def test_what_has_one_order_has_the_same_bits_in_every_schedule():
    runs = []
    for mode, seed in (("eager", 0), ("late", 0), ("random", 1)):
        torch.manual_seed(0)
        with backend("sim", mode=mode, seed=seed):
            runs.append(check(causal(200), in_one_order, deterministic=True))
    for again in runs[1:]:
        assert all(x is None or torch.equal(x, y) for x, y in zip(again, runs[0], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("dims", [(192, 128), (256, 256)])
def test_two_warpgroups_that_share_their_keys(dims):
    with backend("sim"):
        check(sliding_window(140, 130, left=40, right=10), in_one_order, heads=(2, 1), dims=dims, scale=0.05)


@pytest.mark.slow
def test_captured_tensors_alone_need_gradients():
    with backend("sim"):
        check(causal(150, 170), every_kind_of_read, leaves="captured", lse=False)


def tensors(tokens=40, heads=2):
    return torch.randn(1, heads, tokens, 64, dtype=BF16, requires_grad=True)


def test_a_gradient_without_an_order_is_refused_by_name_where_one_is_asked_for(monkeypatch):
    q, table, slopes = tensors(), torch.zeros(2, 80, requires_grad=True), torch.zeros(2, requires_grad=True)

    def score_mod(s, b, h, q, k):
        return s + table[h, q - k + 40] + slopes[h] * k

    torch.use_deterministic_algorithms(True)
    try:
        match = (
            r"backend 'sim' adds up the gradient of a tensor of shape \(2, 80\) that score_mod reads at an index of "
            r"the query in no fixed order, .*torch.use_deterministic_algorithms\(True\).*backend\('reference'\)"
        )
        with backend("sim"), pytest.raises(NotImplementedError, match=match):
            flex_attention(q, q, q, score_mod)
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    flex_attention(q, q, q, score_mod)  # the reference has an order


@pytest.mark.slow
def test_values_and_lengths_compile_nothing_new(monkeypatch):
    from cute_attn import sim

    monkeypatch.setattr(sim, "run", lambda *arguments, **options: None)
    with record_specs() as recorder, backend("sim"):
        for tokens, slope in ((40, 0.5), (300, 0.25), (600, 3.0)):
            q, table = tensors(tokens), torch.randn(2, 2 * tokens, requires_grad=True)
            out = flex_attention(
                q, q, q, lambda s, b, h, q, k, table=table, slope=slope: s + table[h, q - k] * slope, causal(tokens)
            )
            out.backward(torch.ones_like(out))
            assert q.grad.shape == q.shape
            assert table.grad.shape == table.shape
    assert [spec.op for spec in recorder.specs] == ["fwd", "bwd"]
