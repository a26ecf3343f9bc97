"""Kernels that we did not write: flash-attn-4's for Hopper, through its own interface, against attention in fp32.

Allowed is what the rounding of intermediate and final results to bf16 explains, element by element.
"""

import functools
import os

import pytest
import torch
from peers import converting_arguments_as

from cute_attn import sim

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # theirs

MODES = ("eager", "late", "random")  # within a test: compiling takes longer than running
UNIT = 2.0**-8  # relative error of rounding to bf16
FP32 = 1e-4  # what fp32 sums, exponentials and reciprocals add for numbers of size one


@pytest.fixture(scope="module")
def interface():
    """Imported by the worker that needs it: the import alone takes seconds."""
    os.environ.setdefault("FLASH_ATTENTION_ARCH", "sm_90")
    os.environ.setdefault("FLASH_ATTENTION_NUM_SMS", "132")
    reason = "flash-attn-4 is not installed: pip install -e '.[peers]'"
    interface = pytest.importorskip("flash_attn.cute.interface", reason=reason)
    with converting_arguments_as("quack.cute_dsl_utils"):
        yield interface


def inputs(batch, queries, keys, heads, kv_heads, head_dim):
    """q, k, v and the gradient of the output, [batch, tokens, heads, head_dim]."""
    shapes = (queries, heads), (keys, kv_heads), (keys, kv_heads), (queries, heads)
    return [torch.randn(batch, *shape, head_dim).bfloat16() for shape in shapes]


def exact(q, k, v, d_out, causal):
    """name -> (value, allowed error) of output, natural logsumexp [batch, heads, queries] and gradients."""
    group, scale = q.shape[2] // k.shape[2], q.shape[-1] ** -0.5
    q, k, v, d_out = (x.float().transpose(1, 2) for x in (q, k, v, d_out))
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    scores = scale * q @ k.mT
    if causal:
        queries, keys = scores.shape[-2:]
        scores = scores.masked_fill(torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1), -torch.inf)
    p = scores.softmax(-1)
    out = p @ v
    delta = (d_out * out).sum(-1, keepdim=True)
    ds = p * (d_out @ v.mT - delta)
    ds_error = UNIT * (p * (d_out.abs() * out.abs()).sum(-1, keepdim=True) + ds.abs())  # of delta, and of ds itself

    def heads_last(value, error, over=1):
        value, error = (x.unflatten(1, (-1, over)).sum(2).transpose(1, 2) for x in (value, error))
        return value, error + UNIT * value.abs() + FP32 * max(1.0, value.abs().max().item())

    return {
        "out": heads_last(out, UNIT * p @ v.abs()),
        "lse": (scores.logsumexp(-1), torch.tensor(10 * FP32)),
        "dq": heads_last(scale * ds @ k, scale * ds_error @ k.abs()),
        "dk": heads_last(scale * ds.mT @ q, scale * ds_error.mT @ q.abs(), group),
        "dv": heads_last(p.mT @ d_out, UNIT * p.mT @ d_out.abs(), group),
    }


def assert_allowed(expected, **results):
    for name, result in results.items():
        value, allowed = expected[name]
        share = ((result.float() - value).abs() / allowed).max()
        assert share <= 1, f"{name}: an error is {share.item():.3g} times what rounding explains"


def check_forward(interface, causal, mode, *shape):
    q, k, v, d_out = inputs(*shape)
    with sim.simulated(mode=mode):
        out, lse, *_ = interface._flash_attn_fwd(q, k, v, causal=causal, return_lse=True)
    assert_allowed(exact(q, k, v, d_out, causal), out=out, lse=lse)


def check_backward(interface, causal, mode, *shape):
    q, k, v, d_out = inputs(*shape)
    expected = exact(q, k, v, d_out, causal)
    out, lse = expected["out"][0].bfloat16(), expected["lse"][0].contiguous()
    with sim.simulated(mode=mode) as reports:
        dq, dk, dv, *_ = interface._flash_attn_bwd(q, k, v, out, d_out, lse, causal=causal)
    assert_allowed(expected, dq=dq, dk=dk, dv=dv)
    return reports


@pytest.mark.slow
def test_forward_with_grouped_heads_and_ragged_lengths(interface):
    check_forward(interface, True, "late", 1, 300, 300, 2, 1, 64)


@pytest.mark.slow
def test_backward_with_grouped_heads_adds_dq_from_several_blocks(interface):
    reports = check_backward(interface, True, "late", 1, 300, 300, 2, 1, 64)
    assert any(report.reduced for report in reports)


@pytest.mark.slow
@pytest.mark.parametrize("kv_heads", [2, 1])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_forward(interface, head_dim, causal, kv_heads):
    for mode in MODES:
        check_forward(interface, causal, mode, 2, 200, 300, 2, kv_heads, head_dim)


@pytest.mark.slow
@pytest.mark.parametrize("kv_heads", [2, 1])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_backward(interface, head_dim, causal, kv_heads):
    for mode in MODES:
        check_backward(interface, causal, mode, 1, 200, 300, 2, kv_heads, head_dim)


@pytest.mark.slow
def test_no_schedule_changes_a_bit_of_the_forward(interface):
    q, k, v, _ = inputs(1, 300, 300, 2, 1, 128)
    sim.strict(functools.partial(interface._flash_attn_fwd, causal=True, return_lse=True), q, k, v, deterministic=True)


@pytest.mark.slow
@pytest.mark.parametrize("deterministic", [False, True])
def test_schedules_change_the_backward_by_rounding_at_most_or_by_nothing_where_it_claims_so(interface, deterministic):
    q, k, v, d_out = inputs(1, 256, 256, 2, 2, 64)
    expected = exact(q, k, v, d_out, True)
    backward = functools.partial(interface._flash_attn_bwd, causal=True, deterministic=deterministic)
    out, lse = expected["out"][0].bfloat16(), expected["lse"][0].contiguous()
    sim.strict(backward, q, k, v, out, d_out, lse, deterministic=deterministic)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_autograd_through_the_public_function_with_packed_sequences(interface, head_dim, causal):
    lengths = [70, 200, 1, 130]
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    packed = {"cu_seqlens_q": offsets, "cu_seqlens_k": offsets, "max_seqlen_q": 200, "max_seqlen_k": 200}
    for mode in MODES:
        q, k, v, d_out = (x[0] for x in inputs(1, sum(lengths), sum(lengths), 2, 1, head_dim))
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        with sim.simulated(mode=mode):
            out, *_ = interface.flash_attn_varlen_func(*leaves, **packed, causal=causal)
            out.backward(d_out)
        results = [out.detach(), *(leaf.grad for leaf in leaves)]
        for piece in zip(*(x.split(lengths) for x in (q, k, v, d_out, *results)), strict=True):
            expected = exact(*(x[None] for x in piece[:4]), causal)
            assert_allowed(expected, **dict(zip(("out", "dq", "dk", "dv"), (x[None] for x in piece[4:]), strict=True)))
