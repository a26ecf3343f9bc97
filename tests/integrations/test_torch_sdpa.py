"""scaled_dot_product_attention with the arguments of PyTorch's, against PyTorch's."""

import pytest
import torch

import cute_attn
from cute_attn.integrations.torch import scaled_dot_product_attention

theirs = torch.nn.functional.scaled_dot_product_attention


def tensors(*batch, heads=(4, 4), lengths=(37, 37), dims=(16, 16), dtype=torch.float64, requires_grad=True):
    shapes = (heads[0], lengths[0], dims[0]), (heads[1], lengths[1], dims[0]), (heads[1], lengths[1], dims[1])
    return [torch.randn(*batch, *shape, dtype=dtype, requires_grad=requires_grad) for shape in shapes]


def check(q, k, v, *arguments, **options):
    found, expected = (f(q, k, v, *arguments, **options) for f in (scaled_dot_product_attention, theirs))
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad(out, (q, k, v), weights) for out in (found, expected)]
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [(37, 37), (1, 37), (37, 1), (20, 37), (37, 20)])
def test_causality_counts_from_the_first_query_and_key(lengths, causal):
    check(*tensors(2, lengths=lengths), is_causal=causal)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_any_number_of_batch_dimensions(batch):
    check(*tensors(*batch), is_causal=True, scale=0.3)


def test_grouped_heads_and_another_head_dim_of_value():
    check(*tensors(2, heads=(6, 2), dims=(16, 24)), enable_gqa=True)


def test_strides_are_free():
    q, k, v = (x.transpose(1, 2).detach().requires_grad_() for x in tensors(2, heads=(37, 37), lengths=(4, 4)))
    assert not q.is_contiguous()
    check(q, k, v, is_causal=True)


@pytest.mark.parametrize("shape", [(37, 41), (1, 41), (2, 1, 37, 41), (4, 37, 41), (2, 4, 37, 41), (1, 4, 1, 41)])
def test_a_bool_mask_broadcasts(shape):
    mask = torch.rand(shape) < 0.4
    mask[..., 0] = True  # PyTorch gives NaN to gradients of rows without keys
    check(*tensors(2, lengths=(37, 41)), mask)


def test_a_bool_mask_broadcasts_over_more_dimensions_and_over_none():
    for batch, shape in (((2, 3), (3, 1, 37, 37)), ((), (4, 1, 37))):
        mask = torch.rand(shape) < 0.4
        mask[..., 0] = True
        check(*tensors(*batch), mask)


def test_an_interval_mask_is_taken():
    mask = cute_attn.mask.sliding_window(37, window_size=5)
    q, k, v = tensors(2)
    expected = theirs(q, k, v, mask.to_dense())
    torch.testing.assert_close(scaled_dot_product_attention(q, k, v, mask), expected)


def test_a_row_that_attends_nothing_is_zero():
    mask = torch.ones(37, 37, dtype=torch.bool)
    mask[5] = False
    out = scaled_dot_product_attention(*tensors(2), mask)
    assert (out[:, :, 5] == 0).all()
    assert not out.isnan().any()


def test_it_compiles_without_a_break():
    q, k, v = tensors(2, requires_grad=False)
    compiled = torch.compile(scaled_dot_product_attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v, is_causal=True), theirs(q, k, v, is_causal=True))


BAD = {
    "bias": ({"attn_mask": torch.zeros(37, 37)}, TypeError, r"attn_mask must be bool, got torch.float32.*score_mod"),
    "integers": (
        {"attn_mask": torch.ones(37, 37, dtype=torch.int64)},
        TypeError,
        r"attn_mask must be bool, got torch.int64",
    ),
    "shape": ({"attn_mask": torch.ones(36, 37, dtype=torch.bool)}, ValueError, r"broadcast to \(2, 4, 37, 37\), got"),
    "list": ({"attn_mask": [1]}, TypeError, "attn_mask must be an IntervalMask, a bool tensor or None"),
    "lengths": ({"attn_mask": cute_attn.mask.causal(36)}, ValueError, "attn_mask.*36"),
    "both": ({"attn_mask": cute_attn.mask.causal(37), "is_causal": True}, ValueError, "is_causal must be False"),
    "dropout": ({"dropout_p": 0.1}, ValueError, r"dropout_p is not supported: it must be 0.0, got 0.1"),
    "flag": ({"is_causal": 1}, TypeError, "is_causal must be True or False"),
    "scale": ({"scale": "x"}, TypeError, "scale must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_named(case):
    options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        scaled_dot_product_attention(*tensors(2), **options)


def test_bad_tensors_are_named():
    q, k, v = tensors(2)
    with pytest.raises(ValueError, match="same number of heads unless enable_gqa is True, got 4 and 2"):
        scaled_dot_product_attention(q, k[:, :2], v[:, :2])
    with pytest.raises(
        ValueError,
        match=r"query must be \(..., heads, tokens, head_dim\), three dimensions or more, got shape \(37, 16\)",
    ):
        scaled_dot_product_attention(q[0, 0], k[0, 0], v[0, 0])
    with pytest.raises(ValueError, match=r"batch dimensions of query, \(1, 2\), got \(2, 1\)"):
        scaled_dot_product_attention(q[None], k[:, None], v[:, None])
    with pytest.raises(TypeError, match=r"key must be a torch\.Tensor, got list"):
        scaled_dot_product_attention(q, [k], v)
