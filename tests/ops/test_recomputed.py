"""A forward that is computed again has the mask of the first time, or raises."""

import numpy as np
import pytest
import torch
from oracle import assert_close
from torch.utils.checkpoint import checkpoint

from cute_attn import fa3_varlen_func_with_sink, flex_flash_attn_func
from cute_attn.ops import recomputed

EXACT = 1e-12
MIXED_UP = r"recomputed forward would have another mask|different metadata"
ROWS = 8
ENDS, OTHERS = np.array([0, 5, ROWS]), np.array([0, 3, ROWS])


def ranges_of(ends):
    return torch.stack([ends[:-1], ends[1:]], 1)


FUNCTIONS = {
    "ranges made outside": (lambda q, r: flex_flash_attn_func(q, q, q, r, r)[0], ranges_of),
    "ranges made inside": (lambda q, e: flex_flash_attn_func(q, q, q, ranges_of(e), ranges_of(e))[0], lambda e: e),
    "cu_seqlens": (lambda q, e: fa3_varlen_func_with_sink(q, q, q, e, e, ROWS, ROWS), lambda e: e),
}
CHECKPOINTS = {
    "non-reentrant": lambda f, *x: checkpoint(f, *x, use_reentrant=False),
    "reentrant": lambda f, *x: checkpoint(f, *x, use_reentrant=True),
}


@pytest.fixture(autouse=True)
def _nothing_seen_before():
    recomputed._memories.clear()
    recomputed._contents.clear()
    torch._dynamo.reset()


def described_by(function, ends):
    """NumPy memory, and the tensor on it that describes the mask."""
    memory = FUNCTIONS[function][1](torch.from_numpy(ends.copy())).numpy()
    return memory, torch.from_numpy(memory)


def write_by_numpy(memory, tensor, values):
    memory[...] = values


def write_by_torch(memory, tensor, values):
    tensor.copy_(torch.from_numpy(values))


def gradient(out, q):
    return torch.autograd.grad(out.square().sum(), q)[0]


@pytest.mark.parametrize("write", [None, write_by_numpy, write_by_torch])
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("how", CHECKPOINTS)
def test_a_checkpointed_call_whose_ranges_were_overwritten_raises(how, function, write):
    attend, _ = FUNCTIONS[function]
    memory, described = described_by(function, ENDS)
    q = torch.randn(ROWS, 2, 8, dtype=torch.float64, requires_grad=True)
    wanted = gradient(attend(q, described.clone()), q)
    out = CHECKPOINTS[how](attend, q, described)
    if write is None:
        assert_close("gradient", gradient(out, q) if how != "reentrant" else _accumulated(out, q), wanted, EXACT)
        return
    write(memory, described, described_by(function, OTHERS)[0])
    with pytest.raises(RuntimeError, match=r"recomputed forward would have another mask|modified by an inplace"):
        out.square().sum().backward()


def _accumulated(out, q):
    out.square().sum().backward()
    return q.grad


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_mask_that_another_call_had_does_not_pass_for_the_first_one(function):
    """The look-up alone would find it."""
    attend, _ = FUNCTIONS[function]
    memory, described = described_by(function, ENDS)
    q = torch.randn(ROWS, 2, 8, requires_grad=True)
    values = described_by(function, OTHERS)[0]
    memory[...], first = values, memory.copy()
    attend(q, described)
    memory[...] = first
    out = checkpoint(attend, q, described, use_reentrant=False)
    memory[...] = values
    attend(q, described)
    with pytest.raises(RuntimeError, match=MIXED_UP):
        out.sum().backward()


def compiled(call, q, *x, budget=1.0):
    """A fresh compiled function; PyTorch decides at its first call what the backward computes again."""
    with torch._functorch.config.patch(activation_memory_budget=budget):
        return torch.compile(call, fullgraph=True)(q, *x)


def _again(ctx, grad):
    q = ctx.saved_tensors[0].detach().requires_grad_()
    with torch.enable_grad():
        out = ctx.function(q, ctx.described)
    return None, torch.autograd.grad(out, q, grad)[0], None


def _keep(ctx, inputs, output=None):
    ctx.function, q, ctx.described = inputs
    ctx.save_for_backward(q)


def _first(ctx, *inputs):
    _keep(ctx, inputs)
    with torch.no_grad():
        return inputs[0](*inputs[1:])


def _first_of_any(*inputs):
    return _first(*inputs)


def _first_with_gradients(ctx, function, q, described):
    _keep(ctx, (function, q, described))
    with torch.enable_grad():
        return function(q.detach().requires_grad_(), described).detach()


def _autograd_function(**methods):
    """As training frameworks write their checkpoints."""
    methods = {name: staticmethod(method) for name, method in methods.items()}
    return type("Checkpoint", (torch.autograd.Function,), methods)


AUTOGRAD_FUNCTIONS = {
    "that is given its context": _autograd_function(forward=_first, backward=_again),
    "of any arguments": _autograd_function(forward=_first_of_any, backward=_again),
    "with a vjp": _autograd_function(forward=_first, vjp=_again),
    "with gradients inside": _autograd_function(forward=_first_with_gradients, backward=_again),
    "that gets its context later": _autograd_function(
        forward=lambda function, *x: function(*x), setup_context=_keep, backward=_again
    ),
}


# How a step may be computed again; each is given a function that attends.
STEPS = {
    "non-reentrant": CHECKPOINTS["non-reentrant"],
    "reentrant": CHECKPOINTS["reentrant"],
    "reentrant in reentrant": lambda f, *x: CHECKPOINTS["reentrant"](lambda *y: CHECKPOINTS["reentrant"](f, *y), *x),
    **{f"a function {name}": function.apply for name, function in AUTOGRAD_FUNCTIONS.items()},
}
COMPILED_STEPS = {
    "compiled, to save memory": lambda f, q, x: compiled(lambda q, x: f(q.sin(), x).cos(), q, x, budget=0.0),
    "compiled, with a checkpoint": lambda f, q, x: compiled(lambda q, x: CHECKPOINTS["non-reentrant"](f, q, x), q, x),
    "a reentrant checkpoint of a compiled function": lambda f, q, x: CHECKPOINTS["reentrant"](
        lambda q, x: compiled(f, q, x), q, x
    ),
    "a checkpoint of a compiled function": lambda f, q, x: CHECKPOINTS["non-reentrant"](
        lambda q, x: compiled(f, q, x), q, x
    ),
}


def _two_micro_batches(step, function, last_first):
    """The gradients of two steps whose buffer was filled anew between them, and those of its first and last content."""
    attend, _ = FUNCTIONS[function]
    memory, described = described_by(function, ENDS)
    others = described_by(function, OTHERS)[0]
    x = [torch.randn(ROWS, 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    for values in (others, memory.copy()):  # both masks have been seen, in this memory
        memory[...] = values
        attend(x[0], described)
    outs = [step(attend, x[0], described)]
    memory[...] = others
    outs.append(step(attend, x[1], described))
    for out in reversed(outs) if last_first else outs:
        out.square().sum().backward()


@pytest.mark.parametrize("last_first", [False, True])
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("step", STEPS)
def test_of_two_steps_in_flight_the_one_whose_ranges_gave_way_raises(step, function, last_first):
    with pytest.raises(RuntimeError, match=MIXED_UP):
        _two_micro_batches(STEPS[step], function, last_first)


@pytest.mark.parametrize("step", COMPILED_STEPS)
@pytest.mark.slow
def test_of_two_compiled_steps_in_flight_the_one_whose_ranges_gave_way_raises(step):
    with pytest.raises(RuntimeError, match=MIXED_UP):
        _two_micro_batches(COMPILED_STEPS[step], "ranges made inside", False)


@pytest.mark.parametrize("step", STEPS)
def test_a_step_may_be_computed_again_as_often_as_its_backward_runs(step):
    attend, _ = FUNCTIONS["ranges made inside"]
    q = torch.randn(ROWS, 2, 8, dtype=torch.float64, requires_grad=True)
    out = STEPS[step](attend, q, torch.from_numpy(ENDS))
    for _ in range(2):
        out.square().sum().backward(retain_graph=True)
    wanted = gradient(attend(q, torch.from_numpy(ENDS)), q)
    assert_close("gradient", q.grad, 2 * wanted, EXACT)


def test_a_buffer_that_is_filled_anew_for_every_step_and_layer_works():
    buffer = np.zeros((1, 2), dtype=np.int64)
    q = torch.randn(ROWS, 2, 8, requires_grad=True)

    def layer(q, end):
        buffer[0, 1] = end
        ranges = torch.from_numpy(buffer)
        return flex_flash_attn_func(q, q, q, ranges, ranges)[0]

    for use_reentrant in (False, True):
        for step in range(3):
            x = checkpoint(layer, q, 5 - step, use_reentrant=use_reentrant)
            checkpoint(layer, x, 8 - step, use_reentrant=use_reentrant).sum().backward()


def test_a_backward_may_attend_under_masks_of_its_own():
    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            ranges = torch.tensor([[1, 3]])
            return flex_flash_attn_func(grad, grad, grad, ranges, ranges)[0]

    q = torch.randn(ROWS, 2, 8, requires_grad=True)
    Own.apply(q).sum().backward()
    assert q.grad.isfinite().all()


@pytest.mark.parametrize("budget", [0.0, 0.5])
@pytest.mark.parametrize("write", [None, write_by_numpy, write_by_torch])
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.slow
def test_a_compiled_call_that_recomputes_under_a_memory_budget_has_its_mask_or_raises(function, write, budget):
    _compiled_has_its_mask_or_raises(FUNCTIONS[function][0], function, write, budget)


@pytest.mark.parametrize("write", [None, write_by_numpy, write_by_torch])
@pytest.mark.slow
def test_a_compiled_call_with_checkpointing_has_its_mask_or_raises(write):
    attend, _ = FUNCTIONS["ranges made inside"]
    _compiled_has_its_mask_or_raises(
        lambda q, x: checkpoint(attend, q, x, use_reentrant=False), "ranges made inside", write, 1.0
    )


def _compiled_has_its_mask_or_raises(call, function, write, budget):
    attend, _ = FUNCTIONS[function]
    memory, described = described_by(function, ENDS)
    q = torch.randn(ROWS, 2, 8, dtype=torch.float64, requires_grad=True)
    wanted = gradient(attend(q.sin(), described.clone()).cos(), q)
    with torch._functorch.config.patch(activation_memory_budget=budget):
        out = torch.compile(lambda q, x: call(q.sin(), x).cos(), fullgraph=True)(q, described)
    if write is not None:
        write(memory, described, described_by(function, OTHERS)[0])
    try:
        got = gradient(out, q)
    except RuntimeError as error:
        assert write is not None
        assert "another mask" in str(error) or "modified by an inplace" in str(error)  # noqa: PT017
    else:
        assert_close("gradient", got, wanted, EXACT)


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(recomputed, "MEMORIES", 4)
    monkeypatch.setattr(recomputed, "CONTENTS", 6)
    kept = torch.zeros(1)
    for number in range(20):
        recomputed.witness([kept, torch.zeros(1)], bytes([number]), False)
    assert len(recomputed._memories) <= 4
    assert len(recomputed._contents) == 6
    assert all(len(memory.contents) <= 6 for memory in recomputed._memories.values())
