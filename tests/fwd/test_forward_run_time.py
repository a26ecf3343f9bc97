"""What is known at run time only never compiles a kernel."""

import pytest
import torch
from cases import NARROW

from cute_attn.backend import backend
from cute_attn.jit.compile import compile_count
from cute_attn.launch.forward import forward
from cute_attn.mask import IntervalMask, causal


def run(mask, batch=1, heads=(2, 1), dim=128, softmax_scale=0.1, **options):
    q, k, v = (
        torch.randn(batch, n, h, dim).bfloat16()
        for n, h in ((mask.seqlen_q, heads[0]), (mask.seqlen_k, heads[1]), (mask.seqlen_k, heads[1]))
    )
    with backend("sim"):
        return forward(q, k, v, mask, softmax_scale=softmax_scale, backend="sim", **options)


def test_run_time_values_never_compile():
    run(causal(150))
    before = compile_count()
    run(causal(150), softmax_scale=0.3)
    run(causal(100, 260))
    run(IntervalMask.from_slices([[0, 50], [50, 130]], [[0, 50], [0, 100]], [1, 0], 130, 130))
    run(causal(150), batch=2)
    run(causal(150), heads=(4, 2))
    run(causal(150), dim=104)  # runs in the kernel for 128
    run(causal(150), sm_margin=100)
    assert compile_count() == before


@pytest.mark.slow
def test_intervals_of_any_number_are_one_kernel():
    def layered(n):
        bounds = torch.arange(2 * n)[:, None] * 10 + torch.zeros(200, dtype=torch.int64)
        return IntervalMask.from_intervals(bounds[::2], bounds[1::2], 300)

    run(layered(3), tile=NARROW)
    before = compile_count()
    run(causal(200, 300), tile=NARROW)
    run(layered(7), tile=NARROW)
    assert compile_count() == before
