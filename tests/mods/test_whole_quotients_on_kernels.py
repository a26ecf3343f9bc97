"""Whole quotients, remainders and powers of integers in kernels, in simulation: bit for bit what PyTorch computes."""

import math

import numpy as np
import pytest
import torch
from oracle import assert_close

from cute_attn import backend, flex_attention
from cute_attn.mask import causal, full

pytestmark = pytest.mark.slow  # kernels with many loops compile for long

FINITE = [0.0, -0.0, 1.0, -1.0, 0.1, -0.1, 0.3, 0.9, -0.9, 2.5, -7.5, 5e6, -7e9, 3e15, -1e18, 2e-9, -3e-18]
FLOATS = torch.tensor([*FINITE, math.inf, -math.inf, math.nan])
EXTREME = torch.tensor([3e38, -3e38, 1e20, 0.1, 3.0, 1.2e-38, -1e-41, 1e-45])
WHOLE = torch.tensor([-(2**31) + 1, -70000, -17, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 7, 31, 100, 70000, 2**31 - 1])
DIVISORS = WHOLE[WHOLE != 0]
EXPONENTS = torch.tensor([-(2**31), -3, -2, -1, 0, 1, 2, 3, 4, 5, 7, 31, 32, 33, 1001, 2**31 - 1])


def floor_divided(x, y):
    return x // y


def truncated(x, y):
    return torch.div(x, y, rounding_mode="trunc")


def left_over(x, y):
    """fmod where the quotient may overflow, for which the instructions of some CPUs have NaN in PyTorch."""
    return torch.fmod(x, y) if x.ndim == 0 else torch.from_numpy(np.fmod(x.numpy(), y.numpy()))


def to_a_number(x, y):
    """The exponent is one run-time number for all."""
    return x**9 - x**30


def is_what(found, wanted):
    """Whether a number is another, NaN and the signs of zeros too."""
    if wanted.dtype != torch.float32:
        return found == wanted
    is_same = (found == wanted) & ((found != 0) | (1 / found == 1 / wanted))
    return is_same | (torch.isnan(found) & torch.isnan(wanted))


def pairs_that_differ(cases):
    """Of each case, how many a kernel computes otherwise: a head is a case, and a score is 0, or 1 where it differs.

    cases: function, what the rows bring, what the keys bring.
    """
    n, wanted = 20, [function(x[:, None], y).expand(len(x), len(y)) for function, x, y in cases]

    def score_mod(score, b, h, q, k):
        for case, ((function, x, y), right) in enumerate(zip(cases, wanted, strict=True)):
            row, key = torch.clamp(q, max=len(x) - 1), torch.clamp(k, max=len(y) - 1)
            same = is_what(function(x[row], y[key]), right[row, key])
            score = torch.where(h == case, torch.where(same, 0.0, 1.0), score)
        return score

    q, k = torch.zeros(1, len(cases), n, 64, dtype=torch.bfloat16), torch.zeros(1, 1, n, 64, dtype=torch.bfloat16)
    options = {"enable_gqa": True, "return_lse": True, "kernel_options": {"tile": {"m": 128, "n": 16}}}
    with backend("sim"):
        _, lse = flex_attention(q, k, k, score_mod, full(n), **options)
    return ((lse.exp() - n) / (math.e - 1)).round().sum(2)[0].tolist()


def test_floor_divisions_remainders_and_powers():
    cases = [(f, FLOATS, FLOATS) for f in (floor_divided, torch.remainder)]
    cases += [(torch.pow, WHOLE.int(), EXPONENTS.int()), (to_a_number, WHOLE.int(), EXPONENTS.int())]
    assert pairs_that_differ(cases) == [0] * len(cases)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_all_divisions_of_integers(dtype):
    functions = floor_divided, torch.remainder, torch.fmod, truncated
    cases = [(function, WHOLE.to(dtype), DIVISORS.to(dtype)) for function in functions]
    assert pairs_that_differ(cases) == [0] * len(cases)


def test_divisions_towards_zero_whatever_the_quotient_and_powers_of_64_bits():
    cases = [(torch.fmod, FLOATS, FLOATS), (truncated, FLOATS, FLOATS), (left_over, EXTREME, EXTREME)]
    cases += [(torch.pow, WHOLE, EXPONENTS)]
    assert pairs_that_differ(cases) == [0] * len(cases)


def test_gradients_are_those_of_the_reference():
    numbers = torch.Generator().manual_seed(0)
    rows, keys = ((torch.randint(1, 9, (40,), generator=numbers) / 4 + 0.125).requires_grad_() for _ in range(2))

    def score_mod(score, b, h, q, k):
        whole = rows[q] // keys[k] + (q - k) ** 4 * 1e-4
        return score + rows[q] % -keys[k] + whole * 0.125

    qkv = [torch.randn(1, 2, 40, 64, generator=numbers).bfloat16().requires_grad_() for _ in range(3)]
    douts = torch.randn(1, 2, 40, 64, generator=numbers).bfloat16(), torch.randn(1, 2, 40, generator=numbers)

    options = {"tile": {"m": 128, "n": 16}, "backward_tile": {"n": 64}}

    def gradients(name):
        with backend(name):
            results = flex_attention(*qkv, score_mod, causal(40), return_lse=True, kernel_options=options)
        return torch.autograd.grad(results, (*qkv, rows, keys), douts)

    for name, got, wanted in zip(
        ("q", "k", "v", "rows", "keys"), gradients("sim"), gradients("reference"), strict=True
    ):
        assert_close(name, got, wanted, 0.02 * wanted.abs().max().item())
