"""What callers bring from FlashAttention, MagiAttention and NumPy: taken where it is harmless, else refused by a
sentence that says what would do."""

import inspect
import re
import warnings

import numpy as np
import pytest
import torch
from oracle import assert_close

from cute_attn import (
    AttnMaskType,
    create_block_mask,
    fa2_func_with_sink,
    fa2_kvpacked_func_with_sink,
    fa2_qkvpacked_func_with_sink,
    fa2_varlen_func_with_sink,
    fa2_varlen_kvpacked_func_with_sink,
    fa2_varlen_qkvpacked_func_with_sink,
    fa3_func_with_sink,
    fa3_qkvpacked_func_with_sink,
    fa3_varlen_func_with_sink,
    flash_attn_with_kvcache,
    flex_flash_attn_func,
    mask,
    noop_mask,
)
from cute_attn.elsewhere import KEYWORDS
from cute_attn.ops import flex_flash

ENDS = torch.tensor([0, 4, 4, 11, 12])  # lengths 4, 0, 7, 1


def randn(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype)


DENSE = [randn(2, 12, heads, 8) for heads in (4, 2, 2)]
PACKED = [x[0] for x in DENSE]
QKV, KV = randn(2, 12, 3, 4, 8), randn(2, 12, 2, 2, 8)
BY_SEQUENCE = ENDS, ENDS, 7, 7
NINE = [
    (fa3_func_with_sink, DENSE),
    (fa3_varlen_func_with_sink, [*PACKED, *BY_SEQUENCE]),
    (fa3_qkvpacked_func_with_sink, [QKV.flatten(2, 3)]),
    (fa2_func_with_sink, DENSE),
    (fa2_qkvpacked_func_with_sink, [QKV]),
    (fa2_kvpacked_func_with_sink, [DENSE[0], KV]),
    (fa2_varlen_func_with_sink, [*PACKED, *BY_SEQUENCE]),
    (fa2_varlen_qkvpacked_func_with_sink, [QKV[0], ENDS, 7]),
    (fa2_varlen_kvpacked_func_with_sink, [PACKED[0], KV[0], *BY_SEQUENCE]),
]
every_function = pytest.mark.parametrize(("function", "inputs"), NINE, ids=[f.__name__ for f, _ in NINE])
VARLEN = [pair for pair in NINE if "varlen" in pair[0].__name__]
every_varlen = pytest.mark.parametrize(("function", "inputs"), VARLEN, ids=[f.__name__ for f, _ in VARLEN])


# ---------------------------------------------------------------------- sinks


@every_function
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_sinks_may_have_any_floating_dtype_and_get_gradients_in_it(function, inputs, dtype):
    sink = randn(2, 4).to(dtype).requires_grad_()
    exact = sink.detach().double().requires_grad_()
    weights = None
    for s in (sink, exact):
        out, lse = function(*inputs, sink=s, causal=True, return_attn_probs=True)
        weights = weights or (torch.randn_like(out), torch.randn_like(lse))
        torch.autograd.backward((out, lse), weights)
    assert sink.grad.dtype == dtype
    assert torch.equal(sink.grad, exact.grad.to(dtype))  # computed in the dtype of the scores, rounded once


@every_function
def test_one_sink_a_head_may_come_without_its_dimension(function, inputs):
    sink = randn(4).requires_grad_()
    flat, rows = function(*inputs, sink=sink), function(*inputs, sink=sink[None])
    assert torch.equal(flat, rows)
    assert not torch.equal(flat, function(*inputs))
    (grad,) = torch.autograd.grad(flat.square().sum(), sink)
    assert grad.shape == (4,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_flex_takes_the_same_sinks(dtype):
    q, k, v = (x.to(torch.bfloat16) for x in PACKED)
    sink = randn(4).to(dtype).requires_grad_()
    for s, layout in ((sink, "sh"), (sink[None], "sh"), (sink.expand(12, 1, 4), "ssh")):
        out, lse = flex_flash_attn_func(q, k, v, [[0, 12]], [[0, 12]], sink=s, sink_layout=layout)
        assert lse.dtype == torch.float32
        (grad,) = torch.autograd.grad(out.float().square().sum() + lse.sum(), sink)
        assert grad.dtype == dtype
        assert grad.abs().min() > 0


# -------------------------------------------------- FlashAttention's arguments


@every_function
@pytest.mark.parametrize("positional", [(0.0, None, True), (0.0,), (None, None), (0.1, True), (None, True)])
def test_arguments_in_flash_attentions_order_are_told_where_they_belong(function, inputs, positional):
    with pytest.raises(TypeError, match=r"sink must be .* sink_layout .* dropout_p, softmax_scale.* by keyword"):
        function(*inputs, *positional)


@every_function
@pytest.mark.parametrize("causal", [False, True])
def test_a_window_may_be_any_pair_and_is_unlimited_below_zero(function, inputs, causal):
    def attend(window):
        return function(*inputs, causal=causal, window_size=window)

    for same in (np.array([3, 1]), torch.tensor([3, 1]), [np.int32(3), torch.tensor(1)], (np.int64(3), 1)):
        assert torch.equal(attend(same), attend((3, 1)))
    for same in (None, (None, None), [-2, -7], (-1, None), np.array([-(2**63), -1])):
        assert torch.equal(attend(same), attend((-1, -1)))
    assert torch.equal(attend((None, 0)), attend((-1, 0)))
    assert not torch.equal(attend((3, 1)), attend((-1, -1)))


@pytest.mark.parametrize(("function", "inputs"), [NINE[0], NINE[1]])
@pytest.mark.parametrize("num_splits", [0, 1, np.int64(0)])
def test_num_splits_may_be_zero_or_one(function, inputs, num_splits):
    assert torch.equal(function(*inputs, num_splits=num_splits), function(*inputs))


@pytest.mark.parametrize("form", [torch.tensor, np.array, list, lambda x: torch.tensor(x, dtype=torch.int32)])
def test_lengths_in_use_may_be_the_full_ones(form):
    wanted = fa3_varlen_func_with_sink(*PACKED, *BY_SEQUENCE)
    full, short = form([4, 0, 7, 1]), form([4, 0, 6, 1])
    assert torch.equal(fa3_varlen_func_with_sink(*PACKED, *BY_SEQUENCE, seqused_q=full, seqused_k=full), wanted)
    for name in ("seqused_q", "seqused_k"):
        with pytest.raises(ValueError, match=f"{name} is not supported: it must be None or the full lengths"):
            fa3_varlen_func_with_sink(*PACKED, *BY_SEQUENCE, **{name: short})


CACHES = torch.randn(2, 1, 4, 8), *torch.randn(2, 2, 12, 2, 8)
ALL = [*NINE, (flash_attn_with_kvcache, CACHES), (flex_flash_attn_func, [*PACKED, [[0, 12]], [[0, 12]]])]


@pytest.mark.parametrize(("function", "inputs"), ALL, ids=[f.__name__ for f, _ in ALL])
def test_keywords_of_other_versions_pass_where_they_ask_for_nothing_and_else_are_told_what_serves_them(
    function, inputs
):
    def first(result):
        return result[0] if isinstance(result, tuple) else result

    own, wanted = inspect.signature(function).parameters, first(function(*inputs))
    foreign = KEYWORDS.keys() - own - (flex_flash.HINTS if function is flex_flash_attn_func else set())
    assert "block_table" in foreign or function is fa2_varlen_func_with_sink
    for name in sorted(foreign):
        neutral, served = KEYWORDS[name]
        for value in neutral:
            assert torch.equal(first(function(*inputs, **{name: value})), wanted)
        with pytest.raises(ValueError, match=f"^{name} is not supported: it must be .*, got 'x'; {re.escape(served)}$"):
            function(*inputs, **{name: "x"})


def test_arguments_that_only_complete_a_signature_are_told_what_serves_them():
    for name in ("alibi_slopes", "dropout_p"):
        with pytest.raises(ValueError, match=re.escape(KEYWORDS[name][1])):
            fa2_func_with_sink(*DENSE, **{name: 0.5})
    with pytest.raises(ValueError, match="flash_attn_with_kvcache takes pages, as page_table"):
        fa2_varlen_func_with_sink(*PACKED, *BY_SEQUENCE, block_table=ENDS)


def test_a_window_that_is_none_may_be_a_list():
    flex_flash_attn_func(*PACKED, [[0, 12]], [[0, 12]], window_size=[-1, -1])
    with pytest.raises(ValueError, match=r"window_size is not supported.*got \(3, 0\); .*mask.sliding_window"):
        flex_flash_attn_func(*PACKED, [[0, 12]], [[0, 12]], window_size=[3, 0])


# ----------------------------------------------------------- the longest length

HINTS = [7, 99, np.int32(7), torch.tensor(7), torch.tensor(8, dtype=torch.int32), np.array(7), None]


@every_varlen
@pytest.mark.parametrize("hint", HINTS)
def test_the_longest_length_is_a_hint(function, inputs, hint):
    hinted = [hint if isinstance(x, int) else x for x in inputs]
    assert torch.equal(function(*hinted, causal=True), function(*inputs, causal=True))


@every_varlen
@pytest.mark.parametrize("hint", [6, np.int64(0), torch.tensor(6)])
def test_a_hint_below_the_longest_length_is_refused(function, inputs, hint):
    for at in (i for i, x in enumerate(inputs) if isinstance(x, int)):
        with pytest.raises(ValueError, match=r"max_seqlen\w* must not be below the longest length, 7, got [06]"):
            function(*inputs[:at], hint, *inputs[at + 1 :])


def test_the_longest_range_is_a_hint_of_flex_too():
    ranges = torch.tensor([[0, 4], [4, 11]])
    for form in (ranges, ranges.tolist(), ranges.numpy()):
        wanted = flex_flash_attn_func(*PACKED, form, form)[0]
        for hint in HINTS:
            for name in ("max_seqlen_q", "max_seqlen_k"):
                assert torch.equal(flex_flash_attn_func(*PACKED, form, form, **{name: hint})[0], wanted)
                with pytest.raises(ValueError, match=f"{name} must not be below the longest length, 7, got 6"):
                    flex_flash_attn_func(*PACKED, form, form, **{name: 6})


def test_lengths_and_hints_that_are_not_on_the_host_are_never_read():
    with torch._subclasses.FakeTensorMode():  # whoever reads a tensor raises
        q, k, v = (torch.empty(12, heads, 8) for heads in (4, 2, 2))
        ends, longest = torch.empty(3, dtype=torch.int32), torch.empty((), dtype=torch.int32)
        assert fa3_varlen_func_with_sink(q, k, v, ends, ends, longest, 3).shape == q.shape
        ranges = torch.empty(2, 2, dtype=torch.int32)
        assert flex_flash_attn_func(q, k, v, ranges, ranges, max_seqlen_q=longest, max_seqlen_k=1)[0].shape == q.shape


# ---------------------------------------------------------- MagiAttention's ways


@pytest.fixture
def _nobody_warned(monkeypatch):
    monkeypatch.setattr(flex_flash, "_has_warned", False)


@pytest.mark.usefixtures("_nobody_warned")
def test_an_int_in_the_sixth_place_is_a_hint_and_warned_of_once():
    wanted = flex_flash_attn_func(*PACKED, [[0, 12]], [[0, 12]])[0]
    with pytest.warns(UserWarning, match="attn_type_map") as caught:
        out = flex_flash_attn_func(*PACKED, [[0, 12]], [[0, 12]], 12)[0]
    assert torch.equal(out, wanted)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flex_flash_attn_func(*PACKED, [[0, 12]], [[0, 12]], 12)


@pytest.mark.usefixtures("_nobody_warned")
def test_nothing_is_warned_of_where_types_are_given_or_the_hint_is_named():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flex_flash_attn_func(*PACKED, [[0, 12]], [[0, 12]], 12, attn_type_map=[1])
        flex_flash_attn_func(*PACKED, [[0, 12]], [[0, 12]], 12, 12, [1])
        flex_flash_attn_func(*PACKED, [[0, 12]], [[0, 12]], None)
        flex_flash_attn_func(*PACKED, [[0, 12]], [[0, 12]], max_seqlen_q=12)
        flex_flash_attn_func(*PACKED, mask.causal(12), None, 12)


@pytest.mark.parametrize("types", [torch.tensor([1]), [1], "causal", AttnMaskType.CAUSAL, ("causal",)])
def test_types_in_the_sixth_place_are_told_where_they_belong(types):
    with pytest.raises(TypeError, match=r"max_seqlen_q must be an int.* attn_type_map by keyword"):
        flex_flash_attn_func(*PACKED, [[0, 12]], [[0, 12]], types)


@pytest.mark.parametrize("name", sorted(flex_flash.HINTS))
def test_hints_of_newer_versions_change_nothing(name):
    wanted = flex_flash_attn_func(*PACKED, [[0, 12]], [[0, 12]])[0]
    for value in (None, True, 64, (64, 128)):
        assert torch.equal(flex_flash_attn_func(*PACKED, [[0, 12]], [[0, 12]], **{name: value})[0], wanted)


def test_other_keywords_are_refused():
    for name in ("index_attn", "index_attn_indices"):
        with pytest.raises(TypeError, match=f"{name} is not supported: .* as slices, q_ranges and k_ranges"):
            flex_flash_attn_func(*PACKED, [[0, 12]], [[0, 12]], **{name: None})
    with pytest.raises(TypeError, match="unexpected keyword argument 'block_sparse'"):
        flex_flash_attn_func(*PACKED, [[0, 12]], [[0, 12]], block_sparse=True)


@pytest.mark.parametrize("k_ranges", [None, [[0, 12]]])
@pytest.mark.parametrize(
    ("q_ranges", "words"),
    [
        (torch.ones(12, 12, dtype=torch.bool), r"got booleans: where a dense mask .* IntervalMask.from_dense\(mask\)"),
        (np.tri(12, dtype=bool), r"got booleans: where a dense mask .* IntervalMask.from_dense\(mask\)"),
        (lambda b, h, q_idx, kv_idx: q_idx >= kv_idx, r"a mask_mod is no mask here; .* IntervalMask.from_function\("),
        (
            create_block_mask(noop_mask, None, None, 12, 12, device="cpu"),
            r"got a BlockMask: cute_attn.flex_attention takes it",
        ),
        (
            type("IntervalMask", (), {"__module__": "other.mask"})(),
            r"another copy .*, other\.mask: make it .* cute_attn",
        ),
        ("causal", r"got 'causal': cute_attn.mask.from_spec\(name, seqlen_q, seqlen_k\) makes a mask"),
    ],
)
def test_what_describes_a_mask_elsewhere_is_told_what_does_here(q_ranges, words, k_ranges):
    with pytest.raises(TypeError, match=f"q_ranges must .*{words}"):
        flex_flash_attn_func(*PACKED, q_ranges, k_ranges)


# ---------------------------------------------------------------------- NumPy


def test_arrays_and_their_numbers_stand_for_lists_and_ints():
    pairs, types = np.array([[0, 5], [5, 12]], dtype=np.int32), np.array([1, 0])
    wanted, lse = flex_flash_attn_func(*PACKED, pairs.tolist(), pairs.tolist(), attn_type_map=[1, 0], softcap=2.0)
    fixed = pairs.copy()
    fixed.flags.writeable = False
    for form in (pairs, pairs[::-1].copy()[::-1], pairs.astype(np.uint16), fixed, list(pairs), list(map(tuple, pairs))):
        got = flex_flash_attn_func(
            *PACKED, form, form, attn_type_map=types, softcap=np.float32(2.0), sm_margin=np.int64(0)
        )
        assert torch.equal(got[0], wanted)
        assert torch.equal(got[1], lse)
    names = np.array(["causal", "full"])
    assert torch.equal(flex_flash_attn_func(*PACKED, pairs, pairs, attn_type_map=names, softcap=2.0)[0], wanted)
    one = flex_flash_attn_func(*PACKED, pairs, pairs, attn_type_map=np.int64(1))[0]
    assert torch.equal(one, flex_flash_attn_func(*PACKED, pairs, pairs, attn_type_map=1)[0])


def test_scalars_of_numpy_are_numbers():
    scale = np.float64(0.3)
    wanted = fa3_func_with_sink(*DENSE, softmax_scale=0.3)
    assert torch.equal(fa3_func_with_sink(*DENSE, softmax_scale=scale), wanted)
    assert torch.equal(fa3_func_with_sink(*DENSE, softmax_scale=10**30), fa3_func_with_sink(*DENSE, softmax_scale=1e30))
    heads = fa3_qkvpacked_func_with_sink(QKV.flatten(2, 3), num_heads_q=np.int8(4), sm_margin=np.uint8(3))
    assert_close("out", heads, fa3_qkvpacked_func_with_sink(QKV.flatten(2, 3)), 0.0)
