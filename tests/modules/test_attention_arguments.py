"""What AttentionOp refuses, and how it says so; the module as an object."""

import copy
import inspect
import pickle
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import cute_attn
from cute_attn import AttentionOp, AttentionType, KVQuant, backend


def test_the_signatures_are_the_documented_ones():
    assert str(inspect.signature(AttentionOp.forward)).replace("'", "").partition(" ->")[0] == (
        "(self, query: Tensor, key: Tensor | KVTensor | None, value: Tensor | KVTensor | None, "
        "decoder_segment_ids: Tensor | None = None, inputs_positions: Tensor | None = None, model_mode: str = TRAIN, "
        "cached_values: Any = None, previous_chunk: Tensor | int | None = None, "
        "bidirectional_mask: Tensor | None = None, sinks: Tensor | None = None, indexer_mask: Tensor | None = None, "
        "slot: None = None, page_state: Any = None, record_max_logits: bool = False)"
    ).replace("TRAIN", "train")
    wanted = """query key value decoder_segment_ids segment_positions lengths model_mode use_ragged_attention
        previous_chunk bidirectional_mask sinks indexer_mask record_max_logits"""
    assert list(inspect.signature(AttentionOp.apply_attention).parameters)[1:] == wanted.split()


OPTIONS = {
    "attention_type": "local_sliding",
    "attn_logits_soft_cap": 3.0,
    "sliding_window_size": 4,
    "moba_chunk_size": 2,
    "moba_topk": 2,
    "scale": 0.5,
    "kv_quant": KVQuant("fp8"),
}


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_the_module_give_the_same(again):
    op = AttentionOp(4, 2, **OPTIONS)
    other = again(op)
    q, k, v = (torch.randn(1, 9, h, 8) for h in (4, 2, 2))
    assert torch.equal(op(q, k, v), other(q, k, v))
    assert repr(other) == repr(op)


def test_the_module_has_no_state_and_says_what_it_is():
    op = AttentionOp(4, 2, **OPTIONS)
    assert op.state_dict() == {}
    op.load_state_dict({})
    assert list(op.parameters()) == []
    assert repr(op) == (
        "AttentionOp(4, 2, attention_type='local_sliding', attn_logits_soft_cap=3.0, sliding_window_size=4, "
        "moba_chunk_size=2, moba_topk=2, scale=0.5, kv_quant=KVQuant(dtype='fp8', axis='dkv'))"
    )
    assert repr(AttentionOp(2, 1)) == "AttentionOp(2, 1, attention_type='global')"
    assert AttentionOp(2, 1, attention_type=AttentionType.FULL).attention_type is AttentionType.FULL


def test_sizes_of_other_types_are_not_looked_at():
    q, k, v = (torch.randn(1, 9, 1, 8) for _ in range(3))
    plain = AttentionOp(1, 1)(q, k, v)
    odd = AttentionOp(1, 1, sliding_window_size=0, chunk_attn_window_size=-3, attn_logits_soft_cap=0)
    assert torch.equal(odd(q, k, v), plain)


def test_no_attribute_is_set_by_a_call():
    op = AttentionOp(1, 1)
    before = dict(vars(op))
    x = torch.randn(1, 9, 1, 8)
    op(x, x, x, record_max_logits=True)
    assert vars(op) == before


BAD_OPTIONS = [
    ({"num_query_heads": 0}, ValueError, "num_query_heads must be positive, got 0"),
    ({"num_query_heads": 2.0}, TypeError, "num_query_heads must be an int, got 2.0"),
    ({"num_query_heads": 3}, ValueError, "num_query_heads must be a multiple of num_kv_heads = 2, got 3"),
    ({"attention_type": "local"}, ValueError, "attention_type must be an AttentionType or one of 'global', .*'local'"),
    ({"attention_type": 3}, TypeError, "attention_type must be an AttentionType or one of"),
    ({"attention_type": "local_sliding"}, ValueError, "sliding_window_size must be set for attention_type"),
    (
        {"attention_type": "local_sliding", "sliding_window_size": 0},
        ValueError,
        "sliding_window_size must be positive, got 0",
    ),
    ({"attention_type": "chunk"}, ValueError, "chunk_attn_window_size must be set for attention_type"),
    ({"attention_type": "chunk", "chunk_attn_window_size": 0}, ValueError, "chunk_size must be positive, got 0"),
    ({"attention_type": "chunk", "chunk_attn_window_size": -2}, ValueError, "chunk_size must be positive, got -2"),
    ({"attn_logits_soft_cap": -1.0}, ValueError, "attn_logits_soft_cap must be >= 0"),
    ({"attn_logits_soft_cap": "1"}, TypeError, "attn_logits_soft_cap must be a number, got '1'"),
    ({"attn_logits_soft_cap": float("nan")}, ValueError, "attn_logits_soft_cap must be finite"),
    ({"moba_topk": 3}, ValueError, "moba_chunk_size and moba_topk must both be set or both be None, got None and 3"),
    ({"moba_topk": 3, "moba_chunk_size": 0}, ValueError, "moba_chunk_size must be positive, got 0"),
    ({"moba_topk": 0, "moba_chunk_size": 4}, ValueError, "moba_topk must be positive, got 0"),
    ({"scale": None}, TypeError, "scale must be a number, got None"),
    ({"scale": "1"}, TypeError, "^scale must be a number, got '1'"),
    ({"scale": float("inf")}, ValueError, "^scale must be finite"),
    ({"kv_quant": "int8"}, TypeError, "kv_quant must be None or a KVQuant, got 'int8'"),
    ({"use_ragged_attention": 1}, TypeError, "use_ragged_attention must be True or False"),
    ({"ragged_block_size": 0}, ValueError, "ragged_block_size must be positive, got 0"),
    ({"dropout_rate": 0.1}, ValueError, "dropout_rate is not supported: it must be 0, got 0.1"),
    ({"dropout_rate": None}, TypeError, "dropout_rate must be 0, got None"),
]


@pytest.mark.parametrize(("options", "error", "words"), BAD_OPTIONS)
def test_bad_options_are_named(options, error, words):
    heads = {"num_query_heads": 4, "num_kv_heads": 2}
    with pytest.raises(error, match=words):
        AttentionOp(**heads | options)


B, T, H, HK, D = 2, 6, 4, 2, 8
IDS = torch.ones(B, T, dtype=torch.int64)
Q, K = torch.randn(B, T, H, D), torch.randn(B, T, HK, D)
PROMPT, DECODED = (K, K, None), (K, K, None, None)
AR = "autoregressive"
PAGES = SimpleNamespace(page_map=torch.zeros(B, 2).int(), sequence_lengths=torch.ones(B).int())
BAD_CALLS = [
    ({"query": 3}, TypeError, "query must be a torch.Tensor, got 3"),
    ({"key": None}, TypeError, "key must be a torch.Tensor or a KVTensor, got None"),
    ({"key": K.int()}, TypeError, "key must be bfloat16, float16, float32 or float64, got torch.int32"),
    ({"value": K.double()}, TypeError, "value must have the dtype of query, torch.float32, got torch.float64"),
    ({"query": Q[0]}, ValueError, r"query must have shape \(batch, length, heads, head_dim\), got \(6, 4, 8\)"),
    ({"key": K[:1]}, ValueError, "key must have the batch size of query, 2, got 1"),
    ({"value": K[:, 1:]}, ValueError, r"value must have the length and heads of key, \(6, 2\), got \(5, 2\)"),
    ({"key": K[..., 1:]}, ValueError, "key must have the head_dim of query, 8, got 7"),
    ({"query": K}, ValueError, "query must have num_query_heads = 4 heads, got 2"),
    ({"key": Q, "value": Q}, ValueError, "key must have num_kv_heads = 2 heads, got 4"),
    ({"value": K.to("meta")}, ValueError, "value must be on the device of query, cpu, got meta"),
    ({"decoder_segment_ids": IDS.float()}, TypeError, "decoder_segment_ids must hold integers, got torch.float32"),
    ({"decoder_segment_ids": IDS[:, 1:]}, ValueError, r"decoder_segment_ids must have shape \(2, 6\)"),
    ({"decoder_segment_ids": [1]}, TypeError, "decoder_segment_ids must be None or an integer tensor"),
    ({"decoder_segment_ids": IDS, "previous_chunk": 1}, ValueError, "decoder_segment_ids must cover every query"),
    ({"bidirectional_mask": IDS, "previous_chunk": 1}, ValueError, "bidirectional_mask must cover every query"),
    ({"bidirectional_mask": 2 * IDS}, ValueError, "bidirectional_mask must hold zeros and ones"),
    ({"bidirectional_mask": IDS[:1]}, ValueError, r"bidirectional_mask must have shape \(2, 6\)"),
    ({"model_mode": "decode"}, ValueError, "model_mode must be 'train', 'prefill' or 'autoregressive', got 'decode'"),
    ({"model_mode": None}, TypeError, "model_mode must be 'train', 'prefill' or 'autoregressive'"),
    ({"previous_chunk": -1}, ValueError, "previous_chunk must be >= 0, got -1"),
    ({"previous_chunk": 1.0}, TypeError, "previous_chunk must be an int, got 1.0"),
    ({"previous_chunk": IDS[0]}, ValueError, r"previous_chunk must be an int or have shape \(2, p, ...\), got \(6,\)"),
    ({"sinks": torch.zeros(HK)}, ValueError, r"sinks must have shape \(4,\), one for each query head, got \(2,\)"),
    ({"sinks": torch.zeros(H).int()}, TypeError, "sinks must be bfloat16, float16, float32 or float64"),
    ({"sinks": 1.0}, TypeError, "sinks must be None or a torch.Tensor"),
    ({"indexer_mask": torch.ones(B, T, T + 1)}, ValueError, r"indexer_mask must have shape \(2, 6, 6\)"),
    ({"indexer_mask": True}, TypeError, "indexer_mask must be None or a tensor"),
    ({"indexer_mask": torch.ones(B, T, T).byte()}, TypeError, "indexer_mask must hold bools, floating .* torch.uint8"),
    ({"slot": 0}, ValueError, "slot is not supported: it must be None, got 0"),
    (
        {"page_state": SimpleNamespace(page_map=IDS)},
        TypeError,
        "page_state must be None or have page_map and sequence_lengths, two tensors",
    ),
    ({"page_state": PAGES}, ValueError, "page_state must be None in model_mode 'train'"),
    ({"page_state": PAGES, "model_mode": AR}, ValueError, r"cached_values must be \[\(key, value, None\), None\] with"),
    (
        {"page_state": PAGES, "model_mode": AR, "cached_values": [(K, K, IDS), None]},
        ValueError,
        r"cached_values must be \[\(key, value, None\), None\] with page_state",
    ),
    (
        {"page_state": PAGES, "model_mode": AR, "cached_values": [(Q, Q, None), None]},
        ValueError,
        r"key of cached_values\[0\] must have num_kv_heads = 2 heads, got 4",
    ),
    (
        {"page_state": PAGES, "model_mode": AR, "cached_values": [PROMPT, None], "indexer_mask": IDS},
        NotImplementedError,
        "indexer_mask is not supported with page_state; gather the pages",
    ),
    (
        {"page_state": PAGES, "model_mode": AR, "cached_values": [PROMPT, None], "record_max_logits": True},
        NotImplementedError,
        "record_max_logits is not supported with page_state; gather the pages",
    ),
    ({"record_max_logits": 1}, TypeError, "record_max_logits must be True or False"),
    ({"cached_values": [PROMPT, None]}, ValueError, "cached_values must be None in model_mode 'train', got a cache"),
    ({"model_mode": AR, "cached_values": PROMPT}, TypeError, "cached_values must be None or a list of two caches"),
    ({"model_mode": AR, "cached_values": [K, None]}, TypeError, r"cached_values\[0\] must be None or \(key, value"),
    (
        {"model_mode": AR, "cached_values": [PROMPT, PROMPT]},
        TypeError,
        r"cached_values\[1\] must be None or \(key, value, segment_ids, lengths\), got 3 entries",
    ),
    ({"model_mode": AR, "cached_values": [None, DECODED]}, ValueError, r"cached_values\[0\] must be a cache where"),
    ({"model_mode": "prefill", "cached_values": [PROMPT, DECODED]}, ValueError, r"cached_values\[1\] must be None in"),
    (
        {"model_mode": AR, "cached_values": [(K, K, torch.tensor([[0, 1] * 3] * B)), DECODED]},
        ValueError,
        r"segment ids of cached_values\[0\] must begin with all their ones",
    ),
    (
        {"model_mode": AR, "cached_values": [PROMPT, (K, K, torch.tensor([[0, 1] * 3] * B), None)]},
        ValueError,
        r"segment ids of cached_values\[1\], without lengths, must begin with all their ones",
    ),
    (
        {"model_mode": AR, "cached_values": [PROMPT, (K, K, None, torch.tensor([3, 7]))]},
        ValueError,
        r"lengths must be in \[0, 6\], as long as the cache is, got \[3, 7\]",
    ),
    (
        {"model_mode": AR, "cached_values": [PROMPT, (K, K, None, -1)]},
        ValueError,
        r"lengths of cached_values\[1\] must be in \[0, 6\], as long as the cache is, got -1",
    ),
    (
        {"model_mode": AR, "cached_values": [PROMPT, (K, K, None, torch.tensor([1.0, 2.0]))]},
        TypeError,
        r"lengths of cached_values\[1\] must hold integers",
    ),
    (
        {"model_mode": AR, "cached_values": [PROMPT, (K, K[..., 1:], None, None)]},
        ValueError,
        "the values of cached_values must have one head_dim, got 8 and 7",
    ),
    (
        {"model_mode": AR, "cached_values": [PROMPT, (K.half(), K, None, None)]},
        TypeError,
        r"key of cached_values\[1\] must have the dtype of query",
    ),
    ({"model_mode": AR, "bidirectional_mask": IDS}, ValueError, "bidirectional_mask must be None in model_mode"),
    ({"model_mode": AR, "previous_chunk": 1}, ValueError, "previous_chunk must be None in model_mode"),
    (
        {"model_mode": AR, "cached_values": [PROMPT, DECODED], "bidirectional_mask": IDS},
        ValueError,
        "bidirectional_mask must be None in model_mode",
    ),
]


@pytest.mark.parametrize(("arguments", "error", "words"), BAD_CALLS)
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        AttentionOp(H, HK)(**{"query": Q, "key": K, "value": K} | arguments)


def test_bad_arguments_of_partial_results_are_named():
    op = AttentionOp(H, HK)
    with pytest.raises(ValueError, match="lengths must be None in model_mode 'train'"):
        op.apply_attention(Q, K, K, lengths=3)
    with pytest.raises(ValueError, match=r"lengths must be in \[0, 6\]"):
        op.apply_attention(Q, K, K, lengths=torch.tensor([3, 7]), model_mode=AR)
    with pytest.raises(TypeError, match="use_ragged_attention must be True or False"):
        op.apply_attention(Q, K, K, use_ragged_attention=None)


POOL = torch.randn(5, 4, HK, D)
BAD_PAGES = [
    ({"page_map": torch.zeros(B, 2)}, TypeError, "page_map of page_state must hold integers, got torch.float32"),
    ({"sequence_lengths": torch.ones(B) / 2}, TypeError, "sequence_lengths of page_state must hold integers"),
    ({"page_map": torch.full((B, 2), 2**32)}, ValueError, r"page_map of page_state must name a page in \[0, 5\)"),
    ({"page_map": torch.full((B, 2), -1)}, ValueError, r"page_map of page_state must name a page in \[0, 5\)"),
    ({"page_map": torch.zeros(B).long()}, ValueError, r"page_map of page_state must have shape \(2, max_pages\)"),
    ({"sequence_lengths": torch.full((B,), 2**32)}, ValueError, r"sequence_lengths of page_state must lie in \[0, 8\]"),
    ({"sequence_lengths": torch.tensor([1, 9])}, ValueError, r"sequence_lengths of page_state .*\[0, 8\], .* got 9"),
    ({"sequence_lengths": torch.tensor([1])}, ValueError, r"sequence_lengths of page_state must have shape \(2,\)"),
    ({"query": Q[0]}, ValueError, r"query must have shape \(batch, length, heads, head_dim\), got \(6, 4, 8\)"),
    ({"query": Q.int()}, TypeError, "query must be bfloat16, float16, float32 or float64, got torch.int32"),
    ({"query": Q.clone().requires_grad_()}, ValueError, "query must not require a gradient"),
    ({"sinks": torch.zeros(H, requires_grad=True)}, ValueError, "sinks must not require a gradient"),
    ({"key": POOL.char()}, TypeError, r"key of cached_values\[0\] must have the dtype of query, .* or be a KVTensor"),
    ({"value": POOL[0]}, ValueError, r"value of cached_values\[0\] must have shape \(batch, length"),
    ({"value": POOL[:, :, :1]}, ValueError, r"key of cached_values\[0\] and value of cached_values\[0\] must differ"),
    ({"key": KVQuant("int8").quantize(POOL)}, TypeError, r"key of cached_values\[0\] and .* must have one dtype"),
]


@pytest.mark.parametrize(("changed", "error", "words"), BAD_PAGES)
def test_bad_pages_are_named_as_the_layer_has_them(changed, error, words):
    right = {"page_map": torch.tensor([[0, 1], [2, 3]]), "sequence_lengths": torch.tensor([3, 6])}
    x = right | {"query": Q, "key": POOL, "value": POOL, "sinks": None}
    assert {*changed} < {*x}
    for arguments, refused in ((x, False), (x | changed, True)):
        state = SimpleNamespace(page_map=arguments["page_map"], sequence_lengths=arguments["sequence_lengths"])
        cached = [(arguments["key"], arguments["value"], None), None]
        options = {"model_mode": AR, "cached_values": cached, "page_state": state, "sinks": arguments["sinks"]}
        with pytest.raises(error, match=words) if refused else nullcontext():
            AttentionOp(H, HK)(arguments["query"], None, None, **options)


def test_lengths_of_a_quantised_cache_on_kernels_are_named_as_the_layer_has_them():
    op, small = AttentionOp(H, HK), KVQuant("int8").quantize(K.bfloat16())
    with backend("sim"), pytest.raises(ValueError, match=r"^lengths must lie in \[0, 6\], the capacity, got 7"):
        op.apply_attention(Q.bfloat16(), small, small, lengths=torch.tensor([3, 7]), model_mode=AR)


def test_a_length_may_be_an_int_of_numpy():
    op = AttentionOp(H, HK)
    one, other = (op(Q, None, None, model_mode=AR, cached_values=[PROMPT, (K, K, None, n)]) for n in (3, np.int64(3)))
    assert torch.equal(one, other)


def test_moba_over_two_lists_of_keys_is_refused():
    op = AttentionOp(H, HK, moba_chunk_size=2, moba_topk=2)
    with pytest.raises(ValueError, match="moba_chunk_size must be None with two caches in cached_values"):
        op(Q, None, None, model_mode=AR, cached_values=[PROMPT, DECODED])
    with pytest.raises(ValueError, match="moba_chunk_size must be None with lengths"):
        op.apply_attention(Q, K, K, lengths=3, model_mode=AR)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("attention_type 'chunk'", {"attention_type": "chunk", "chunk_attn_window_size": 4}),
        ("moba_chunk_size", {"moba_chunk_size": 2, "moba_topk": 2}),
    ],
)
def test_layers_that_pages_do_not_serve_are_refused(name, options):
    with pytest.raises(NotImplementedError, match=f"{name} is not supported with page_state; gather the pages"):
        AttentionOp(H, HK, **options)(Q, None, None, model_mode=AR, cached_values=[PROMPT, None], page_state=PAGES)


def test_a_cache_quantised_otherwise_than_the_module_says_is_refused():
    op = AttentionOp(H, HK, kv_quant=KVQuant("int8"))
    other = KVQuant("fp8").quantize(K)
    with pytest.raises(TypeError, match=r"key must be quantised as kv_quant says, torch.int8, got torch.float8_e4m3fn"):
        op(Q, other, other)


def test_kernels_refuse_quantised_keys_and_say_what_a_copy_costs():
    op, small = AttentionOp(H, HK), KVQuant("int8").quantize(K.bfloat16())
    words = r"backend 'sim' does not read a KVTensor, got one as key: .* copy of it of 384 bytes .* key.dequant"
    with backend("sim"), pytest.raises(NotImplementedError, match=words):
        op(Q.bfloat16(), small, small)


def test_the_names_are_those_of_the_package():
    assert cute_attn.modules.__all__ == sorted(cute_attn.modules.__all__, key=lambda name: (name.islower(), name))
    for name in cute_attn.modules.__all__:
        assert getattr(cute_attn, name) is getattr(cute_attn.modules, name)
        assert name in cute_attn.__all__
