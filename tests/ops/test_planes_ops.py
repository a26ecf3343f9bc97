"""The public functions and custom ops under masks with a plane for each head."""

import pytest
import torch
from oracle import dense_attention
from planes import mask_of

from cute_attn import flex_flash_attn_func
from cute_attn.mask import IntervalMask, causal
from cute_attn.mask.source import MaskSource
from cute_attn.ops.attention_op import attention
from cute_attn.ops.plans import Plan

ROWS, KEYS, HEADS = 20, 300, 6


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def leaves():
    return randn(ROWS, HEADS, 8), randn(KEYS, 2, 8), randn(KEYS, 2, 8)


def test_flex_flash_takes_a_mask_for_each_head():
    mask, (q, k, v) = mask_of("heads", 1, HEADS, ROWS, KEYS), leaves()
    out, lse = flex_flash_attn_func(q, k, v, mask.prepare(q, k, v))
    wanted, wanted_lse, _ = dense_attention(q[None], k[None], v[None], mask.to_dense())
    torch.testing.assert_close(out, wanted[0])
    torch.testing.assert_close(lse, wanted_lse[0])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            mask_of("heads", 1, 4, ROWS, KEYS),
            "q_ranges must be an IntervalMask of heads 1 or 6, one .*batch=1, heads=4",
        ),
        (mask_of("heads", 1, 2, ROWS, KEYS), "of heads 1 or 6, one for each of q, got .*heads=2"),  # as k and v
        (mask_of("both", 2, HEADS, ROWS, KEYS), "of batch 1 for 20 queries and 300 keys, got .*batch=2, heads=6"),
    ],
)
def test_a_mask_of_other_heads_than_those_of_q_is_named(mask, message):
    with pytest.raises(ValueError, match=message):
        flex_flash_attn_func(*leaves(), mask)
    with pytest.raises(ValueError, match=message.replace("q_ranges", "the mask")):
        mask.prepare(*leaves())


def test_equal_numbers_of_heads_and_batch_elements_are_told_apart():
    q, k, v = (randn(2, n, 2, 8) for n in (ROWS, KEYS, KEYS))
    for share in ("heads", "batch"):
        mask = mask_of(share, 2, 2, ROWS, KEYS)
        out, _, _ = attention(q, k, v, None, mask, 0.3, 0.0, False, 0, False)
        torch.testing.assert_close(out, dense_attention(q, k, v, mask.to_dense(), softmax_scale=0.3)[0])


# ---------------------------------------------------------------- ops


def test_the_ops_pass_opcheck():
    mask = mask_of("both", 2, HEADS, ROWS, KEYS)
    q, k, v = randn(2, ROWS, HEADS, 8), randn(2, KEYS, 2, 8), randn(2, KEYS, 2, 8)
    plan, scalars = Plan(mask.lo, mask.hi, torch.tensor([HEADS])), (0.3, 0.0, False, 0, "reference")
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        torch.ops.cute_attn.attention.default, (q, k, v, None, *plan, *scalars, True), test_utils=checks
    )
    tensors = [x.detach() for x in (q, k, v)]
    out, lse, _ = torch.ops.cute_attn.attention(*tensors, None, *plan, *scalars, False)
    arguments = (torch.randn_like(out), torch.randn_like(lse), *tensors, out, lse, None, *plan, *scalars, [True] * 4)
    op = torch.ops.cute_attn.attention_backward.default
    torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.slow
@pytest.mark.parametrize("share", ["heads", "both"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_the_op_that_plans_passes_opcheck(share, deterministic):
    mask = mask_of(share, 2, HEADS, ROWS, KEYS)
    call = ("sim", torch.bfloat16, 64, 64, HEADS, 2, False, True, deterministic, False)
    source = MaskSource("intervals", mask.lo, mask.hi, heads=HEADS)
    arguments = (*source, ROWS, KEYS, torch.device("cpu"), *call)
    op = torch.ops.cute_attn.plan.default
    torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"))


@pytest.mark.parametrize("where", ["outside", "inside"])
def test_a_compiled_function_takes_a_mask_for_each_head(where):
    torch._dynamo.reset()
    mask = mask_of("heads", 1, HEADS, ROWS, KEYS)

    def attend(q, k, v, lo, hi):
        made = mask if where == "outside" else IntervalMask(lo, hi, KEYS, heads=HEADS)
        return flex_flash_attn_func(q * 2, k, v, made)[0].sin()

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    inputs = leaves()
    got, wanted = compiled(*inputs, mask.lo, mask.hi), attend(*inputs, mask.lo, mask.hi)
    torch.testing.assert_close(got, wanted)
    weights = torch.randn_like(got)
    for mine, theirs in zip(*(torch.autograd.grad((x * weights).sum(), inputs) for x in (got, wanted)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_masks_of_one_content_and_other_heads_stay_apart_in_a_graph():
    torch._dynamo.reset()
    q, k, v = randn(2, ROWS, 2, 8).detach(), randn(2, KEYS, 2, 8).detach(), randn(2, KEYS, 2, 8).detach()
    mask = mask_of("heads", 2, 2, ROWS, KEYS)

    def attend(q, lo, hi, heads):
        made = IntervalMask(lo, hi, KEYS, heads=heads)
        return attention(q, k, v, None, made, 0.3, 0.0, False, 0, False)[0]

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for heads in (2, 1):
        torch.testing.assert_close(compiled(q, mask.lo, mask.hi, heads), attend(q, mask.lo, mask.hi, heads))
    assert not torch.equal(attend(q, mask.lo, mask.hi, 1), attend(q, mask.lo, mask.hi, 2))


def test_a_mask_all_heads_share_says_so_to_calls_of_any_heads():
    q, k, v = leaves()
    assert flex_flash_attn_func(q, k, v, causal(ROWS, KEYS))[0].shape == (ROWS, HEADS, 8)
