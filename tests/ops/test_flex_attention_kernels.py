"""flex_attention on the kernels, forward and backward: masks that are intervals, scores with and without a softcap."""

import pytest
import torch
from forward_case import TANH_ERROR
from mods_case import dense_flex
from oracle import assert_no_worse, results
from planes import mask_of

import cute_attn
from cute_attn import flex_attention
from cute_attn.mask import causal


def softcap(score, b, h, q_idx, kv_idx):
    return 3.0 * torch.tanh(score / 3.0)


def check(intervals, pairs, heads, score_mod=None, batch_k=2, dtype=torch.bfloat16):
    """At most twice as far from the formula in fp64 as the formula in the inputs' dtype."""
    rows, keys = intervals.seqlen_q, intervals.seqlen_k
    shapes = (2, heads[0], rows, 64), (batch_k, heads[1], keys, 64), (batch_k, heads[1], keys, 64)
    given = [torch.randn(shape).to(dtype) for shape in shapes]
    dout, dlse = torch.randn(2, heads[0], rows, 64).to(dtype), torch.randn(2, heads[0], rows)

    def leaves(kind):
        return [x.detach().to(kind).requires_grad_() for x in given]

    def kernels(query, key, value):
        return flex_attention(query, key, value, score_mod, intervals, enable_gqa=True, return_lse=True)

    def formula(query, key, value):
        return dense_flex(query, key, value, score_mod, pairs, dtype=query.dtype)[:2]

    got = results(kernels, leaves(dtype), dout, dlse)
    exact, rough = (results(formula, leaves(kind), dout, dlse) for kind in (torch.float64, dtype))
    assert_no_worse(("out", "lse", "dq", "dk", "dv"), got, exact, rough, TANH_ERROR * 3.0)


@pytest.mark.slow
@pytest.mark.parametrize("score_mod", [pytest.param(None, id="plain"), pytest.param(softcap, id="softcap")])
def test_a_plane_for_each_head_and_batch_element(backend, score_mod):
    intervals = mask_of("both", 2, 4, 130, 400)
    with cute_attn.backend(backend):
        check(intervals, intervals.to_dense(), (4, 2), score_mod)


@pytest.mark.slow
@pytest.mark.parametrize("batch_k", [1, 2])
def test_keys_of_batch_one_go_with_any(backend, batch_k):
    intervals = causal(130, 150)
    with cute_attn.backend(backend):
        check(intervals, intervals.to_dense()[:, None], (3, 1), batch_k=batch_k)


def test_a_score_mod_that_changes_nothing_is_none(backend):
    q = torch.randn(1, 1, 64, 64, dtype=torch.bfloat16)
    with cute_attn.backend(backend):
        plain = flex_attention(q, q, q, block_mask=causal(64))
        assert torch.equal(plain, flex_attention(q, q, q, lambda s, b, h, q, k: s.float(), causal(64)))
