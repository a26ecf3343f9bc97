"""PyTorch's registry of flash attention implementations, with our operators. There are none for CPUs, so that ours can
stand there and PyTorch's functions run here; on GPUs they stand where PyTorch's own did."""

import itertools

import pytest
import torch
from pages import blocks
from torch.nn import attention
from torch.nn.attention.varlen import AuxRequest, varlen_attn, varlen_attn_out

from cute_attn.integrations.torch import register, registration

ENDS = torch.tensor([0, 7, 7, 20, 37], dtype=torch.int32)
KEY_ENDS = torch.tensor([0, 9, 12, 20, 41], dtype=torch.int32)
aten = torch.ops.aten


@pytest.fixture
def handle():
    with register() as made:
        yield made


@pytest.fixture
def active(handle, monkeypatch):
    """Our operators, for tensors on the CPU."""
    monkeypatch.setattr(registration, "DISPATCH_KEY", "CPU")
    attention.activate_flash_attention_impl("cute_attn")


def is_there():
    return torch._C._dispatch_has_kernel_for_dispatch_key("aten::_flash_attention_forward", "CPU")


def tensors():
    shapes = (37, 4, 16), (41, 2, 16), (41, 2, 16)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def packed(q, k, v, window=(-1, -1), scale=None):
    """By the formula: window counts from the last query and key of each document."""
    outs, logs = [], []
    for i in range(len(ENDS) - 1):
        mine, keys = slice(ENDS[i], ENDS[i + 1]), slice(KEY_ENDS[i], KEY_ENDS[i + 1])
        q_, k_, v_ = (x[part] for x, part in ((q, mine), (k, keys), (v, keys)))
        k_, v_ = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k_, v_))
        scores = torch.einsum("qhd,khd->hqk", q_, k_) * (q.shape[2] ** -0.5 if scale is None else scale)
        row, key = torch.arange(len(q_))[:, None] + len(k_) - len(q_), torch.arange(len(k_))
        left, right = window
        seen = ((key >= row - left) | (left < 0)) & ((key <= row + right) | (right < 0))
        scores = scores.masked_fill(~seen, -torch.inf)
        outs.append(torch.einsum("hqk,khd->qhd", scores.softmax(2).nan_to_num(), v_))
        logs.append(scores.logsumexp(2))
    return torch.cat(outs), torch.cat(logs, 1)


# ---------------------------------------------------------------- the registry


def test_the_name_is_known_while_a_handle_lives():
    assert "cute_attn" not in attention.list_flash_attention_impls()
    first, second = register(), register()
    first.remove()
    first.remove()
    assert "cute_attn" in attention.list_flash_attention_impls()
    assert attention.current_flash_attention_impl() is None
    second.remove()
    assert "cute_attn" not in attention.list_flash_attention_impls()
    with pytest.raises(ValueError, match="cute_attn"):
        attention.activate_flash_attention_impl("cute_attn")


def test_removing_the_handle_takes_the_operators_out(active, handle):
    assert is_there()
    assert attention.current_flash_attention_impl() == "cute_attn"
    handle.remove()
    assert not is_there()
    assert attention.current_flash_attention_impl() is None


def test_restoring_takes_the_operators_out_and_leaves_the_name(active):
    attention.restore_flash_attention_impl()
    assert not is_there()
    assert "cute_attn" in attention.list_flash_attention_impls()


def test_it_is_switched_on_and_off_as_the_page_shows(monkeypatch):
    monkeypatch.setattr(registration, "DISPATCH_KEY", "CPU")
    q = tensors()[0].detach()
    names = {"q": q, "k": q, "v": q, "cu_seqlens": ENDS, "longest": 17}
    (block,) = blocks("torch.md", __file__)
    exec(block, names)
    assert not is_there()
    assert "cute_attn" not in attention.list_flash_attention_impls()
    for start, end in itertools.pairwise(ENDS):
        alone = [x.transpose(0, 1) for x in (q[start:end],) * 3]
        expected = torch.nn.functional.scaled_dot_product_attention(*alone)
        torch.testing.assert_close(names["out"][start:end].transpose(0, 1), expected)


def test_a_name_that_somebody_else_has_is_left_alone():
    attention.register_flash_attention_impl("cute_attn", register_fn=print)
    try:
        with pytest.raises(RuntimeError, match="of the name 'cute_attn' already"):
            register()
    finally:
        del attention._registry._FLASH_ATTENTION_IMPLS["cute_attn"]


# ---------------------------------------------------------------- PyTorch's functions


@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (3, 0), (2, 4)])
def test_documents_of_varlen_attn_and_their_gradients(active, window):
    q, k, v = tensors()
    out, lse = varlen_attn(
        q, k, v, ENDS, KEY_ENDS, 17, 21, window_size=window, enable_gqa=True, return_aux=AuxRequest(lse=True)
    )
    expected, expected_lse = packed(q, k, v, window)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, expected_lse)
    weights = torch.randn_like(out)
    found = torch.autograd.grad(out, (q, k, v), weights)
    for x, y in zip(found, torch.autograd.grad(expected, (q, k, v), weights), strict=True):
        torch.testing.assert_close(x, y)


def test_a_given_output_is_written(active):
    q, k, v = (x.detach() for x in tensors())
    out = torch.full_like(q, torch.nan)
    varlen_attn_out(out, q, k, v, ENDS, KEY_ENDS, 17, 21, scale=0.2, enable_gqa=True)
    torch.testing.assert_close(out, packed(q, k, v, scale=0.2)[0])


def test_varlen_attn_compiles(active):
    q, k, v = (x.detach() for x in tensors())
    compiled = torch.compile(varlen_attn, backend="aot_eager")
    out = compiled(q, k, v, ENDS, KEY_ENDS, 17, 21, enable_gqa=True)
    torch.testing.assert_close(out, packed(q, k, v)[0])


@pytest.mark.parametrize("tokens_first", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
def test_the_dense_operator_and_its_gradients(active, is_causal, tokens_first):
    shape = (2, 37, 4, 16) if tokens_first else (2, 4, 37, 16)
    q, k, v = (torch.randn(shape, dtype=torch.float64) for _ in range(3))
    q, k, v = (x.transpose(1, 2) if tokens_first else x for x in (q, k, v))
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    out, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal, scale=0.3)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal, scale=0.3)
    assert out.stride() == q.stride()  # as its meta kernel promises
    torch.testing.assert_close(out, expected)
    assert lse.shape == (2, 4, 37)
    weights = torch.randn_like(out)
    gradients = [torch.autograd.grad(x, (q, k, v), weights) for x in (out, expected)]
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted)


# ---------------------------------------------------------------- what there is none of


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seqused_k": ENDS[1:]}, "seqused_k is not supported here.*flash_attn_with_kvcache"),
        ({"block_table": ENDS[None]}, "block_table is not supported here.*page_table"),
        ({"alibi_slopes": torch.ones(4)}, "alibi_slopes is not supported here.*score_mod"),
        ({"num_splits": 2}, "num_splits is not supported"),
        ({"window_size_left": 1.5}, "window_size"),
    ],
)
def test_what_kernels_have_not_is_refused_by_name(options, message):
    q, k, v = (x.detach() for x in tensors())
    forward = registration.OPERATORS["_flash_attention_forward"]
    with pytest.raises((ValueError, TypeError), match=message):
        forward(q, k, v, ENDS, KEY_ENDS, 17, 21, 0.0, False, False, **options)


def test_dropout_debug_masks_and_half_a_description_of_documents_are_refused():
    q, k, v = (x.detach() for x in tensors())
    forward = registration.OPERATORS["_flash_attention_forward"]
    with pytest.raises(ValueError, match="dropout_p"):
        forward(q, k, v, ENDS, KEY_ENDS, 17, 21, 0.5, False, False)
    with pytest.raises(ValueError, match="return_debug_mask"):
        forward(q, k, v, ENDS, KEY_ENDS, 17, 21, 0.0, False, True)
    with pytest.raises(ValueError, match="cum_seq_k must be given"):
        forward(q, k, v, ENDS, None, 17, 21, 0.0, False, False)
    with pytest.raises(ValueError, match="value must have the head_dim of query, 16"):
        forward(q, k, v[..., :8], ENDS, KEY_ENDS, 17, 21, 0.0, False, False)


def test_causality_of_unequal_lengths_is_refused_by_the_dense_operator():
    q, k = torch.randn(1, 2, 5, 16), torch.randn(1, 2, 7, 16)
    with pytest.raises(ValueError, match="is_causal must be False where there are 5 queries and 7 keys"):
        registration.OPERATORS["_scaled_dot_product_flash_attention"](q, k, k, 0.0, True)
