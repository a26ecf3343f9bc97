"""Low precision loses no more on several ranks than on one, and equal runs give equal bits."""

import pytest
import torch
import torch.distributed as dist
from oracle import dense_attention
from problems import config, documents
from ranks import run_ranks

from cute_attn import flex_flash_attn_func
from cute_attn.dist import calc_attn, compute_pad_size, dispatch, magi_attn_flex_key, undispatch

MOVERS = ("group_cast", "ring", "ulysses")
PARTS = ("out", "dq", "dk", "dv")
MASK = documents(37, 141, 22)


def inputs(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    shapes = (MASK.seqlen_q, 4, 32), (MASK.seqlen_q, 2, 32), (MASK.seqlen_q, 2, 32), (MASK.seqlen_q, 4, 32)
    q, k, v, dout = (torch.randn(shape, generator=generator).bfloat16().to(dtype) for shape in shapes)
    return [x.requires_grad_() for x in (q, k, v)], dout


def gradients_too(attention, seed, dtype):
    """out, dq, dk, dv of `attention(q, k, v) -> out`."""
    (q, k, v), dout = inputs(seed, dtype)
    out = attention(q, k, v)
    out.backward(dout)
    return [x.detach() for x in (out, q.grad, k.grad, v.grad)]


def exact(q, k, v):
    return dense_attention(q[None], k[None], v[None], MASK.to_dense())[0][0]


def on_one_device(q, k, v):
    return flex_flash_attn_func(q, k, v, MASK)[0]


def on_ranks(mover):
    rows = MASK.seqlen_q
    pad_size = compute_pad_size(rows, dist.get_world_size(), 8)
    key = magi_attn_flex_key(MASK, None, None, rows, rows, pad_size, 8, dist.group.WORLD, config(mover, degree=3))

    def attention(q, k, v):
        out, _ = calc_attn(*(dispatch(x, key) for x in (q, k, v)), key, deterministic=True)
        return undispatch(out, key)

    return attention


@pytest.mark.parametrize(
    "mover", ["group_cast", *(pytest.param(mover, marks=pytest.mark.slow) for mover in ("ring", "ulysses"))]
)
def test_bf16_is_as_close_to_fp64_as_on_one_device(mover):
    seeds = range(8)
    right = [gradients_too(exact, seed, torch.float64) for seed in seeds]
    single = [gradients_too(on_one_device, seed, torch.bfloat16) for seed in seeds]
    several = run_ranks(4, _bf16_runs, mover, seeds)[1]
    for i, part in enumerate(PARTS):
        error, reference = (rms([run[i] for run in runs], [run[i] for run in right]) for runs in (several, single))
        assert error <= 1.1 * reference, f"{part}: RMS error {error:.3e} on 4 ranks, {reference:.3e} on one"


def _bf16_runs(rank, mover, seeds):
    attention = on_ranks(mover)
    return [gradients_too(attention, seed, torch.bfloat16) for seed in seeds]


def rms(got, right):
    error = torch.stack(got).double() - torch.stack(right)
    return error.square().mean().sqrt().item()


@pytest.mark.slow
@pytest.mark.parametrize("mover", MOVERS)
def test_two_runs_give_the_same_bits(mover):
    first, second = (run_ranks(4, _bf16_runs, mover, [0]) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        for part, a, b in zip(PARTS, one[0], other[0], strict=True):
            assert torch.equal(a, b), part
    for one in first[1:]:
        assert all(torch.equal(a, b) for a, b in zip(one[0], first[0][0], strict=True)), "ranks differ"
