"""Kernels that we did not write: flash-attn-4's for Hopper, through its own interface, against attention in fp32."""

import functools
import math
import os

import pytest
import torch

from cute_attn import sim

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # theirs

# bf16 inputs, probabilities and outputs of size about one, and sums over a few hundred keys
OUTPUT, GRADIENT, LSE = 0.02, 0.06, 2e-3


@pytest.fixture(scope="module")
def interface():
    """Imported by the worker that needs it: the import alone takes seconds."""
    os.environ.setdefault("FLASH_ATTENTION_ARCH", "sm_90")
    os.environ.setdefault("FLASH_ATTENTION_NUM_SMS", "132")
    reason = "flash-attn-4 is not installed: pip install -e '.[peers]'"
    return pytest.importorskip("flash_attn.cute.interface", reason=reason)


def inputs(batch, queries, keys, heads, kv_heads, head_dim):
    shapes = (batch, queries, heads), (batch, keys, kv_heads), (batch, keys, kv_heads)
    return [torch.randn(*shape, head_dim).bfloat16() for shape in shapes]


def exact(q, k, v, causal):
    """Output [batch, queries, heads, head_dim] and natural logsumexp [batch, heads, queries], fp32, with gradients."""
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.float().transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        queries, keys = scores.shape[-2:]
        later = torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)
        scores = scores.masked_fill(later, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2), scores.logsumexp(-1)


def assert_near(value, reference, tolerance):
    error = (value.float() - reference).abs()
    assert (error <= tolerance).all(), f"largest error {error.max().item():.3g}, allowed {tolerance}"


def check_forward(interface, causal, mode, *shape):
    q, k, v = inputs(*shape)
    with sim.simulated(mode=mode):
        out, lse, *_ = interface._flash_attn_fwd(q, k, v, causal=causal, return_lse=True)
    reference, reference_lse = exact(q, k, v, causal)
    assert_near(out, reference, OUTPUT)
    assert_near(lse, reference_lse, LSE)


def check_backward(interface, causal, mode, *shape):
    q, k, v = inputs(*shape)
    leaves = [x.float().requires_grad_() for x in (q, k, v)]
    reference, lse = exact(*leaves, causal)
    d_out = torch.randn_like(reference).bfloat16()
    reference.backward(d_out.float())
    out = reference.detach().bfloat16()
    with sim.simulated(mode=mode) as reports:
        gradients = interface._flash_attn_bwd(q, k, v, out, d_out, lse.detach().contiguous(), causal=causal)
    for gradient, leaf in zip(gradients[:3], leaves, strict=True):
        assert_near(gradient, leaf.grad, GRADIENT)
    return reports


def test_forward_with_grouped_heads_and_ragged_lengths(interface):
    check_forward(interface, True, "late", 1, 300, 300, 2, 1, 64)


def test_backward_with_grouped_heads_adds_dq_from_several_blocks(interface):
    reports = check_backward(interface, True, "late", 1, 300, 300, 2, 1, 64)
    assert any(report.reduced for report in reports)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", "late", "random"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_forward(interface, head_dim, causal, mode):
    check_forward(interface, causal, mode, 2, 200, 300, 2, 2, head_dim)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", "late", "random"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_backward(interface, head_dim, causal, mode):
    check_backward(interface, causal, mode, 1, 200, 300, 2, 1, head_dim)


@pytest.mark.slow
def test_backward_that_claims_determinism_reduces_in_a_fixed_order(interface):
    q, k, v = inputs(1, 256, 256, 2, 2, 64)
    out, lse = exact(q, k, v, True)
    d_out = torch.randn_like(out).bfloat16()
    backward = functools.partial(interface._flash_attn_bwd, causal=True, deterministic=True)
    sim.strict(backward, q, k, v, out.bfloat16(), d_out, lse.contiguous(), deterministic=True)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", "late", "random"])
def test_autograd_through_the_public_function_with_packed_sequences(interface, mode):
    lengths = [70, 200, 1, 130]
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    q, k, v = (torch.randn(sum(lengths), heads, 64).bfloat16().requires_grad_() for heads in (2, 1, 1))
    d_out = torch.randn(sum(lengths), 2, 64).bfloat16()
    with sim.simulated(mode=mode):
        out, *_ = interface.flash_attn_varlen_func(
            q, k, v, cu_seqlens_q=offsets, cu_seqlens_k=offsets, max_seqlen_q=max(lengths), max_seqlen_k=max(lengths),
            causal=True,
        )  # fmt: skip
        out.backward(d_out)
    leaves = [x.detach().float().requires_grad_() for x in (q, k, v)]
    pieces = [leaf.split(lengths) for leaf in leaves]
    reference = torch.cat([exact(*(x[None] for x in piece), True)[0][0] for piece in zip(*pieces, strict=True)])
    reference.backward(d_out.float())
    assert_near(out.detach(), reference.detach(), OUTPUT)
    for gradient, leaf in zip((q.grad, k.grad, v.grad), leaves, strict=True):
        assert_near(gradient, leaf.grad, GRADIENT)
