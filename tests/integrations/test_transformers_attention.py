"""What the attention of a layer takes, what it refuses, and what it calls."""

from types import SimpleNamespace

import pytest
import torch
from transformers.masking_utils import and_masks, causal_mask_function, sliding_window_causal_mask_function

import cute_attn
from cute_attn import IntervalMask
from cute_attn.integrations.transformers import token
from cute_attn.integrations.transformers.attention import attention_forward
from cute_attn.integrations.transformers.masks import layer_mask

BATCH, HEADS, KEY_HEADS, TOKENS, DIM = 2, 4, 2, 9, 8
LAYER = SimpleNamespace(is_causal=True)


def tensors(rows=TOKENS, keys=TOKENS, **options):
    options = {"dtype": torch.float64, **options}
    q = torch.randn(BATCH, HEADS, rows, DIM, **options)
    return q, *(torch.randn(BATCH, KEY_HEADS, keys, DIM, **options) for _ in range(2))


def dense(q, k, v, seen, sinks=None, softcap=None, scaling=DIM**-0.5):
    """`(batch, rows, heads, dim)` by the formula; seen: bool that goes with (batch, heads, rows, keys)."""
    k, v = (x.repeat_interleave(HEADS // KEY_HEADS, 1) for x in (k, v))
    scores = q @ k.mT * scaling
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], 3)
    weights = scores.softmax(3).nan_to_num()
    return (weights[..., : k.shape[2]] @ v).transpose(1, 2)


def check(inputs, mask, seen, **options):
    out, weights = attention_forward(LAYER, *inputs, mask, **options)
    assert weights is None
    assert out.is_contiguous()
    expected = {name: options[name] for name in ("softcap", "scaling") if name in options}
    torch.testing.assert_close(out, dense(*inputs, seen, options.get("s_aux"), **expected))


CAUSAL = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()


def test_a_layer_without_a_mask_is_causal_if_it_says_so():
    inputs = tensors()
    check(inputs, None, CAUSAL)
    check(inputs, None, CAUSAL, is_causal=True)
    check(inputs, None, torch.ones_like(CAUSAL), is_causal=False)
    check(inputs, None, CAUSAL & ~CAUSAL.tril(-3), sliding_window=3)
    check(tensors(rows=1), None, torch.ones(1, TOKENS, dtype=torch.bool))
    check(tensors(rows=1), None, torch.arange(TOKENS)[None] >= TOKENS - 3, sliding_window=3)
    with pytest.raises(ValueError, match="attention_mask must say which keys"):
        attention_forward(LAYER, *tensors(rows=3), None)


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_one_token_goes_to_the_cache_and_to_the_packed_attention_where_a_gradient_is_asked_for(
    padded, with_sinks, softcap, monkeypatch
):
    calls = []
    cached = token.flash_attn_with_kvcache
    monkeypatch.setattr(token, "flash_attn_with_kvcache", lambda *a, **k: calls.append(k) or cached(*a, **k))
    padding = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    if padded:
        padding[0, :4], padding[1, 2] = False, False
    inputs = tensors(rows=1)
    options = {"softcap": softcap, "s_aux": torch.randn(HEADS, dtype=torch.float64) if with_sinks else None}
    mask = layer_mask(BATCH, 1, TOKENS, q_offset=6, attention_mask=padding)
    seen = (padding & (torch.arange(TOKENS) < 7))[:, None, None]
    check(inputs, mask, seen, **options)
    assert len(calls) == 1
    assert ("page_table" in calls[0]) == padded
    inputs[1].requires_grad_()
    check(inputs, mask, seen, **options)
    assert len(calls) == 1
    with torch.no_grad():
        check(inputs, mask, seen, **options)
    assert len(calls) == 2


@pytest.mark.parametrize("layout", ["heads first", "tokens first", "part of more", "odd strides"])
def test_the_cache_of_one_token_is_read_where_it_lies(layout):
    def cache():
        if layout == "tokens first":
            return torch.randn(BATCH, TOKENS, KEY_HEADS, DIM).transpose(1, 2)
        if layout == "part of more":
            return torch.randn(BATCH, KEY_HEADS, TOKENS + 5, DIM)[:, :, :TOKENS]
        if layout == "odd strides":
            return torch.randn(BATCH * KEY_HEADS * TOKENS * DIM + 3).as_strided(
                (BATCH, KEY_HEADS, TOKENS, DIM), (KEY_HEADS * TOKENS * DIM + 3, TOKENS * DIM, DIM, 1)
            )
        return torch.randn(BATCH, KEY_HEADS, TOKENS, DIM)

    padding = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    padding[1, :4] = False
    mask = layer_mask(BATCH, 1, TOKENS, q_offset=TOKENS - 1, attention_mask=padding)
    q = torch.randn(BATCH, HEADS, 1, DIM)
    check((q, cache(), cache()), mask, padding[:, None, None])
    if layout != "odd strides":
        pool, _ = token._pool(x := cache())
        assert pool.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


def test_key_and_value_of_unlike_strides_are_one_cache():
    padding = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    padding[1, :4] = False
    mask = layer_mask(BATCH, 1, TOKENS, q_offset=TOKENS - 1, attention_mask=padding)
    q, key = torch.randn(BATCH, HEADS, 1, DIM), torch.randn(BATCH, KEY_HEADS, TOKENS + 5, DIM)[:, :, :TOKENS]
    check((q, key, torch.randn(BATCH, KEY_HEADS, TOKENS, DIM)), mask, padding[:, None, None])


def test_masks_of_users_are_taken():
    inputs = tensors()
    holes = CAUSAL & (torch.rand(BATCH, 1, TOKENS, TOKENS) < 0.6)
    check(inputs, holes, holes)
    check(inputs, IntervalMask.from_dense(holes[:, 0]), holes)
    check(inputs, cute_attn.create_block_mask(causal_mask_function, None, None, TOKENS, TOKENS, "cpu"), CAUSAL)
    heads = CAUSAL & (torch.rand(1, HEADS, TOKENS, TOKENS) < 0.6)
    check(inputs, heads, heads)


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_a_mask_that_is_no_intervals_goes_to_flex_attention(softcap):
    function = and_masks(causal_mask_function, lambda b, h, q, kv: (q * kv) % 3 != 1)
    row, column = torch.arange(TOKENS)[:, None], torch.arange(TOKENS)
    mask = layer_mask(BATCH, TOKENS, TOKENS, mask_function=function)
    check(tensors(), mask, CAUSAL & ((row * column) % 3 != 1), softcap=softcap, scaling=0.4)
    with pytest.raises(NotImplementedError, match="s_aux"):
        attention_forward(LAYER, *tensors(), mask, s_aux=torch.zeros(HEADS))


def test_gradients_reach_the_sinks_in_their_dtype():
    inputs = tensors()
    sinks = torch.randn(HEADS, dtype=torch.bfloat16, requires_grad=True)
    mask = layer_mask(BATCH, TOKENS, TOKENS, mask_function=sliding_window_causal_mask_function(3))
    out, _ = attention_forward(LAYER, *inputs, mask, s_aux=sinks)
    out.sum().backward()
    same = sinks.detach().double().requires_grad_()
    dense(*inputs, CAUSAL & ~CAUSAL.tril(-3), same).sum().backward()
    torch.testing.assert_close(sinks.grad.double(), same.grad, rtol=2**-8, atol=1e-6)  # one rounding to bf16


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"dropout": 0.1}, ValueError, "dropout must be 0, got 0.1: set attention_dropout=0.0"),
        ({"output_attentions": True}, ValueError, "output_attentions is not supported.*eager"),
        ({"position_bias": torch.zeros(1)}, ValueError, "position_bias is not supported.*score_mod"),
        ({"cu_seq_lens_q": torch.tensor([0, 9])}, ValueError, "cu_seq_lens_q is not supported.*position_ids"),
        ({"block_table": torch.zeros(1)}, ValueError, "block_table is not supported.*continuous batching"),
        ({"sliding_window": 3, "is_causal": False}, ValueError, "not causal.*got None and sliding_window=3"),
        ({"sliding_window": 0}, ValueError, "sliding_window must be"),
        ({"sliding_window": -1}, ValueError, "sliding_window must be"),
        ({"scaling": "x"}, TypeError, "scaling must be a number"),
        ({"softcap": -1.0}, ValueError, "softcap must be >= 0"),
        ({"s_aux": torch.zeros(3)}, ValueError, "sink of layout 'sh' must have shape"),
    ],
)
def test_what_there_is_none_of_is_refused(options, error, sentence):
    with pytest.raises(error, match=sentence):
        attention_forward(LAYER, *tensors(), None, **options)


@pytest.mark.parametrize(
    "mask", [torch.zeros(BATCH, 1, TOKENS, TOKENS), torch.ones(BATCH, TOKENS, dtype=torch.bool), "causal"]
)
def test_other_masks_are_refused(mask):
    with pytest.raises(TypeError, match="attention_mask must be bool"):
        attention_forward(LAYER, *tensors(), mask)


def test_a_mask_of_other_lengths_is_refused():
    with pytest.raises(ValueError, match="attention_mask must be an IntervalMask"):
        attention_forward(LAYER, *tensors(), layer_mask(BATCH, TOKENS, TOKENS + 1))
    for rows, keys in ((1, TOKENS + 1), (2, TOKENS)):
        with pytest.raises(ValueError, match=f"of 2 sequences, {rows} queries and {keys} keys, got one of 2, 1 and 9"):
            attention_forward(LAYER, *tensors(rows, keys), layer_mask(BATCH, 1, TOKENS, q_offset=8))
