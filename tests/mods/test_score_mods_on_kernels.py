"""score_mods in the forward kernel, in simulation, against their graphs in fp64."""

import dataclasses
import math

import pytest
import torch
from operators_case import OPERATORS

from cute_attn import record_specs
from cute_attn.launch.forward import forward
from cute_attn.mask import IntervalMask, causal, full, sliding_window
from cute_attn.mods.evaluate import evaluate
from cute_attn.mods.trace import trace
from cute_attn.spec.tiles import TileConfig

SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])
BIAS = torch.randn(4, 600, generator=torch.Generator().manual_seed(1))
APART = {"isnan", "casts"}  # numbers so large that fp32 itself is off


def alibi(score, b, h, q, k):
    return score + SLOPES[h] * (k - q)


def relative(score, b, h, q, k):
    """At pairs outside of a causal mask, and in rows past the end, the index lies outside of the table."""
    return score + BIAS[h, q - k]


def together(names):
    """The sum of operators' functions, each brought near 1."""

    def score_mod(score, b, h, q, k):
        return score + sum(torch.tanh(OPERATORS[name](score, b, h, q, k) * 0.1) for name in names)

    return score_mod


@dataclasses.dataclass(frozen=True)
class Problem:
    mask: IntervalMask
    batch: int = 1
    heads: tuple[int, int] = (4, 2)
    dim: int = 64
    dtype: torch.dtype = torch.bfloat16

    def tensors(self):
        numbers = torch.Generator().manual_seed(0)
        lengths = (self.mask.seqlen_q, self.mask.seqlen_k, self.mask.seqlen_k)
        heads = (self.heads[0], self.heads[1], self.heads[1])
        shapes = [(self.batch, n, h, self.dim) for n, h in zip(lengths, heads, strict=True)]
        return [torch.randn(shape, generator=numbers).to(self.dtype) for shape in shapes]


def exact(problem, traced, q, k, v, dtype, rounded=None):
    """out and lse by the formula; rounded: what probabilities become before the product with v."""
    group = problem.heads[0] // problem.heads[1]
    q, k, v = (x.to(dtype).transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    scores = q @ k.mT * problem.dim**-0.5
    attended = problem.mask.to_dense().view(-1, 1, *scores.shape[2:])
    sizes = {"b": 0, "h": 1, "q": 2, "kv": 3}
    places = {
        name: torch.arange(scores.shape[dim], dtype=torch.int32).view([-1 if d == dim else 1 for d in range(4)])
        for name, dim in sizes.items()
    }
    inputs = {"score": scores, **places}
    (scores,) = evaluate(traced.graph, inputs, traced.tensors, traced.scalars, dtype, attended=attended)
    scores = scores.expand(problem.batch, problem.heads[0], *attended.shape[2:]).masked_fill(~attended, -math.inf)
    lse = scores.logsumexp(3)
    p = (scores - lse.nan_to_num(neginf=0.0)[..., None]).exp()
    p = p if rounded is None else p.to(rounded).to(dtype)
    return (p @ v).transpose(1, 2), lse


def check(problem, score_mod, approximation=0.0, **options):
    """approximation: of scores, by the hardware's tanh and the like."""
    traced = trace(score_mod, "score_mod")
    q, k, v = problem.tensors()
    options |= {"softmax_scale": problem.dim**-0.5, "score_mod": traced, "backend": "sim"}
    out, lse, _ = forward(q, k, v, problem.mask, **options)
    wanted, wanted_lse = exact(problem, traced, q, k, v, torch.float64)
    plain, plain_lse = exact(problem, traced, q, k, v, torch.float32, problem.dtype)
    plain = plain.to(problem.dtype).double()
    known = wanted_lse > -math.inf
    assert torch.equal(lse > -math.inf, known)
    for got, right, low in ((out, wanted, plain), (lse[known], wanted_lse[known], plain_lse[known])):
        error, plain_error = ((x.double() - right).abs().max() for x in (got, low))
        assert error <= 2 * plain_error + 2 * approximation + 1e-6


@pytest.mark.slow
def test_alibi_and_a_relative_bias_whose_indices_lie_outside_where_nobody_looks():
    check(Problem(causal(150)), lambda *at: alibi(*at) + relative(*at) - at[0])


@pytest.mark.slow
@pytest.mark.parametrize("softmax", ["stale", "exact"])
@pytest.mark.parametrize("heads", [(3, 3), (8, 1)])
def test_batches_groups_of_heads_and_ragged_lengths(heads, softmax):
    bias = torch.randn(2, heads[0], 129, dtype=torch.bfloat16)
    problem = Problem(sliding_window(129, 257, left=300, right=140), batch=2, heads=heads, dim=128)
    check(problem, lambda score, b, h, q, k: score * 1.5 + bias[b, h, q] - k * 0.01, softmax=softmax)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
def test_every_operator_in_the_kernel_is_what_it_is_in_its_graph(part):
    names = sorted(OPERATORS.keys() - APART)[part::3]
    error = 0.1 * len(names) * 2**-10
    check(Problem(full(40, 70), heads=(2, 2)), together(names), approximation=error, tile=TileConfig(128, 16))


@pytest.mark.slow
def test_captures_of_every_dtype_scalars_and_negative_indices():
    numbers = torch.Generator().manual_seed(2)
    floats = [torch.randn(70, generator=numbers).to(d) for d in (torch.float64, torch.float16, torch.bfloat16)]
    whole = [torch.randint(0, 5, (70,), generator=numbers).to(d) for d in (torch.int64, torch.int16, torch.uint8)]
    flags, number, documents = torch.rand(70, generator=numbers) > 0.5, torch.tensor(0.3), whole[0]

    def score_mod(score, b, h, q, k):
        found = sum(x[k] for x in floats) + sum(x[q] for x in whole) * 0.1 + torch.where(flags[k], number, 0.0)
        return torch.where(documents[q] == documents[k], score + found + floats[0][-1 - k] + 2.5, -1e9)

    check(Problem(full(70), heads=(2, 2)), score_mod)


@pytest.mark.slow
def test_numbers_and_lengths_compile_nothing_new(monkeypatch):
    from cute_attn import sim

    monkeypatch.setattr(sim, "run", lambda *arguments, **options: None)
    with record_specs() as recorder:
        for tokens, slope in ((150, 0.5), (300, 0.25), (600, 3.0)):
            q, k, v = Problem(causal(tokens)).tensors()
            traced = trace(lambda score, b, h, q, k, slope=slope: alibi(score, b, h, q, k) * slope, "score_mod")
            forward(q, k, v, causal(tokens), softmax_scale=0.1, score_mod=traced, backend="sim")
    assert len(recorder.specs) == 1
