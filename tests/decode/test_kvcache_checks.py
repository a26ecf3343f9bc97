# ruff: noqa: E501 (a table of refusals, one a line)
"""Every refusal of flash_attn_with_kvcache names the argument, what came and what is allowed."""

import numpy as np
import pytest
import torch

from cute_attn import flash_attn_with_kvcache
from cute_attn.mask import causal

INT32 = torch.int32


def paged(**changed):
    """A call that is right, but for what is changed; None takes an argument out."""
    arguments = {
        "q": torch.randn(2, 3, 4, 8),
        "k_cache": torch.randn(5, 16, 2, 8),
        "v_cache": torch.randn(5, 16, 2, 24),
        "cache_seqlens": torch.tensor([3, 20], dtype=INT32),
        "page_table": torch.tensor([[1, -1], [0, 4]], dtype=INT32),
    } | changed
    return flash_attn_with_kvcache(**{name: x for name, x in arguments.items() if x is not None})


def eight(**changed):
    return paged(
        k_cache=torch.zeros(5, 16, 2, 8, dtype=torch.int8),
        v_cache=torch.zeros(5, 16, 2, 24, dtype=torch.int8),
        **changed,
    )


def rows(**changed):
    return paged(
        page_table=None, **{"k_cache": torch.randn(2, 40, 2, 8), "v_cache": torch.randn(2, 40, 2, 24)} | changed
    )


def new(n=2, heads=2, d=8, dv=24):
    return {"k": torch.randn(2, n, heads, d), "v": torch.randn(2, n, heads, dv)}


def ints(*values):
    return torch.tensor(values, dtype=INT32)


def test_the_calls_that_the_refusals_start_from_are_right():
    assert paged().shape == eight().shape == rows().shape == (2, 3, 4, 24)
    assert rows(**new(), cache_seqlens=np.int32(38), num_splits=np.int64(2)).shape == (2, 3, 4, 24)
    assert paged(rotary_interleaved=False, pack_gqa=True, max_seqlen_q=None, attention_chunk=0).shape == (2, 3, 4, 24)


BAD = [
    (paged, {"q": 3}, TypeError, "q must be a torch.Tensor, got 3 of type int"),
    (paged, {"q": torch.ones(2, 3, 4, 8, dtype=INT32)}, TypeError, "q must be bfloat16, .* got torch.int32"),
    (paged, {"q": torch.ones(2, 3, 8)}, ValueError, r"q must have shape \(batch, tokens, heads_q, head_dim\), got"),
    (paged, {"k_cache": torch.ones(5, 16, 8)}, ValueError, r"k_cache must have shape \(num_pages, page_size, heads_k, .* got"),
    (rows, {"v_cache": torch.ones(5, 16, 8)}, ValueError, r"v_cache must have shape \(batch, seqlen, heads_k, .* got"),
    (paged, {"k_cache": torch.ones(5, 16, 2, 8).half()}, TypeError, "k_cache must have the dtype of q, .* got torch.float16"),
    (paged, {"v_cache": torch.ones(5, 16, 2, 24).char()}, TypeError, "k_cache and v_cache must have one dtype"),
    (paged, {"v_cache": torch.ones(5, 8, 2, 24)}, ValueError, "k_cache and v_cache must differ in head_dim alone"),
    (paged, {"k_cache": torch.ones(5, 16, 2, 9)}, ValueError, "k_cache must have the head_dim of q, 8, .* got 9 and 24"),
    (paged, {"q": torch.ones(2, 3, 5, 8)}, ValueError, "multiple of the heads of k_cache .* heads_q = 5 and heads_k = 2"),
    (paged, {"k_cache": torch.ones(5, 0, 2, 8), "v_cache": torch.ones(5, 0, 2, 8)}, ValueError, "page_size of at least 1, got 0"),
    (rows, {"k_cache": torch.ones(3, 40, 2, 8), "v_cache": torch.ones(3, 40, 2, 8)}, ValueError, "k_cache must have the batch of q, 2, unless"),
    (rows, {"k": torch.ones(2, 1, 2, 8)}, ValueError, "v must be given with k"),
    (rows, {"v": torch.ones(2, 1, 2, 8)}, ValueError, "k must be given with v"),
    (rows, new(heads=1), ValueError, r"k must have shape \(2, new tokens, 2, 8\), got \(2, 2, 1, 8\)"),
    (rows, new(dv=8), ValueError, r"v must have shape \(2, new tokens, 2, 24\), got"),
    (rows, new() | {"v": torch.ones(2, 1, 2, 24)}, ValueError, "k and v must have one number of tokens, got 2 and 1"),
    (rows, {n: x.half() for n, x in new().items()}, TypeError, "k must have the dtype of q, torch.float32, got torch.float16"),
    (rows, new() | {"cache_seqlens": None}, ValueError, "cache_seqlens must be given with k, got None"),
    (paged, {"cache_seqlens": None}, ValueError, "cache_seqlens must be given with page_table, got None"),
    (paged, {"cache_seqlens": 2.0}, TypeError, r"cache_seqlens must be an int or an int32 tensor .* got 2.0"),
    (paged, {"cache_seqlens": True}, TypeError, r"cache_seqlens must be an int or an int32 tensor .* got True"),
    (paged, {"cache_seqlens": -1}, ValueError, "cache_seqlens must be >= 0 and below 2.31, got -1"),
    (paged, {"cache_seqlens": 33}, ValueError, "cache_seqlens must be at most the capacity, 32, got 33"),
    (paged, {"cache_seqlens": torch.tensor([1, 2])}, TypeError, "cache_seqlens must be int32, got torch.int64"),
    (paged, {"cache_seqlens": ints(1)}, ValueError, r"cache_seqlens must have shape \(2,\), got \(1,\)"),
    (paged, {"cache_seqlens": ints(1, 33)}, ValueError, r"cache_seqlens must lie in \[0, 32\], the capacity, got 33"),
    (paged, {"cache_seqlens": ints(-2, 3)}, ValueError, r"cache_seqlens must lie in \[0, 32\], the capacity, got -2"),
    (rows, new() | {"cache_seqlens": ints(1, 39)}, ValueError, r"cache_seqlens and the 2 new tokens must lie in \[0, 40\], .* got 41"),
    (rows, new() | {"cache_seqlens": 39}, ValueError, r"cache_seqlens and the 2 new tokens must be at most the capacity, 40, got 41"),
    (paged, {"page_table": torch.tensor([[1], [0]])}, TypeError, "page_table must be int32, got torch.int64"),
    (paged, {"page_table": ints(1, 2)}, ValueError, r"page_table must have shape \(2, max_pages\), got \(2,\)"),
    (paged, {"page_table": ints(1, -1, 0, -1).view(2, 2)}, ValueError, r"page_table must name a page in \[0, 5\) .* got -1 for entry 1 of sequence 1"),
    (paged, {"page_table": ints(5, -1, 0, 1).view(2, 2)}, ValueError, "got 5 for entry 0 of sequence 0"),
    (paged, new(n=20) | {"cache_seqlens": 3}, ValueError, "got -1 for entry 1 of sequence 0"),
    (paged, {"cache_batch_idx": ints(0, 1)}, ValueError, "cache_batch_idx must be None with page_table"),
    (rows, {"cache_batch_idx": torch.tensor([0, 1])}, TypeError, "cache_batch_idx must be int32, got torch.int64"),
    (rows, {"cache_batch_idx": ints(0, 1, 0)}, ValueError, r"cache_batch_idx must have shape \(2,\), got \(3,\)"),
    (rows, {"cache_batch_idx": ints(0, 2)}, ValueError, r"cache_batch_idx must lie in \[0, 2\), got 2"),
    (rows, {"cache_batch_idx": ints(1, 1), **new()}, ValueError, "cache_batch_idx must name each row once where k and v are appended"),
    (paged, {"page_table": ints(1, 3, 1, 4).view(2, 2), "cache_seqlens": 3, **new()}, ValueError, "page_table must name a place of the pool once where k and v are appended"),
    (paged, {"page_table": ints(1, 1, 0, 4).view(2, 2), "cache_seqlens": 3, **new(n=17)}, ValueError, "page_table must name a place of the pool once where k and v are appended"),
    (rows, {"k_cache": torch.ones(2, 40, 1, 8).expand(-1, -1, 2, -1), **new()}, ValueError, "k_cache must not be an expanded tensor where k and v are appended, got shape"),
    (rows, {"v_cache": torch.ones(1, 40, 2, 24).expand(2, -1, -1, -1), **new()}, ValueError, "v_cache must not be an expanded tensor where k and v are appended, got shape"),
    (eight, {"v_descale": torch.ones(5, 16, 1).expand(-1, -1, 2), **new()}, ValueError, "v_descale must not be an expanded tensor where k and v are appended, got shape"),
    (paged, {"k_descale": 2.0}, ValueError, "k_descale must be None where the cache is not int8 or fp8, it is torch.float32"),
    (eight, {"v_descale": "2"}, TypeError, "v_descale must be a number or a tensor, got '2'"),
    (eight, {"k_descale": float("nan")}, ValueError, "k_descale must be finite in fp32, got nan"),
    (eight, {"v_descale": 10**400}, ValueError, "v_descale must be finite in fp32, got 1000"),
    (eight, {"k_descale": 0.0, **new()}, ValueError, "k_descale must hold finite numbers other than 0 where k and v are appended"),
    (eight, {"v_descale": torch.tensor([[1.0, 1.0], [torch.nan, 1.0]]), **new()}, ValueError, "v_descale must hold finite numbers"),
    (eight, {"k_descale": torch.ones(2, 2).half()}, TypeError, "k_descale must be float32 or float64, got torch.float16"),
    (eight, {"k_descale": torch.ones(2, 4)}, ValueError, r"k_descale must have shape \(\), \(2, 2\) or \(5, 16, 2\), got \(2, 4\)"),
    (paged, {"softmax_scale": float("nan")}, ValueError, "softmax_scale must be finite in fp32, got nan"),
    (paged, {"softcap": -1.0}, ValueError, "softcap must be >= 0"),
    (paged, {"causal": 1}, TypeError, "causal must be True or False, got 1"),
    (paged, {"window_size": 3}, ValueError, r"window_size must be \(left, right\), got 3"),
    (paged, {"num_splits": -1}, ValueError, "num_splits must be >= 0, got -1"),
    (paged, {"num_splits": True}, TypeError, "num_splits must be an int >= 0, got True"),
    (paged, {"sm_margin": 1.5}, TypeError, "sm_margin must be an int >= 0, got 1.5"),
    (paged, {"return_softmax_lse": 1}, TypeError, "return_softmax_lse must be True or False"),
    (paged, {"sink": torch.ones(3)}, ValueError, r"sink must have shape \(4,\) or \(s_sink, 4\), got \(3,\)"),
    (paged, {"sink": torch.ones(4, dtype=INT32)}, TypeError, "sink must be bfloat16, .* got torch.int32"),
    (paged, {"mask": torch.ones(3, 3)}, TypeError, "mask must be bool, got torch.float32"),
    (paged, {"mask": torch.ones(2, 3).bool()}, ValueError, r"mask must have shape \(3, 3\) or \(2, 3, 3\), got \(2, 3\)"),
    (paged, {"mask": causal(4)}, ValueError, "mask must be an IntervalMask of 3 queries and keys, batch 1 or 2 and heads 1"),
    (paged, {"mask": [[True]]}, TypeError, "mask must be a bool tensor or an IntervalMask"),
    (paged, {"mask": causal(3), "causal": True}, ValueError, "causal must be False with mask"),
    (paged, {"q": torch.randn(2, 3, 4, 8, requires_grad=True)}, ValueError, "q must not require a gradient: .* torch.no_grad"),
    (paged, {"sink": torch.randn(4, requires_grad=True)}, ValueError, "sink must not require a gradient"),
    *(
        (paged, {name: torch.ones(1)}, ValueError, f"{name} is not supported: it must be None, got a tensor")
        for name in ("qv", "rotary_cos", "rotary_sin", "rotary_seqlens", "cache_leftpad", "cu_seqlens_q", "cu_seqlens_k_new", "q_descale", "scheduler_metadata")
    ),
    (paged, {"max_seqlen_q": 3}, ValueError, "max_seqlen_q is not supported: it must be None, got 3"),
    (paged, {"attention_chunk": 3}, ValueError, "attention_chunk is not supported: it must be 0, got 3"),
    (paged, {"pack_gqa": 1}, TypeError, "pack_gqa must be True or False"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "changed", "error", "words"), BAD, ids=range(len(BAD)))
def test_a_bad_argument_is_refused_by_name(call, changed, error, words):
    with pytest.raises(error, match=words):
        call(**changed)


def test_sequences_may_share_pages_that_nothing_is_appended_to_and_expanded_tensors_that_are_only_read():
    shared = {"page_table": ints(1, 3, 1, 4).view(2, 2)}
    assert paged(**shared).shape == paged(**shared, cache_seqlens=17, **new()).shape == (2, 3, 4, 24)
    assert rows(k_cache=torch.ones(1, 40, 1, 8).expand(2, -1, 2, -1)).shape == (2, 3, 4, 24)
    head = torch.ones(1, 1).expand(2, 2)
    assert eight(**new(), k_descale=head, v_descale=head).shape == (2, 3, 4, 24)


def test_without_gradients_parameters_are_taken():
    with torch.no_grad():
        assert paged(sink=torch.nn.Parameter(torch.randn(4))).shape == (2, 3, 4, 24)


def test_tensors_on_other_devices_are_refused():
    for name, shape in (("k_cache", (5, 16, 2, 8)), ("page_table", (2, 2)), ("cache_seqlens", (2,)), ("sink", (4,))):
        dtype = INT32 if name in ("page_table", "cache_seqlens") else torch.float32
        with pytest.raises(ValueError, match=f"{name} must be on the device of q, cpu, got meta"):
            paged(**{name: torch.empty(*shape, dtype=dtype, device="meta")})


def test_what_is_refused_appends_nothing():
    call = {**new(), "k_cache": torch.zeros(2, 40, 2, 8), "v_cache": torch.zeros(2, 40, 2, 24)}
    with pytest.raises(ValueError, match="softcap"):
        rows(**call, softcap=-1.0)
    assert not call["k_cache"].any()
