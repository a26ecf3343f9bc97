"""flex_attention on the reference: scores that a function changes, masks that are intervals, every gradient."""

import itertools

import pytest
import torch
from cases import stacked
from mods_case import LONGEST, Captured, dense_flex, mods
from oracle import allowed_error, assert_close
from planes import plane
from torch.nn.attention import flex_attention as torch_flex

from cute_attn import AuxOutput, AuxRequest, IntervalMask, flex_attention, mask

EXACT = 1e-10


def inputs(batch, heads, lengths, dims=(8, 8), batch_k=None, dtype=torch.float64):
    rows, keys = lengths
    shapes = (
        (batch, heads[0], rows, dims[0]),
        (batch_k or batch, heads[1], keys, dims[0]),
        (batch_k or batch, heads[1], keys, dims[1]),
    )
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def check(query, key, value, score_mod=None, block_mask=None, attended=None, leaves=(), tolerance=EXACT, **arguments):
    """out, lse, max_scores and all gradients against the dense formula; with max_scores and without."""
    heads = query.shape[1], key.shape[1]
    arguments["enable_gqa"] = heads[0] != heads[1]
    if attended is None:
        attended = torch.ones((), dtype=torch.bool)
    out, (lse, max_scores) = flex_attention(
        query, key, value, score_mod, block_mask, return_aux=AuxRequest(True, True), **arguments
    )
    wanted, wanted_lse, wanted_max = dense_flex(query, key, value, score_mod, attended, arguments.get("scale"))
    assert_close("out", out, wanted, tolerance)
    assert_close("lse", lse, wanted_lse, tolerance)
    assert_close("max_scores", max_scores, wanted_max, tolerance)
    assert not max_scores.requires_grad
    finite = wanted_lse > -torch.inf
    dout, dlse = torch.randn_like(out), torch.randn_like(lse)
    leaves = [query, key, value, *leaves]
    loss = (wanted * dout).sum() + (wanted_lse[finite] * dlse[finite]).sum()
    by_autograd = torch.autograd.grad(loss, leaves, allow_unused=True)
    again, lse_again = flex_attention(query, key, value, score_mod, block_mask, return_lse=True, **arguments)
    for results in ((out, lse), (again, lse_again)):
        gradients = torch.autograd.grad(results, leaves, (dout, dlse), allow_unused=True)
        for i, (got, want) in enumerate(zip(gradients, by_autograd, strict=True)):
            if want is None:
                assert got is None or not got.any(), f"gradient {i} should be none"
            else:
                assert_close(f"gradient {i}", torch.zeros_like(want) if got is None else got, want, tolerance)


LENGTHS = [(0, 5), (1, 1), (127, 129), (129, 127), (5, 0), (257, 257)]


@pytest.mark.parametrize("name", mods(None))
def test_a_score_mod_is_its_dense_formula(name):
    captured = Captured(heads=4, batch=2)
    causal = mask.causal(150, 170)
    check(*inputs(2, (4, 2), (150, 170)), mods(captured)[name], causal, causal.to_dense(), captured.leaves())


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("name", ["everything", "distance", "hides rows"])
def test_lengths_of_every_kind(lengths, name):
    captured = Captured(heads=2, batch=1)
    check(*inputs(1, (2, 1), lengths), mods(captured)[name], leaves=captured.leaves())


@pytest.mark.parametrize("heads", [(1, 1), (6, 2), (8, 1)])
@pytest.mark.parametrize("name", ["softcap", "everything", "by head"])
def test_query_heads_share_key_heads(heads, name):
    captured = Captured(heads=heads[0], batch=2)
    window = mask.sliding_window(130, left=30, right=3)
    qkv = inputs(2, heads, (130, 130), dims=(8, 5))
    check(*qkv, mods(captured)[name], window, window.to_dense(), captured.leaves())


def planes(share, rows, keys):
    batch, heads = {"heads": (1, 4), "batch": (2, 1), "both": (2, 4), "none": (1, 1)}[share]
    masks = [plane(i, rows, keys) for i in range(batch * heads)]
    return stacked(*masks, heads=heads)


@pytest.mark.parametrize("share", ["heads", "batch", "both", "none"])
@pytest.mark.parametrize("name", [None, "everything"])
def test_masks_with_planes(share, name):
    captured = Captured(heads=4, batch=2)
    intervals = planes(share, 220, 240)
    dense = intervals.to_dense().view(intervals.batch, intervals.heads, 220, 240)
    score_mod = None if name is None else mods(captured)[name]
    check(*inputs(2, (4, 2), (220, 240)), score_mod, intervals, dense, captured.leaves())


def test_a_batch_of_one_for_keys_serves_a_batch_of_masks():
    captured = Captured(heads=4, batch=2)
    intervals = planes("batch", 220, 240)
    qkv = inputs(2, (4, 2), (220, 240), batch_k=1)
    check(*qkv, mods(captured)["everything"], intervals, intervals.to_dense()[:, None], captured.leaves())
    check(*qkv, None, intervals, intervals.to_dense()[:, None])


@pytest.mark.parametrize("scale", [None, 0.0, -0.7, 3])
def test_the_scale_comes_before_the_score_mod(scale):
    check(*inputs(1, (2, 2), (20, 30)), mods(None)["squared"], scale=scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_are_at_most_twice_as_far_off_as_the_formula_in_them(dtype):
    captured = Captured(heads=2, batch=1, dtype=dtype)
    qkv = inputs(1, (2, 2), (40, 50), dtype=dtype)
    out, aux = flex_attention(*qkv, mods(captured)["distance"], return_aux=AuxRequest(lse=True))
    assert (out.dtype, aux.lse.dtype) == (dtype, torch.float32)
    leaves, dout = [*qkv, captured.distance], torch.randn_like(out)

    def formula(dtype):
        found, lse, _ = dense_flex(*qkv, mods(captured)["distance"], torch.tensor(True), dtype=dtype)
        return found, lse, *torch.autograd.grad(found, leaves, dout.to(dtype))

    mine = (out, aux.lse, *torch.autograd.grad(out, leaves, dout))
    assert [x.dtype for x in mine[2:]] == [x.dtype for x in leaves]
    names = ("out", "lse", "dq", "dk", "dv", "dcaptured")
    for name, got, exact, rough in zip(names, mine, formula(torch.float64), formula(dtype), strict=True):
        assert_close(name, got, exact, allowed_error(exact, rough))


def test_gradients_of_a_bfloat16_table_are_summed_in_fp32():
    """A sum in bf16 would stop growing at 256 times its equal shares."""
    table = torch.zeros(1, dtype=torch.bfloat16, requires_grad=True)
    q, k, v = torch.zeros(1, 1, 2, 8), torch.zeros(1, 1, 700, 8), torch.zeros(1, 1, 700, 8)
    _, lse = flex_attention(q, k, v, lambda s, b, h, q, k: s + table[k * 0], return_lse=True)
    lse.sum().backward()
    assert table.grad.item() == 2.0


def test_a_fp64_table_stays_in_fp64_with_fp64_inputs_alone():
    table = torch.full((1,), 1.0 + 2.0**-40, dtype=torch.float64)

    def lse(dtype):
        q, k, v = (torch.zeros(1, 1, 1, 8, dtype=dtype) for _ in range(3))
        return flex_attention(q, k, v, lambda s, b, h, q, k: s + table[k], return_lse=True)[1].item()

    assert lse(torch.float64) == table.item()
    assert lse(torch.float32) == 1.0


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=2)))
def test_what_is_returned_is_what_was_asked_for(wanted):
    qkv = inputs(1, (2, 2), (4, 4))
    out, aux = flex_attention(*qkv, return_aux=AuxRequest(*wanted))
    assert isinstance(aux, AuxOutput)
    assert [x is not None for x in aux] == list(wanted)
    assert torch.equal(out, flex_attention(*qkv))
    out, lse = flex_attention(*qkv, return_lse=True)
    assert lse.shape == (1, 2, 4)


def test_torchs_request_is_one():
    _, aux = flex_attention(*inputs(1, (2, 2), (4, 4)), return_aux=torch_flex.AuxRequest(max_scores=True))
    assert aux.lse is None
    assert aux.max_scores.shape == (1, 2, 4)


def test_infinite_captures_of_pairs_that_nobody_attends_do_not_reach_results():
    captured = Captured(heads=2, batch=1)
    rows = torch.arange(40.0, dtype=torch.float64)
    table = rows.masked_fill(rows > 20, torch.nan).requires_grad_()
    intervals = IntervalMask.from_intervals(torch.zeros(30).int(), torch.full((30,), 20), 40)
    qkv = inputs(1, (2, 2), (30, 40))
    out = flex_attention(*qkv, lambda s, b, h, q, k: s * captured.gain + table[k], intervals)
    gradients = torch.autograd.grad(out.sum(), [*qkv, table, captured.gain])
    assert all(g.isfinite().all() for g in (out, *gradients))


def test_an_index_outside_of_a_captured_tensor_is_refused_where_it_is_attended():
    table = torch.zeros(10, dtype=torch.float64)
    qkv = inputs(1, (1, 1), (20, 20))
    with pytest.raises(IndexError, match=r"^score_mod reads a captured tensor of shape \(10,\) at index 10"):
        flex_attention(*qkv, lambda s, b, h, q, k: s + table[q])
    below = IntervalMask.from_intervals(torch.zeros(20).int(), torch.full((20,), 10), 20)
    flex_attention(*qkv, lambda s, b, h, q, k: s + table[k], below)


def test_a_tensor_of_a_score_mod_that_changed_before_the_backward_is_noticed():
    table = torch.zeros(20, dtype=torch.float64, requires_grad=True)
    gain = torch.ones(20, dtype=torch.float64)
    qkv = inputs(1, (1, 1), (20, 20))
    out = flex_attention(*qkv, lambda s, b, h, q, k: s * gain[q] + table[k])
    gain.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_a_second_derivative_is_refused():
    qkv = inputs(1, (1, 1), (4, 4))
    (dq,) = torch.autograd.grad(flex_attention(*qkv, mods(None)["squared"]).sum(), qkv[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="flex_attention has no second derivative"):
        dq.sum().backward()


def test_memory_is_that_of_a_block_of_rows():
    """Of one head, 2048 x 2048 scores would be 16 MiB; a block's are 1."""
    q, k, v = (torch.randn(1, 2, 2048, 8) for _ in range(3))
    table = torch.zeros(4096)
    with torch.profiler.profile(profile_memory=True) as profile:
        flex_attention(q, k, v, lambda s, b, h, q, k: s + table[q - k + 2047])
    largest = max(abs(event.cpu_memory_usage) for event in profile.events())
    assert largest < 2048 * 2048


def test_gradients_are_those_of_finite_differences():
    captured = torch.randn(2, 12, dtype=torch.float64, requires_grad=True)
    gain = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    causal = mask.causal(4, 5)

    def function(query, key, value, captured, gain):
        def score_mod(s, b, h, q, k):
            return (s * gain).tanh() * 2 + captured[h, q - k + 6].sin()

        return flex_attention(query, key, value, score_mod, causal, return_lse=True)

    assert torch.autograd.gradcheck(function, (*inputs(1, (2, 2), (4, 5), dims=(2, 3)), captured, gain))


def test_longest_is_long_enough():
    assert max(max(pair) for pair in LENGTHS) <= LONGEST


def test_autocast_changes_nothing():
    captured = Captured(heads=2, batch=1, dtype=torch.float32)
    qkv = inputs(1, (2, 2), (30, 40), dtype=torch.float32)

    def results():
        out = flex_attention(*qkv, mods(captured)["everything"])
        return out, *torch.autograd.grad(out.sum(), [*qkv, captured.distance])

    wanted = results()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = results()
    assert all(map(torch.equal, wanted, got))
