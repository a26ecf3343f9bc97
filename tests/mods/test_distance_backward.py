"""Gradients through the table of a bias of the distance, on the kernels in simulation."""

import functools

import pytest
import torch
from mods_case import dense_flex
from oracle import assert_close

from cute_attn import backend, flex_attention, record_specs
from cute_attn.mask import causal
from cute_attn.mods.distance import TABLED

ROWS, KEYS, HEADS = 90, 150, 4


def leaves_of(dtype):
    numbers = torch.Generator().manual_seed(0)

    def made(*shape, of=dtype):
        return torch.randn(shape, generator=numbers, dtype=torch.float64).to(of).requires_grad_()

    query, key, value = made(1, HEADS, ROWS, 64), made(1, 2, KEYS, 64), made(1, 2, KEYS, 64)
    return [query, key, value, *(made(*shape, of=torch.float32) for shape in ((HEADS, ROWS + KEYS), (HEADS,), ()))]


def biased(learned, slopes, gain):
    """Some distances lie outside of what is attended, where the logarithm is NaN."""

    def score_mod(score, b, h, q, k):
        back = q + (KEYS - ROWS) - k
        return score + learned.tanh()[h, back] * gain - slopes.exp()[h] * torch.log(back + 1)

    return score_mod


def gradients(leaves, attend, dout):
    out, lse = attend(*leaves[:3], biased(*leaves[3:]))
    loss = (out * dout.to(out.dtype)).sum() + (lse * dout[..., 0].to(lse.dtype)).sum()
    return torch.autograd.grad(loss, leaves)


def dense(query, key, value, score_mod, dtype):
    def safe(score, b, h, q, k):
        back = (q + (KEYS - ROWS) - k).clamp(min=0)
        return score_mod(score, b, h, back, torch.tensor(KEYS - ROWS))

    return dense_flex(query, key, value, safe, causal(ROWS, KEYS).to_dense(), dtype=dtype)[:2]


def attend(query, key, value, score_mod):
    return flex_attention(query, key, value, score_mod, causal(ROWS, KEYS), enable_gqa=True, return_lse=True)


DOUT = torch.randn(1, HEADS, ROWS, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
def test_what_flows_through_the_table_is_the_gradient_of_dense_attention():
    leaves = leaves_of(torch.bfloat16)
    with backend("sim"), record_specs() as recorder:
        found = gradients(leaves, attend, DOUT)
    (forward,) = {spec.score.graph for spec in recorder.specs if spec.op == "fwd"}
    assert forward == TABLED
    wanted, plain = (
        gradients(
            [x.detach().to(dtype).requires_grad_() for x in leaves],
            functools.partial(dense, dtype=dtype),
            DOUT.to(dtype),
        )
        for dtype in (torch.float64, torch.bfloat16)
    )
    for name, got, right, low in zip(
        ("dq", "dk", "dv", "learned", "slopes", "gain"), found, wanted, plain, strict=True
    ):
        assert_close(name, got, right, 2 * (low.double() - right).abs().max().item())


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_a_table_that_is_learned_by_distance_is_refused_where_sums_must_have_an_order(deterministic):
    with backend("sim"), pytest.raises(NotImplementedError, match=r"shape \(4, 240\) .* in no fixed order"):
        attend(*leaves_of(torch.bfloat16)[:3], biased(*leaves_of(torch.bfloat16)[3:]))


@pytest.mark.slow
def test_slopes_have_an_order(deterministic):
    leaves = leaves_of(torch.bfloat16)

    def alibi(score, b, h, q, k):
        return score + leaves[4][h] * (k - q)

    with backend("sim"):
        first, second = (torch.autograd.grad(attend(*leaves[:3], alibi)[0].sum(), leaves[4]) for _ in range(2))
    assert torch.equal(*first, *second)
