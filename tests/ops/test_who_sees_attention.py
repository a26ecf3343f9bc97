"""Attention is called past the dispatcher only where nobody else would see it, and nobody need change the tensors."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import cute_attn
from cute_attn import flex_flash_attn_func, mask

CAUSAL = mask.causal(8)
RANGES = torch.tensor([[0, 5], [5, 8]])


def attend(x, described=CAUSAL):
    return flex_flash_attn_func(x, x, x, described, None if described is CAUSAL else described)[0]


@pytest.fixture
def q():
    return torch.randn(8, 2, 8, dtype=torch.float64, requires_grad=True)


class Functions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Ops(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("described", [CAUSAL, RANGES])
@pytest.mark.parametrize("mode", [Functions, Ops])
def test_a_mode_sees_the_ops_and_not_what_is_inside(mode, described, q):
    with mode() as watching:
        attend(q, described).sum().backward()
    assert any("cute_attn.attention" in name for name in watching.seen)
    assert not any("exp" in name and "expand" not in name for name in watching.seen)


def test_a_mode_around_the_backward_alone_sees_it(q):
    out = attend(q).sum()
    with Ops() as watching:
        out.backward()
    assert "cute_attn.attention_backward.default" in watching.seen


def test_the_profiler_names_the_ops(q):
    with torch.profiler.profile() as profile:
        attend(q).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert {"cute_attn::attention", "cute_attn::attention_backward"} <= names


@pytest.mark.filterwarnings("ignore")
def test_graphs_hold_the_op():
    q = torch.randn(8, 2, 8)
    traced = torch.jit.trace(lambda x: attend(x), (q,), check_trace=False)
    assert "cute_attn::attention" in str(traced.inlined_graph)
    assert any("cute_attn.attention" in str(node.target) for node in make_fx(lambda x: attend(x))(q).graph.nodes)


@pytest.mark.parametrize("described", [CAUSAL, RANGES])
def test_a_batch_of_gradients_comes_back_as_one(described, q):
    out = attend(q, described)
    douts = torch.randn(3, *out.shape, dtype=out.dtype)
    (grads,) = torch.autograd.grad(out, q, douts, retain_graph=True, is_grads_batched=True)
    for grad, dout in zip(grads, douts, strict=True):
        torch.testing.assert_close(grad, torch.autograd.grad(out, q, dout, retain_graph=True)[0])


def test_tensors_on_meta_have_their_shapes():
    q = torch.empty(8, 2, 8, device="meta", requires_grad=True)
    with cute_attn.backend("reference"):
        out = attend(q, RANGES)
        out.sum().backward()
    assert (out.shape, out.device, q.grad.device) == (q.shape, q.device, q.device)


def test_kernels_get_the_numbers_of_a_negated_view():
    q = torch.randn(8, 1, 64, dtype=torch.bfloat16)
    with cute_attn.backend("sim"):
        assert torch.equal(attend(torch._neg_view(q)), attend(-q))
