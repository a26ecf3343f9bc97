"""flex_attention under torch.compile: no graph break, mods made inside, few graphs for many lengths."""

import pytest
import torch
from mods_case import LONGEST, Captured, mods
from oracle import assert_close
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention as torch_flex

from cute_attn import AuxRequest, create_block_mask, flex_attention, mask
from cute_attn.backends.plan import Plan
from cute_attn.mods.trace import trace
from cute_attn.mods.watched import Watched

EXACT = 1e-12


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch._dynamo.reset()


def inputs(rows, heads=(4, 2)):
    shapes = (1, heads[0], rows, 8), (1, heads[1], rows, 8), (1, heads[1], rows, 6)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def model(query, key, value, weights, cap, block_mask=None):
    """Mods made of what is computed here: a softcap, and a bias that is learned."""
    table = weights.exp() - 1

    def bias(score, b, h, q_idx, kv_idx):
        return cap * torch.tanh(score / cap) + table[h, q_idx - kv_idx + LONGEST]

    def softcap(score, b, h, q_idx, kv_idx):
        return cap * torch.tanh(score / cap)

    out, aux = flex_attention(
        query, key, value, bias, block_mask, enable_gqa=True, return_aux=AuxRequest(lse=True, max_scores=True)
    )
    again, lse = flex_attention(query, key, value, softcap, block_mask, enable_gqa=True, return_lse=True)
    return out, aux.lse, aux.max_scores, again, lse


@pytest.mark.slow
@pytest.mark.parametrize("has_mask", [pytest.param(False, marks=pytest.mark.slow), True])
def test_four_lengths_and_two_numbers_take_two_graphs_and_give_what_eager_code_does(has_mask):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    weights = torch.randn(4, 2 * LONGEST, dtype=torch.float64, requires_grad=True)
    for rows in (64, 33, 100, 7):
        block_mask = mask.sliding_window(rows, left=20, right=3) if has_mask else None
        qkv = inputs(rows)
        results = [f(*qkv, weights, 1.5, block_mask) for f in (model, compiled)]
        for name, wanted, got in zip(("out", "lse", "max_scores", "again", "lse again"), *results, strict=True):
            assert_close(name, got, wanted, EXACT)
        gradients = [torch.autograd.grad([x.sum() for x in r if x.requires_grad], (*qkv, weights)) for r in results]
        for wanted, got in zip(*gradients, strict=True):
            assert_close("gradient", got, wanted, EXACT)
    assert counter.frame_count <= 2


def test_a_function_of_another_module_is_followed():
    captured = Captured(heads=4, batch=1)
    qkv = inputs(20)

    @torch.compile(fullgraph=True, backend="eager")
    def compiled(query, key, value):
        return flex_attention(query, key, value, mods(captured)["everything"], enable_gqa=True)

    assert_close("out", compiled(*qkv), flex_attention(*qkv, mods(captured)["everything"], enable_gqa=True), EXACT)


def test_masks_that_captured_tensors_thin_go_through_one_graph():
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(
        lambda *qkv, block_mask: flex_attention(*qkv, None, block_mask, enable_gqa=True),
        fullgraph=True,
        backend=counter,
    )
    qkv = inputs(20)
    for _ in range(2):
        signs = torch.randn(20)
        made = create_block_mask(lambda b, h, q, k, x=signs: x[q] * x[k] > 0, None, None, 20, 20, device="cpu")
        assert_close("out", compiled(*qkv, block_mask=made), flex_attention(*qkv, None, made, enable_gqa=True), EXACT)
    assert counter.frame_count == 1


def test_masks_of_torch_break_the_graph_alone():
    made = torch_flex.create_block_mask(lambda b, h, q, k: q >= k, None, None, 20, 20, device="cpu")
    compiled = torch.compile(lambda *qkv: flex_attention(*qkv, None, made, enable_gqa=True), backend="eager")
    qkv = inputs(20)
    assert_close("out", compiled(*qkv), flex_attention(*qkv, None, made, enable_gqa=True), EXACT)


def test_what_is_refused_is_refused_while_compiling():
    @torch.compile(fullgraph=True, backend="eager")
    def compiled(query, key, value):
        return flex_attention(query, key, value, lambda s, b, h, q, k: s.sum(), enable_gqa=True)

    with pytest.raises(Exception, match="score_mod uses sum"):
        compiled(*inputs(20))


def with_a_number(query, key, value, n):
    def score_mod(score, b, h, q_idx, kv_idx):
        near = torch.lt(q_idx - kv_idx, n) & torch.ne(kv_idx, n)
        return torch.where(near, score, score * 0.5) + n

    return flex_attention(query, key, value, score_mod, enable_gqa=True)


@pytest.mark.slow
def test_numbers_that_change_are_compared_by_functions():
    compiled = torch.compile(with_a_number, fullgraph=True, backend="aot_eager", dynamic=True)
    qkv = inputs(20)
    for n in (5, 6, 7):
        assert_close("out", compiled(*qkv, n), with_a_number(*qkv, n), EXACT)


def test_numbers_that_change_and_are_compared_by_operators_are_refused_not_mistaken():
    @torch.compile(fullgraph=True, backend="eager", dynamic=True)
    def compiled(query, key, value, n):
        def score_mod(score, b, h, q_idx, kv_idx):
            return score * (q_idx - kv_idx == n)

        return flex_attention(query, key, value, score_mod, enable_gqa=True)

    with pytest.raises(Exception, match=r"meets a bool of Python .*torch.eq\(x, n\)"):
        compiled(*inputs(20), 5)


def arguments_of_op(score_mod, predicate=None):
    causal = mask.causal(9)
    plan = Plan(causal.lo, causal.hi, torch.tensor([1]))
    thinned = ("", [], [], []) if predicate is None else split(trace(predicate, "mask_mod"))
    ticket = None if predicate is None else Watched(thinned[1], ["'numbers'"]).ticket
    full = mask.sliding_window(9, left=1, right=0)
    bounds = (None, None, 1) if predicate is None else (full.lo, full.hi, 1)
    functions = (*thinned, ticket, *bounds, *split(trace(score_mod, "score_mod")))
    return *plan, *functions, 0.3, False, "reference"


def split(traced):
    ints, floats = ([x for x in traced.scalars if isinstance(x, kind)] for kind in (int, float))
    return traced.text, traced.tensors, ints, floats


@pytest.mark.parametrize("has_predicate", [False, True])
def test_the_ops_pass_opcheck(has_predicate):
    table = torch.randn(9, dtype=torch.float64, requires_grad=True)
    gain = torch.randn((), dtype=torch.float64)
    numbers = torch.arange(9) % 2
    predicate = (lambda b, h, q, k: (q + k + numbers[k]) % 3 != 0) if has_predicate else None
    rest = arguments_of_op(lambda s, b, h, q, k: (s * gain + table[k] + (q // 4)) * 0.7, predicate)
    q, k, v = (torch.randn(1, 9, h, 4, dtype=torch.float64, requires_grad=True) for h in (2, 1, 1))
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    op = torch.ops.cute_attn.mods.default
    torch.library.opcheck(op, (q, k, v, *rest, True), test_utils=[*checks, "test_aot_dispatch_dynamic"])
    out, lse, _ = op(q, k, v, *rest, False)
    saved = (torch.randn_like(out), torch.randn_like(lse), q, k, v, out, lse)
    detached = [x.detach() for x in saved]
    wanted = [x.requires_grad for x in rest[len(Plan._fields) + 9]]
    torch.library.opcheck(
        torch.ops.cute_attn.mods_backward.default,
        (*detached, *rest, [True, False, True], wanted),
        test_utils=checks[::2],
    )
