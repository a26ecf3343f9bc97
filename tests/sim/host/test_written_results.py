"""Our kernels write every element of their results and read no workspace before they wrote it."""

import pytest
import torch

from cute_attn import sim
from cute_attn.backend import backend
from cute_attn.launch.backward import backward
from cute_attn.launch.forward import forward
from cute_attn.mask import IntervalMask, causal

ROWS_WITHOUT_KEYS = causal(300, 130)
KEYS_THAT_NOBODY_ATTENDS = IntervalMask.from_slices([[0, 100]], [[0, 50]], [0], 150, 300)
every_mask = pytest.mark.parametrize("mask", [causal(257, 300), ROWS_WITHOUT_KEYS, KEYS_THAT_NOBODY_ATTENDS])
every_mode = pytest.mark.parametrize("mode", ["eager", "late"])


@pytest.fixture
def calls(monkeypatch):
    """Of each call of the simulator: the tensors that it was told are fresh, and its report."""
    seen, run = [], sim.run

    def noted(*args, fresh=(), **options):
        seen.append((fresh, run(*args, fresh=fresh, **options)))

    monkeypatch.setattr(sim, "run", noted)
    return seen


def assert_written(calls, *results):
    ((fresh, report),) = calls
    assert all(any(result is x for x in fresh) for result in results)
    assert report.unwritten == {}


def inputs(mask):
    shapes = (mask.seqlen_q, 2), (mask.seqlen_k, 1), (mask.seqlen_k, 1)
    return [torch.randn(1, *shape, 128).bfloat16() for shape in shapes]


@every_mode
@every_mask
def test_the_forward_writes_all_of_out_and_lse(mask, mode, calls):
    with backend("sim", mode=mode):
        out, lse, _ = forward(*inputs(mask), mask, softmax_scale=0.1, backend="sim")
    assert_written(calls, out, lse)


@pytest.mark.slow
@every_mode
@every_mask
@pytest.mark.parametrize("deterministic", [False, True])
def test_the_backward_writes_all_of_dq_dk_and_dv(mask, mode, deterministic, calls):
    q, k, v = inputs(mask)
    lse = torch.zeros(1, 2, mask.seqlen_q)
    with backend("sim", mode=mode):
        dq, dk, dv, _ = backward(
            q, q, k, v, q, lse, mask, softmax_scale=0.1, deterministic=deterministic, backend="sim"
        )
    assert_written(calls, dq, dk, dv)
