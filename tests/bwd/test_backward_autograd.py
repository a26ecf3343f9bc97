"""The backward behind the public function: autograd, compiled graphs, checkpoints, and what is not needed."""

import pytest
import torch
from oracle import assert_close
from torch.utils.checkpoint import checkpoint

import cute_attn

ROWS, HEADS, DIM = 200, (4, 2, 2), 64


def plainly(function, *args, **kwargs):
    return function(*args, **kwargs)


def compiled(function, *args, **kwargs):
    return torch.compile(function, backend="aot_eager", fullgraph=True)(*args, **kwargs)


def checkpointed(function, *args, **kwargs):
    return checkpoint(function, *args, use_reentrant=False, **kwargs)


def gradients(backend, call=plainly, requires=(True, True, True), sink=None):
    generator = torch.Generator().manual_seed(0)
    device = "cuda" if backend == "sm90" else "cpu"
    q, k, v = (torch.randn(ROWS, h, DIM, generator=generator).bfloat16().to(device) for h in HEADS)
    for x, needed in zip((q, k, v), requires, strict=True):
        x.requires_grad_(needed)
    sink = None if sink is None else sink.to(device).requires_grad_()
    with cute_attn.backend(backend):
        ranges = torch.tensor([[0, ROWS]], device=device)
        out, lse = call(cute_attn.flex_flash_attn_func, q, k, v, ranges, ranges, attn_type_map=[1], sink=sink)
    (out.float().square().sum() + lse.sum()).backward()  # outside: a backward runs where its forward ran
    return [None if x is None or x.grad is None else x.grad.cpu() for x in (q, k, v, sink)]


def check(got, wanted):
    for name, a, b in zip(("dq", "dk", "dv", "dsink"), got, wanted, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.dtype == b.dtype
            assert_close(name, a, b, 0.02 * b.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize("call", [plainly, compiled, checkpointed])
def test_gradients_flow_through_out_and_lse(call, backend):
    check(gradients(backend, call), gradients("reference"))


@pytest.mark.slow
def test_sinks_have_gradients(backend):
    sink = torch.randn(3, HEADS[0])
    check(gradients(backend, sink=sink), gradients("reference", sink=sink))


@pytest.mark.slow
@pytest.mark.parametrize("requires", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_what_requires_gradients_gets_them(requires, backend):
    check(gradients(backend, requires=requires), gradients("reference", requires=requires))
