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
    mask,
)
from cute_attn.mask.source import MaskSource
from cute_attn.ops.plans import Plan

EXACT = 1e-12
ROWS = 12


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch._dynamo.reset()


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


MASK = IntervalMask.from_slices([[0, 9], [4, ROWS]], [[0, ROWS], [3, 10]], 1, ROWS, ROWS)
ENDS = torch.tensor([0, 5, ROWS])
ONE_HEAD = torch.tensor([1])  # the form of a mask that all heads share
SOURCES = {
    "intervals": MaskSource("intervals", MASK.lo, MASK.hi),
    "slices": MaskSource("slices", torch.tensor([[0, 9]]), torch.tensor([[2, ROWS]]), torch.tensor([3])),
    "documents": MaskSource("documents", ENDS, ENDS.clone(), None, 4, 0),
    "window": MaskSource("window", window_left=2, window_right=1),
    "chosen": MaskSource("chosen", MASK.lo, MASK.hi),
    "tokens": MaskSource("tokens", torch.ones(1, ROWS).long(), None, None, 4, 0, chunk=5),
    "decode": MaskSource("decode", None, None, torch.tensor([7]), -1, 0, offset=3),
}


@pytest.mark.parametrize("sink", [None, "sh", "ssh"])
def test_the_op_passes_opcheck(sink):
    q, k, v = randn(1, ROWS, 4, 8), randn(1, ROWS, 2, 8), randn(1, ROWS, 2, 6)
    sinks = {None: None, "sh": randn(1, 1, 2, 4), "ssh": randn(1, ROWS, 2, 4)}[sink]
    scalars = (0.3, 1.5 if sink else 0.0, False, 0, "reference", sink is None)
    op = torch.ops.cute_attn.attention.default
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    if sink is None:
        checks += ("test_aot_dispatch_dynamic",)  # the slow one
    torch.library.opcheck(op, (q, k, v, sinks, *Plan(MASK.lo, MASK.hi, ONE_HEAD), *scalars), test_utils=checks)


@pytest.mark.parametrize("needs", [[True] * 4, [False, True, False, False]])
@pytest.mark.parametrize("sink_shape", [(1, 1, 2, 4), (2, ROWS, 2, 4)])
def test_the_backward_op_passes_opcheck(needs, sink_shape):
    shapes = (2, ROWS, 4, 8), (2, ROWS, 2, 8), (2, ROWS, 2, 6), sink_shape
    q, k, v, sink = (randn(*shape).detach() for shape in shapes)
    common = (*Plan(MASK.lo, MASK.hi, ONE_HEAD), 0.3, 1.5, False, 0, "reference")
    out, lse, _ = torch.ops.cute_attn.attention(q, k, v, sink, *common, False)
    arguments = (torch.randn_like(out), torch.randn_like(lse), q, k, v, out, lse, sink, *common, needs)
    op = torch.ops.cute_attn.attention_backward.default
    torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize(
    "call",
    [
        ("reference", torch.float64, 0, 0, 0, 0, False, False, False, False),
        ("sim", torch.bfloat16, 64, 64, 4, 2, False, False, False, True),
        ("sim", torch.float16, 128, 128, 2, 2, True, True, False, False),
        ("sim", torch.float16, 192, 128, 2, 1, False, True, True, True),
    ],
)
def test_the_op_that_plans_passes_opcheck(kind, call):
    arguments = (*SOURCES[kind], ROWS, ROWS, torch.device("cpu"), *call)
    op = torch.ops.cute_attn.plan.default
    torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"))


def test_the_op_that_checks_intervals_passes_opcheck():
    op = torch.ops.cute_attn.owned_intervals.default
    torch.library.opcheck(op, (MASK.lo, MASK.hi, ROWS))


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
            *(q + 1, k, v, ends, ends, longest, 7, sinks),
            num_splits=0,
            window_size=(None, 0),
            return_attn_probs=True,
            dropout_p=0.0,
            block_table=None,
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


@pytest.mark.slow
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


# ------------------------------------------------------------------- masks of a graph


def ranges_of(ends):
    return torch.stack([ends[:-1], ends[1:]], 1)


@pytest.mark.slow
@pytest.mark.parametrize("fullgraph", [False, True])
def test_two_masks_of_one_compiled_function_stay_apart(fullgraph):
    """Inductor gives the second ranges the buffer of the first: the same tensor object, of the same version."""

    def attend(q, a, b):
        first, second = ranges_of(a), ranges_of(b)
        x = flex_flash_attn_func(q, q, q, first, first)[0]
        return x, flex_flash_attn_func(q, q, q, second, second)[0]

    def in_turns(q, a, b):
        r = ranges_of(a)
        x = flex_flash_attn_func(q, q, q, r, r)[0]
        s = ranges_of(b)
        return x, flex_flash_attn_func(q, q, q, s, s)[0]

    q, a, b = randn(8, 1, 8).detach(), torch.tensor([0, 4, 8]), torch.tensor([0, 1, 8])
    for function in (attend, in_turns):
        compiled = torch.compile(function, fullgraph=fullgraph)
        with torch.no_grad():
            for _ in range(2):
                for i, (got, wanted) in enumerate(zip(compiled(q, a, b), function(q, a, b), strict=True)):
                    assert_close(f"result {i}", got, wanted, EXACT)


def test_a_graph_is_not_broken_where_it_may_be():
    q, ranges = randn(ROWS, 2, 8), torch.tensor([[0, 5], [5, ROWS]])
    explained = torch._dynamo.explain(lambda q, r: flex_flash_attn_func(q, q, q, r, r)[0])(q, ranges)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_what_a_graph_does_with_the_memory_of_a_plan_reaches_no_later_call(backend):
    """Lo and hi of a graph are its own: here it writes into them, as inductor may where it needs memory."""

    def attend(q, ranges):
        plan = torch.ops.cute_attn.plan(
            *MaskSource("slices", ranges, ranges),
            8,
            8,
            q.device,
            "reference",
            q.dtype,
            0,
            0,
            0,
            0,
            False,
            False,
            False,
            False,
        )
        plan[0].fill_(7)
        plan[1].zero_()
        return plan[0] + plan[1]

    q, ranges = randn(8, 1, 8).detach(), torch.tensor([[0, 4], [4, 8]])
    wanted = flex_flash_attn_func(q, q, q, ranges, ranges)[0]
    torch.compile(attend, fullgraph=True, backend=backend)(q, ranges)
    assert torch.equal(flex_flash_attn_func(q, q, q, ranges, ranges)[0], wanted)


MADE_INSIDE = {
    "builder": lambda q, lo, hi: mask.sliding_window(q.shape[0], left=3, right=0),
    "combined": lambda q, lo, hi: mask.sliding_window(q.shape[0], left=3, right=0) & mask.causal(q.shape[0]),
    "constructor": lambda q, lo, hi: IntervalMask(lo, hi, q.shape[0]),
}


@pytest.mark.parametrize("how", MADE_INSIDE)
def test_an_interval_mask_made_inside_needs_no_graph_break(how):
    lo, hi = (x.contiguous() for x in (MASK.lo, MASK.hi))

    def attend(q, k, v):
        return flex_flash_attn_func(q, k, v, MADE_INSIDE[how](q, lo, hi))

    assert_compiles(attend, [randn(ROWS, 4, 8), randn(ROWS, 2, 8), randn(ROWS, 2, 8)])


def test_intervals_given_inside_are_checked():
    compiled = torch.compile(lambda q, lo, hi: flex_flash_attn_func(q, q, q, IntervalMask(lo, hi, ROWS))[0])
    with pytest.raises(ValueError, match="0 <= lo <= hi <= seqlen_k"):
        compiled(randn(ROWS, 2, 8), MASK.lo, MASK.hi + 1)


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_takes_any_number_of_documents(strict):
    class Flex(torch.nn.Module):
        def forward(self, q, ranges, types):
            return flex_flash_attn_func(q, q, q, ranges, ranges, attn_type_map=types)

    class Varlen(torch.nn.Module):
        def forward(self, q, ends):
            return fa3_varlen_func_with_sink(q, q, q, ends, ends, ROWS, ROWS, causal=True)

    documents, rows = torch.export.Dim("documents"), torch.export.Dim("rows")
    q, types = randn(ROWS, 2, 8).detach(), torch.ones(2, dtype=torch.int64)
    dims = {0: rows}, {0: documents}, {0: documents}
    flex = torch.export.export(Flex(), (q, ranges_of(ENDS), types), dynamic_shapes=dims, strict=strict).module()
    ends_dims = {0: rows}, {0: torch.export.Dim("ends")}
    varlen = torch.export.export(Varlen(), (q, ENDS), dynamic_shapes=ends_dims, strict=strict).module()
    for cuts in ([0, 5, 12], [0, 12], [0, 1, 4, 9, 20]):
        ends = torch.tensor(cuts)
        q, types = randn(cuts[-1], 2, 8).detach(), torch.ones(len(cuts) - 1, dtype=torch.int64)
        wanted = Flex()(q, ranges_of(ends), types)
        for name, got, want in zip(("out", "lse"), flex(q, ranges_of(ends), types), wanted, strict=True):
            assert_close(name, got, want, EXACT)
        assert_close("varlen", varlen(q, ends), Varlen()(q, ends), EXACT)
