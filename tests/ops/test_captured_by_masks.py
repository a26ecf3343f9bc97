"""Tensors that a mask_mod captured and that change after the mask was made: noticed in eager and in compiled code."""

import copy

import pytest
import torch
from oracle import assert_close

from cute_attn import BlockMask, create_block_mask, flex_attention

BACKENDS = None, "aot_eager"  # of torch.compile; None for no compiler
CHANGED = r"'codes', a tensor of shape \(64,\) .* was changed after the block mask was made"


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch._dynamo.reset()


class Problem:
    def __init__(self):
        self.query = torch.randn(1, 2, 64, 8)
        self.codes = torch.arange(64) % 7

    def mask(self):
        codes = self.codes

        def mask_mod(b, h, q_idx, kv_idx):
            return (codes[q_idx] * 3 + codes[kv_idx] * q_idx) % 5 > 1

        made = create_block_mask(mask_mod, None, None, 64, 64, device="cpu")
        assert made.intervals is None
        return made


def attend(query, block_mask):
    return flex_attention(query, query, query, None, block_mask)


def attend_scaled(query, block_mask):
    """With a score_mod that is made in the function, of what is computed there."""
    factor = query.abs().mean()
    return flex_attention(query, query, query, lambda score, b, h, q_idx, kv_idx: score * factor, block_mask)


def compiled(function, backend, **options):
    return torch.compile(function, backend=backend, **{"fullgraph": True, **options})


@pytest.mark.parametrize(
    ("function", "backend"), [(attend, None), (attend, "eager"), (attend, "aot_eager"), (attend_scaled, "aot_eager")]
)
def test_a_change_between_calls_raises_and_a_new_mask_is_of_what_is_there(function, backend):
    problem = Problem()
    called = function if backend is None else compiled(function, backend)
    made = problem.mask()
    for _ in range(2):
        assert_close("out", called(problem.query, made), function(problem.query, made), 1e-6)
    problem.codes.add_(1)
    with pytest.raises(ValueError, match=CHANGED):
        called(problem.query, made)
    again = problem.mask()
    assert_close("out", called(problem.query, again), function(problem.query, again), 1e-6)


def by_an_index(codes):
    codes[torch.tensor([3, 5])] = torch.tensor([1, 2])


def by_a_view(codes):
    codes.view(8, 8)[1].add_(1)


@pytest.mark.parametrize("change", [lambda codes: codes.add_(1), by_an_index, by_a_view])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_change_before_the_call_in_the_function_raises(change, backend):
    problem = Problem()

    def function(query, block_mask, codes):
        change(codes)
        return attend(query, block_mask)

    called = function if backend is None else compiled(function, backend)
    made = problem.mask()
    with pytest.raises(ValueError, match=CHANGED):
        called(problem.query, made, problem.codes)


def of_lists(mask_mod):
    one = torch.ones(1, 1, 1, dtype=torch.int32)
    return BlockMask.from_kv_blocks(one, one[None] * 0, BLOCK_SIZE=64, mask_mod=mask_mod, seq_lengths=(64, 64))


def of_lists_assigned(mask_mod):
    made = of_lists(None)[:, :, :]
    made.mask_mod = mask_mod
    return made


@pytest.mark.parametrize("make", [of_lists, of_lists_assigned])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mask_of_lists_is_read_when_it_is_made_and_never_by_a_call(make, backend):
    query, codes = torch.randn(1, 2, 64, 8), torch.arange(64) // 16
    made = make(lambda b, h, q_idx, kv_idx: codes[q_idx] == codes[kv_idx])
    before = attend(query, made)
    made = make(lambda b, h, q_idx, kv_idx: codes[q_idx] == codes[kv_idx])
    codes.copy_(torch.arange(64) // 8)
    called = attend if backend is None else compiled(attend, backend)
    assert_close("out", called(query, made), before, 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mask_is_not_copied_as_of_what_its_tensors_became(backend):
    problem = Problem()

    def function(query, block_mask):
        return attend(query, copy.deepcopy(block_mask))

    made = problem.mask()
    problem.codes.add_(1)
    called = function if backend is None else compiled(function, backend, fullgraph=False)
    with pytest.raises(ValueError, match=CHANGED):
        called(problem.query, made)


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_memory_under_a_captured_parameter_is_a_change(backend):
    module = torch.nn.Linear(64, 1, bias=False).requires_grad_(False)
    table, query = module.weight, torch.randn(1, 2, 64, 8)
    made = create_block_mask(lambda b, h, q, k: table[0, q] * table[0, k] > 0, None, None, 64, 64, device="cpu")
    called = attend if backend is None else compiled(attend, backend)
    called(query, made)
    module.half()
    with pytest.raises(ValueError, match=r"'table', a tensor of shape \(1, 64\) .* was changed after the block mask"):
        called(query, made)


def test_a_mask_made_in_a_compiled_function_is_of_what_was_there():
    problem = Problem()

    def function(query, is_changed):
        problem.codes.add_(1)
        made = problem.mask()
        if is_changed:
            problem.codes.add_(1)
        return attend(query, made)

    called = compiled(function, "aot_eager", fullgraph=False)
    found = called(problem.query, False)
    assert_close("out", found, attend(problem.query, problem.mask()), 1e-6)
    with pytest.raises(ValueError, match=CHANGED):
        called(problem.query, True)


@pytest.mark.parametrize("is_changed", [False, True])
def test_a_compiler_may_hand_the_op_copies(is_changed):
    problem = Problem()

    def copying(graph, _):
        return lambda *given: graph(
            *(x.clone() + is_changed if x.dtype == torch.int64 and x.shape == (64,) else x for x in given)
        )

    made = problem.mask()
    if is_changed:
        with pytest.raises(ValueError, match=CHANGED):
            compiled(attend, copying)(problem.query, made)
    else:
        assert_close("out", compiled(attend, copying)(problem.query, made), attend(problem.query, made), 1e-6)


def test_one_graph_serves_every_mask():
    problem = Problem()
    counter = torch._dynamo.testing.CompileCounter()
    called = compiled(attend, counter, dynamic=False)
    for _ in range(3):
        called(problem.query, problem.mask())
        problem.codes.add_(1)
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_change_before_the_backward_raises(backend):
    problem = Problem()
    problem.query.requires_grad_()
    out = (attend if backend is None else compiled(attend, backend))(problem.query, problem.mask())
    problem.codes.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
