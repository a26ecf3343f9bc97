"""The custom ops as torch.library wants them, and no graph break around them."""

import pytest
import torch
from oracle import assert_close

from cute_attn import (
    AttnRanges,
    IntervalMask,
    fa2_kvpacked_func_with_sink,
    fa3_func_with_sink,
    fa3_varlen_func_with_sink,
    flex_flash_attn_func,
)

EXACT = 1e-12
ROWS = 12


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch._dynamo.reset()


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def mask_arguments(kind):
    ends = torch.tensor([0, 5, ROWS])
    mask = IntervalMask.from_slices([[0, 9], [4, ROWS]], [[0, ROWS], [3, 10]], 1, ROWS, ROWS)
    return {
        "intervals": ("intervals", mask.lo, mask.hi, None, -1, -1),
        "slices": ("slices", torch.tensor([[0, 9]]), torch.tensor([[2, ROWS]]), torch.tensor([3]), -1, -1),
        "documents": ("documents", ends, ends.clone(), None, 4, 0),
        "window": ("window", None, None, None, 2, 1),
    }[kind]


@pytest.mark.parametrize("kind", ["intervals", "slices", "documents", "window"])
@pytest.mark.parametrize("sink", [None, "sh", "ssh"])
def test_the_op_passes_opcheck(kind, sink):
    q, k, v = randn(1, ROWS, 4, 8), randn(1, ROWS, 2, 8), randn(1, ROWS, 2, 6)
    sinks = {None: None, "sh": randn(1, 1, 2, 4), "ssh": randn(1, ROWS, 2, 4)}[sink]
    scalars = (0.3, 1.5 if sink else 0.0, False, 0, "reference", sink is None)
    op = torch.ops.cute_attn.attention.default
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    if kind == "slices":
        checks += ("test_aot_dispatch_dynamic",)  # the slow one
    torch.library.opcheck(op, (q, k, v, sinks, *mask_arguments(kind), *scalars), test_utils=checks)


@pytest.mark.parametrize("needs", [[True] * 4, [False, True, False, False]])
@pytest.mark.parametrize("sink_shape", [(1, 1, 2, 4), (2, ROWS, 2, 4)])
def test_the_backward_op_passes_opcheck(needs, sink_shape):
    shapes = (2, ROWS, 4, 8), (2, ROWS, 2, 8), (2, ROWS, 2, 6), sink_shape
    q, k, v, sink = (randn(*shape).detach() for shape in shapes)
    common = (*mask_arguments("window"), 0.3, 1.5, False, 0, "reference")
    out, lse, _ = torch.ops.cute_attn.attention(q, k, v, sink, *common, False)
    arguments = (torch.randn_like(out), torch.randn_like(lse), q, k, v, out, lse, sink, *common, needs)
    op = torch.ops.cute_attn.attention_backward.default
    torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


def assert_compiles(function, leaves, backend="aot_eager"):
    """Compiled in one graph, the function gives the eager results and gradients."""
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    for _ in range(2):
        got, wanted = compiled(*leaves), function(*leaves)
        weights = [torch.randn_like(x) for x in wanted]
        for name, results in (("got", got), ("wanted", wanted)):
            assert len(results) == len(wanted), name
        for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
            assert_close(f"result {i}", a, b, EXACT)
        grads = [
            torch.autograd.grad(sum((w * x).sum() for w, x in zip(weights, results, strict=True)), leaves)
            for results in (got, wanted)
        ]
        for i, (a, b) in enumerate(zip(*grads, strict=True)):
            assert_close(f"gradient {i}", a, b, EXACT)


PAIRS = [[0, ROWS], [4, 9]]
FORMS = {
    "tensors": lambda: (torch.tensor(PAIRS), torch.tensor(PAIRS), torch.tensor([1, 0])),
    "lists": lambda: (PAIRS, PAIRS, ["causal", "full"]),
    "ranges": lambda: (AttnRanges(PAIRS), AttnRanges(PAIRS), 1),
    "mask": lambda: (IntervalMask.from_slices(PAIRS, PAIRS, 1), None, None),
}


def flex_in(form):
    q_ranges, k_ranges, types = FORMS[form]()

    def attend(q, k, v, sink):
        out, lse = flex_flash_attn_func(q * 2, k, v, q_ranges, k_ranges, attn_type_map=types, sink=sink)
        return out.sin(), lse.cos()

    return attend


@pytest.mark.parametrize("form", FORMS)
def test_flex_flash_compiles_without_a_graph_break(form):
    assert_compiles(flex_in(form), [randn(ROWS, 4, 8), randn(ROWS, 2, 8), randn(ROWS, 2, 8), randn(2, 4)])


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_flex_flash_compiles_with_inductor(form):
    leaves = [randn(ROWS, 4, 8), randn(ROWS, 2, 8), randn(ROWS, 2, 8), randn(2, 4)]
    assert_compiles(flex_in(form), leaves, backend="inductor")


def test_functions_with_sinks_compile_without_a_graph_break():
    def dense(q, k, v, sink):
        return fa3_func_with_sink(q + 1, k, v, sink, causal=True, window_size=(5, -1), return_attn_probs=True)

    assert_compiles(dense, [randn(2, ROWS, 4, 8), randn(2, ROWS, 2, 8), randn(2, ROWS, 2, 8), randn(2, 4)])

    def packed(q, kv):
        return (fa2_kvpacked_func_with_sink(q + 1, kv, softcap=2.0),)

    assert_compiles(packed, [randn(2, ROWS, 4, 8), randn(2, ROWS, 2, 2, 8)])


def test_habits_of_other_libraries_compile_without_a_graph_break():
    ends, pairs = torch.tensor([0, 5, ROWS]), torch.tensor(PAIRS)

    def varlen(q, k, v, sink):
        longest = (ends[1:] - ends[:-1]).max()  # a tensor, as FlashAttention's callers have it
        sinks = sink.to(torch.bfloat16)
        return fa3_varlen_func_with_sink(
            q + 1, k, v, ends, ends, longest, 7, sinks, num_splits=0, window_size=(None, 0), return_attn_probs=True
        )

    assert_compiles(varlen, [randn(ROWS, 4, 8), randn(ROWS, 2, 8), randn(ROWS, 2, 8), randn(4)])

    def flex(q, k, v, sink):
        return flex_flash_attn_func(q * 2, k, v, pairs, pairs, ROWS, ROWS, pack_gqa=True, swap_ab=None, sink=sink)

    assert_compiles(flex, [randn(ROWS, 4, 8), randn(ROWS, 2, 8), randn(ROWS, 2, 8), randn(4)])


def test_a_compiled_varlen_call_sees_new_lengths_of_the_same_documents():
    ends = torch.tensor([0, 5, ROWS])

    def attend(q, ends):
        return fa3_varlen_func_with_sink(q, q, q, ends, ends, ROWS, ROWS, causal=True)

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    q = randn(ROWS, 2, 8)
    for edit in (None, 3, 8):
        if edit is not None:
            ends[1] = edit
        assert_close("out", compiled(q, ends), attend(q, ends.clone()), EXACT)


def test_lengths_and_scalars_may_change_under_one_compiled_function():
    def attend(q, ranges, scale, softcap):
        return flex_flash_attn_func(q, q, q, ranges, ranges, softmax_scale=scale, softcap=softcap)

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows, scale, softcap in ((12, 0.5, 0.0), (17, 0.25, 2.0), (30, 0.3, 3.0), (31, None, 0.0), (40, None, 1.0)):
        q, ranges = randn(rows, 2, 8), torch.tensor([[0, rows], [1, 5]])
        for name, got, wanted in zip(
            ("out", "lse"), compiled(q, ranges, scale, softcap), attend(q, ranges, scale, softcap), strict=True
        ):
            assert_close(name, got, wanted, EXACT)


def test_no_gradient_is_computed_where_none_is_needed_when_compiled():
    q, k, v = randn(ROWS, 2, 8), randn(ROWS, 2, 8).detach(), randn(ROWS, 2, 8).detach()
    compiled = torch.compile(flex_in("tensors"), fullgraph=True, backend="aot_eager")
    out, _ = compiled(q, k, v, None)
    out.sum().backward()
    assert q.grad.isfinite().all()
    assert k.grad is None
