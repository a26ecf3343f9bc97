"""Bad calls: each raises the exception that fits, and its message names the argument, what came and what is allowed."""

# ruff: noqa: E501 (a table reads best with one row a line)
from functools import partial

import numpy as np
import pytest
import torch

from cute_attn import (
    IntervalMask,
    fa2_func_with_sink,
    fa2_kvpacked_func_with_sink,
    fa2_qkvpacked_func_with_sink,
    fa2_varlen_func_with_sink,
    fa2_varlen_qkvpacked_func_with_sink,
    fa3_func_with_sink,
    fa3_qkvpacked_func_with_sink,
    fa3_varlen_func_with_sink,
    flex_flash_attn_func,
)


def tokens(*shape, dtype=torch.float32, **options):
    return torch.zeros(*shape, dtype=dtype, **options)


def flex(**changes):
    """A call that is right, but for the changes: 6 queries of 4 heads, 8 keys of 2 heads."""
    arguments = {
        "q": tokens(6, 4, 16),
        "k": tokens(8, 2, 16),
        "v": tokens(8, 2, 16),
        "q_ranges": torch.tensor([[0, 6]]),
        "k_ranges": torch.tensor([[0, 8]]),
    }
    return flex_flash_attn_func(**{**arguments, **changes})


def fa(function, **changes):
    arguments = {"q": tokens(2, 6, 4, 16), "k": tokens(2, 8, 2, 16), "v": tokens(2, 8, 2, 16)}
    return function(**{**arguments, **changes})


def varlen(function, **changes):
    arguments = {"q": tokens(6, 4, 16), "k": tokens(8, 2, 16), "v": tokens(8, 2, 16)}
    arguments |= {"cu_seqlens_q": torch.tensor([0, 2, 6]), "cu_seqlens_k": torch.tensor([0, 5, 8])}
    return function(**{**arguments, "max_seqlen_q": 4, "max_seqlen_k": 5, **changes})


fa2, fa3 = partial(fa, fa2_func_with_sink), partial(fa, fa3_func_with_sink)
varlen2, varlen3 = partial(varlen, fa2_varlen_func_with_sink), partial(varlen, fa3_varlen_func_with_sink)
packed2, packed3 = fa2_qkvpacked_func_with_sink, fa3_qkvpacked_func_with_sink
mask = IntervalMask.from_slices([[0, 6]], [[0, 8]])

# call, changes, exception, words of the message
BAD_CALLS = [
    # q, k, v
    (flex, {"q": [[1.0]]}, TypeError, "q must be a torch.Tensor, got list"),
    (flex, {"q": tokens(1, 6, 4, 16)}, ValueError, "q must have shape (num_tokens, heads, head_dim), got (1, 6, 4, 16)"),
    (flex, {"k": tokens(8, 16)}, ValueError, "k must have shape (num_tokens, heads, head_dim), got (8, 16)"),
    (flex, {"q": tokens(6, 4, 16, dtype=torch.int32)}, TypeError, "q must be bfloat16, float16, float32 or float64, got torch.int32"),
    (flex, {"v": tokens(8, 2, 16, dtype=torch.float8_e4m3fn)}, TypeError, "v must be bfloat16, float16, float32 or float64, got torch.float8_e4m3fn"),
    (flex, {"k": tokens(8, 2, 16, dtype=torch.float16)}, TypeError, "one dtype, got q torch.float32 and k torch.float16"),
    (flex, {"v": tokens(8, 2, 16, device="meta")}, ValueError, "one device, got q on cpu and v on meta"),
    (flex, {"q": tokens(6, 4, 16).to_sparse()}, TypeError, "q must be a dense tensor, got layout torch.sparse_coo"),
    (flex, {"q": torch.nested.nested_tensor([tokens(6, 4, 16)], layout=torch.jagged)}, TypeError, "q must be a dense tensor, got a nested tensor"),
    (flex, {"k": tokens(7, 2, 16)}, ValueError, "k and v must have one length, got 7 and 8"),
    (flex, {"v": tokens(8, 4, 16)}, ValueError, "same number of heads, got 2 and 4"),
    (flex, {"q": tokens(6, 3, 16)}, ValueError, "heads_q = 3 and heads_k = 2"),
    (flex, {"k": tokens(8, 0, 16), "v": tokens(8, 0, 16)}, ValueError, "heads_q = 4 and heads_k = 0"),
    (flex, {"q": tokens(6, 4, 24)}, ValueError, "q and k must have one head_dim >= 1, got 24 and 16"),
    (flex, {"q": tokens(6, 4, 0), "k": tokens(8, 2, 0)}, ValueError, "one head_dim >= 1, got 0 and 0"),
    (flex, {"v": tokens(8, 2, 0)}, ValueError, "v must have head_dim >= 1, got 0"),
    (fa3, {"q": tokens(6, 4, 16)}, ValueError, "q must have shape (batch, seqlen, heads, head_dim), got (6, 4, 16)"),
    (fa3, {"k": tokens(3, 8, 2, 16)}, ValueError, "one batch size, got 2, 3 and 2"),
    (varlen3, {"q": tokens(1, 6, 4, 16)}, ValueError, "q must have shape (total, heads, head_dim), got (1, 6, 4, 16)"),
    # scalars
    (flex, {"softmax_scale": float("inf")}, ValueError, "softmax_scale must be finite in fp32, got inf"),
    (flex, {"softmax_scale": 1e39}, ValueError, "softmax_scale must be finite in fp32, got 1e+39"),
    (flex, {"softcap": 1e39}, ValueError, "softcap must be finite in fp32, got 1e+39"),
    (flex, {"softmax_scale": float("nan")}, ValueError, "softmax_scale must be finite in fp32, got nan"),
    (flex, {"softmax_scale": "0.1"}, TypeError, "softmax_scale must be a number, got '0.1' of type str"),
    (flex, {"softcap": -1.0}, ValueError, "softcap must be >= 0 (0 for off), got -1.0"),
    (flex, {"softcap": None}, TypeError, "softcap must be a number, got None"),
    (flex, {"sm_margin": -1}, ValueError, "sm_margin must be >= 0, got -1"),
    (flex, {"sm_margin": 1.5}, TypeError, "sm_margin must be an int >= 0, got 1.5 of type float"),
    (flex, {"max_seqlen_q": -6}, ValueError, "max_seqlen_q must be >= 0, got -6"),
    (flex, {"deterministic": 1}, TypeError, "deterministic must be True or False, got 1 of type int"),
    (flex, {"auto_range_merge": None}, TypeError, "auto_range_merge must be True or False, got None"),
    (flex, {"return_max_logits": "yes"}, TypeError, "return_max_logits must be True or False, got 'yes'"),
    # the mask of slices
    (flex, {"k_ranges": None}, TypeError, "k_ranges is missing: slices need both q_ranges and k_ranges"),
    (flex, {"q_ranges": None}, TypeError, "q_ranges is missing"),
    (flex, {"q_ranges": torch.tensor([[4, 2]])}, ValueError, "q_ranges[0] = [4, 2] is not a range: 0 <= start <= end <= 6"),
    (flex, {"q_ranges": [[4, 2]]}, ValueError, "0 <= start <= end must hold, got [4, 2)"),
    (flex, {"k_ranges": torch.tensor([[0, 9]])}, ValueError, "k_ranges[0] = [0, 9] is not a range: 0 <= start <= end <= 8"),
    (flex, {"q_ranges": torch.tensor([[-1, 2]])}, ValueError, "q_ranges[0] = [-1, 2]"),
    (flex, {"q_ranges": torch.tensor([[0, 2], [2, 6]])}, ValueError, "q_ranges and k_ranges must have one length, got 2 and 1"),
    (flex, {"q_ranges": torch.tensor([0, 6])}, ValueError, "q_ranges must have shape (n, 2), got (2,)"),
    (flex, {"k_ranges": torch.tensor([[0, 4, 8]])}, ValueError, "k_ranges must have shape (n, 2), got (1, 3)"),
    (flex, {"q_ranges": torch.tensor([[0.0, 6.0]])}, TypeError, "q_ranges must hold integers, got torch.float32"),
    (flex, {"q_ranges": [[0.0, 6.0]]}, TypeError, "must be an int, got 0.0 of type float"),
    (flex, {"k_ranges": 8}, TypeError, "k_ranges must be a tensor, AttnRanges or a list of pairs, got int"),
    (flex, {"attn_type_map": torch.tensor([4])}, ValueError, "attn_type_map[0] = 4 is not a mask type; allowed: 0 full"),
    (flex, {"attn_type_map": [-1]}, ValueError, "expected 0 full, 1 causal, 2 inv_causal or 3 bi_causal, got -1"),
    (flex, {"attn_type_map": "diagonal"}, ValueError, "unknown name 'diagonal'; allowed: 'full', 'causal'"),
    (flex, {"attn_type_map": torch.tensor([0, 1])}, ValueError, "attn_type_map must have shape (1,), one type a slice, got (2,)"),
    (flex, {"attn_type_map": torch.tensor([1.0])}, TypeError, "attn_type_map must hold integers, got torch.float32"),
    # the mask of intervals
    (flex, {"q_ranges": mask}, ValueError, "k_ranges must be None where q_ranges is an IntervalMask"),
    (flex, {"q_ranges": mask, "k_ranges": None, "attn_type_map": 1}, ValueError, "attn_type_map must be None where q_ranges is an IntervalMask"),
    (flex, {"q_ranges": mask[:5], "k_ranges": None}, ValueError, "IntervalMask of batch 1 for 6 queries and 8 keys, got IntervalMask(batch=1, layers=1, seqlen_q=5"),
    # sinks
    (flex, {"sink": 1.0}, TypeError, "sink must be a torch.Tensor, got float"),
    (flex, {"sink": tokens(2, 3)}, ValueError, "sink of layout 'sh' must have shape (s_sink, 4) or (4,), got (2, 3)"),
    (flex, {"sink": tokens(3)}, ValueError, "sink of layout 'sh' must have shape (s_sink, 4) or (4,), got (3,)"),
    (flex, {"sink": tokens(5, 2, 4), "sink_layout": "ssh"}, ValueError, "sink of layout 'ssh' must have shape (6, s_sink, 4), got (5, 2, 4)"),
    (fa3, {"sink": tokens(3, 6, 2, 4), "sink_layout": "ssh"}, ValueError, "(6, s_sink, 4) or (2, 6, s_sink, 4), got (3, 6, 2, 4)"),
    (flex, {"sink": tokens(4), "sink_layout": "ssh"}, ValueError, "sink of layout 'ssh' must have shape (6, s_sink, 4), got (4,)"),
    (flex, {"sink": tokens(2, 4, dtype=torch.int32)}, TypeError, "sink must be bfloat16, float16, float32 or float64, got torch.int32"),
    (flex, {"sink": tokens(2, 4, dtype=torch.float8_e4m3fn)}, TypeError, "sink must be bfloat16, float16, float32 or float64, got torch.float8_e4m3fn"),
    (flex, {"sink": tokens(2, 4).to_sparse()}, TypeError, "sink must be a dense tensor, got layout torch.sparse_coo"),
    (flex, {"sink": tokens(2, 4), "sink_layout": "shd"}, ValueError, "sink_layout must be 'sh' or 'ssh', got 'shd'"),
    (flex, {"sink": tokens(2, 4, device="meta")}, ValueError, "sink must be on the device of q, cpu, got meta"),
    # windows and documents
    (fa3, {"window_size": (3,)}, ValueError, "window_size must be (left, right), got (3,)"),
    (fa2, {"window_size": (1.0, 0)}, TypeError, "window_size must hold two ints, -1 or None for unlimited, got (1.0, 0)"),
    (fa2, {"window_size": torch.tensor([1.0, 0.0])}, TypeError, "window_size must hold two ints"),
    (fa2, {"window_size": torch.tensor([1, 0], device="meta")}, ValueError, "window_size must be ints or on the host, got a tensor on meta"),
    (fa2, {"causal": 1}, TypeError, "causal must be True or False, got 1 of type int"),
    (varlen2, {"cu_seqlens_q": [0, 2, 6]}, TypeError, "cu_seqlens_q must be a torch.Tensor, got list"),
    (varlen2, {"cu_seqlens_k": torch.tensor([0.0, 5.0, 8.0])}, TypeError, "cu_seqlens_k must hold integers, got torch.float32"),
    (varlen2, {"cu_seqlens_q": torch.tensor([[0, 6]])}, ValueError, "cu_seqlens_q must have shape (n,), got (1, 2)"),
    (varlen2, {"cu_seqlens_q": torch.tensor([], dtype=torch.int32)}, ValueError, "cu_seqlens_q must have shape (documents + 1,), got (0,)"),
    (varlen2, {"cu_seqlens_q": torch.tensor([0, 6])}, ValueError, "cu_seqlens_q and cu_seqlens_k must have one length, got 2 and 3"),
    (varlen3, {"cu_seqlens_q": torch.tensor([0, 2, 5])}, ValueError, "cu_seqlens_q must go from 0 to 6 and never fall, got [0, 2, 5]"),
    (varlen3, {"cu_seqlens_k": torch.tensor([1, 5, 8])}, ValueError, "cu_seqlens_k must go from 0 to 8 and never fall, got [1, 5, 8]"),
    (varlen3, {"cu_seqlens_k": torch.tensor([0, 9, 8])}, ValueError, "cu_seqlens_k must go from 0 to 8 and never fall"),
    (varlen3, {"max_seqlen_k": 1.0}, TypeError, "max_seqlen_k must be an int >= 0, got 1.0 of type float"),
    # packed tensors
    (packed2, {"qkv": tokens(2, 6, 2, 4, 16)}, ValueError, "qkv must have shape (b, s, 3, heads, d), got (2, 6, 2, 4, 16)"),
    (packed2, {"qkv": None}, TypeError, "qkv must be a torch.Tensor, got NoneType"),
    (packed3, {"qkv": tokens(2, 6, 3, 4, 16)}, ValueError, "qkv must have shape (b, s, heads_q + 2 * heads_k, d), got (2, 6, 3, 4, 16)"),
    (fa2_varlen_qkvpacked_func_with_sink, {"qkv": tokens(6, 3, 4, 16), "cu_seqlens": torch.tensor([], dtype=torch.int32), "max_seqlen": 6}, ValueError, "cu_seqlens must have shape (documents + 1,), got (0,)"),
    (packed3, {"qkv": tokens(2, 6, 8, 16)}, ValueError, "num_heads_q must leave k and v an equal share of qkv's 8 heads, got None"),
    (packed3, {"qkv": tokens(2, 6, 8, 16), "num_heads_q": 5}, ValueError, "num_heads_q must leave k and v an equal share of qkv's 8 heads, got 5"),
    (fa2_kvpacked_func_with_sink, {"q": tokens(2, 6, 4, 16), "kv": tokens(2, 8, 3, 2, 16)}, ValueError, "kv must have shape (b, sk, 2, heads_k, d), got (2, 8, 3, 2, 16)"),
    (fa2_varlen_qkvpacked_func_with_sink, {"qkv": tokens(6, 3, 4, 16), "cu_seqlens": [0, 6], "max_seqlen": 6}, TypeError, "cu_seqlens must be a torch.Tensor, got list"),
    # arguments that complete the signatures
    (fa2, {"dropout_p": 0.1}, ValueError, "dropout_p is not supported: it must be 0.0, got 0.1"),
    (fa2, {"alibi_slopes": tokens(4)}, ValueError, "alibi_slopes is not supported: it must be None, got a tensor of shape (4,)"),
    (varlen2, {"block_table": tokens(2, 1, dtype=torch.int32)}, ValueError, "block_table is not supported: it must be None"),
    (fa3, {"qv": tokens(2, 6, 4, 16)}, ValueError, "qv is not supported: it must be None, got a tensor of shape (2, 6, 4, 16)"),
    (fa3, {"qv": np.zeros(3)}, ValueError, "qv is not supported: it must be None, got an array of shape (3,)"),
    (fa3, {"v_descale": tokens(2, 2)}, ValueError, "v_descale is not supported"),
    (fa3, {"attention_chunk": 64}, ValueError, "attention_chunk is not supported: it must be 0, got 64"),
    (fa3, {"num_splits": 2}, ValueError, "num_splits is not supported: it must be 1 or 0, got 2"),
    (fa3, {"pack_gqa": "auto"}, TypeError, "pack_gqa must be True or False, got 'auto'"),
    (varlen3, {"seqused_k": tokens(2, dtype=torch.int32)}, ValueError, "seqused_k is not supported: it must be None or the full lengths, got [0, 0]"),
    (varlen3, {"seqused_q": torch.tensor([2, 4, 0])}, ValueError, "seqused_q is not supported: it must be None or the full lengths"),
    (varlen3, {"seqused_q": torch.tensor([2.0, 4.0])}, TypeError, "seqused_q must hold integers, got torch.float32"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "changes", "error", "words"), BAD_CALLS, ids=[str(i) for i in range(len(BAD_CALLS))])
def test_a_bad_call_is_refused_by_name(call, changes, error, words):
    with pytest.raises(error) as caught:
        call(**changes)
    assert type(caught.value) is error
    assert words in str(caught.value)


def test_the_call_that_the_bad_ones_change_is_right():
    for call in (flex, fa2, fa3, varlen2, varlen3):
        call()
