"""The reference against a dense formula in fp64, and against finite differences."""

from dataclasses import replace

import pytest
import torch
from cases import Case, Problem, draw, plainly, stacked
from oracle import assert_close, random_slices
from torch.utils._python_dispatch import TorchDispatchMode

from cute_attn import IntervalMask
from cute_attn.reference import attention_backward, attention_forward

LENGTHS = [1, 127, 128, 129, 257]
EXACT = 1e-10


def make_case(mask, batch=1, heads=(2, 2), dims=(8, 5), dtype=torch.float64, **fields):
    return Case(mask, batch, heads, dims, dtype, **fields)


def inputs_of(case):
    p = draw(case)
    return p.q, p.k, p.v


def check_against_dense(case, problem=None, tolerance=EXACT):
    """out, lse, max_logits and all gradients of the case's inputs or others, for random dout and dlse."""
    p = problem or draw(case)
    factors = *case.bounds, p.sink, case.softmax_scale, case.softcap
    out, lse, max_logits = attention_forward(p.q, p.k, p.v, *factors)
    p = replace(p, out=out, lse=lse, dout=torch.randn_like(out), dlse=torch.randn_like(lse))
    gradients = attention_backward(p.dout, p.dlse, p.q, p.k, p.v, out, lse, *factors)
    found = {"out": out, "lse": lse, "max_logits": max_logits.amax(0)} | {
        f"d{x}": g for x, g in gradients._asdict().items()
    }
    wanted = plainly(case, p, torch.float64)
    for name, got in found.items():
        if name != "dsink" or p.sink is not None:
            assert_close(name, got, wanted[name], tolerance)


@pytest.mark.parametrize("sink", [None, "sh", "ssh"])
@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize("ratio", [1, 3, 8])
@pytest.mark.parametrize("rows", LENGTHS)
def test_equals_the_dense_formula_under_random_slices(rows, ratio, softcap, sink):
    keys = LENGTHS[(LENGTHS.index(rows) + ratio) % len(LENGTHS)]
    mask = IntervalMask.from_slices(*random_slices(6, rows, keys), rows, keys)
    heads_k = 2 if ratio == 1 else 1
    check_against_dense(make_case(mask, 2, (heads_k * ratio, heads_k), softcap=softcap, sink=sink))


def test_each_batch_element_may_have_its_own_mask():
    masks = [IntervalMask.from_slices(*random_slices(1, 130, 140), 130, 140) for _ in range(3)]
    check_against_dense(make_case(stacked(*masks), 3, (4, 2)))


def test_many_layers_unite():
    starts = torch.randint(0, 280, (40, 1))
    mask = IntervalMask.from_slices([[0, 200]] * 40, torch.cat([starts, starts + 3], 1), 0, 200, 300)
    assert mask.layers > 3
    check_against_dense(make_case(mask, heads=(2, 1)))


@pytest.mark.parametrize("scale", [-0.7, 0.0, 3.0])
def test_any_finite_scale_works(scale):
    mask = IntervalMask.from_slices([[0, 50]], [[0, 60]], 1, 50, 60)
    check_against_dense(make_case(mask, scale=scale))


def test_sinks_of_any_number_including_none_and_minus_infinity():
    mask = IntervalMask.from_slices([[10, 40]], [[0, 60]], 1, 50, 60)
    case = make_case(mask)
    for n in (0, 1, 5):
        check_against_dense(case, replace(draw(case), sink=torch.randn(1, 1, n, 2, dtype=torch.float64)))
    sink = torch.randn(1, 1, 3, 2, dtype=torch.float64)
    sink[:, :, 1] = -torch.inf
    check_against_dense(case, replace(draw(case), sink=sink))


def test_rows_without_keys_give_zero_output_minus_infinite_lse_and_no_gradient():
    mask = IntervalMask.from_slices([[5, 9]], [[0, 7]], 0, 20, 7)
    q, k, v = inputs_of(make_case(mask, heads=(2, 1)))
    empty = ~mask.to_dense()[0].any(1)
    for sink in (None, torch.full((1, 1, 2, 2), -torch.inf, dtype=torch.float64)):
        out, lse, _ = attention_forward(q, k, v, mask.lo, mask.hi, sink, 1.0, 0.0)
        assert (out[0, empty] == 0).all()
        assert (lse[0, :, empty] == -torch.inf).all()
        dlse = torch.randn_like(lse)
        dlse[..., empty] = torch.nan  # what a loss does with -inf must not matter
        grads = attention_backward(torch.randn_like(out), dlse, q, k, v, out, lse, mask.lo, mask.hi, sink, 1.0, 0.0)
        assert (grads.q[0, empty] == 0).all()
        for grad in grads:
            assert grad is None or grad.isfinite().all()
        if sink is not None:
            assert (grads.sink == 0).all()


def test_rows_without_keys_but_with_sinks_give_zero_output_and_the_sinks_lse():
    mask = IntervalMask.from_slices([[5, 9]], [[0, 7]], 0, 20, 7)
    q, k, v = inputs_of(make_case(mask, heads=(2, 1)))
    sink = torch.randn(3, 2, dtype=torch.float64)
    out, lse, max_logits = attention_forward(q, k, v, mask.lo, mask.hi, sink[None, None], 1.0, 0.0)
    assert (out[0, :5] == 0).all()
    assert_close("lse", lse[0, :, :5], sink.logsumexp(0)[:, None].expand(2, 5), EXACT)
    assert (max_logits < torch.inf).all()
    check_against_dense(make_case(mask, heads=(2, 1)), Problem(q, k, v, sink[None, None]))


def test_a_head_that_attends_nothing_has_minus_infinite_max_logits():
    mask = IntervalMask.from_slices([], [], None, 4, 4)
    q, k, v = inputs_of(make_case(mask))
    out, lse, max_logits = attention_forward(q, k, v, mask.lo, mask.hi, None, 1.0, 0.0)
    assert (out == 0).all()
    assert (lse == -torch.inf).all()
    assert (max_logits == -torch.inf).all()


@pytest.mark.parametrize("shape", [(0, 5, 5), (1, 0, 5), (1, 5, 0)])
def test_empty_tensors_are_valid(shape):
    batch, rows, keys = shape
    mask = IntervalMask.from_slices([[0, rows]], [[0, keys]], 0, rows, keys)
    q, k, v = inputs_of(make_case(mask, batch, (2, 1)))
    sink = torch.randn(1, 1, 1, 2, dtype=torch.float64)
    out, lse, _ = attention_forward(q, k, v, mask.lo, mask.hi, sink, 1.0, 0.0)
    grads = attention_backward(out, lse, q, k, v, out, lse, mask.lo, mask.hi, sink, 1.0, 0.0)
    for grad, x in zip(grads, (q, k, v, sink), strict=True):
        assert grad.shape == x.shape
        assert grad.isfinite().all()


def test_strides_are_free():
    mask = IntervalMask.from_slices([[0, 60]], [[0, 70]], 1, 60, 70)
    q = torch.randn(2, 8, 4, 60, dtype=torch.float64).permute(0, 3, 2, 1)  # the last dimension is not contiguous
    k = torch.randn(2, 2, 70, 8, dtype=torch.float64).transpose(1, 2)
    v = torch.randn(70, 1, 5, dtype=torch.float64)[::1].expand(2, 70, 2, 5)  # stride 0
    check_against_dense(make_case(mask, 2, (4, 2)), Problem(q, k, v))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 4e-2), (torch.float16, 5e-3), (torch.float32, 2e-5)])
def test_smaller_dtypes_compute_in_fp32(dtype, tolerance):
    mask = IntervalMask.from_slices([[0, 200]], [[0, 300]], 1, 200, 300)
    case = make_case(mask, heads=(6, 2), dims=(64, 32), dtype=dtype, sink="sh")
    p = draw(case)
    out, lse, max_logits = attention_forward(p.q, p.k, p.v, *case.bounds, p.sink, 0.125, 0.0)
    assert (out.dtype, lse.dtype, max_logits.dtype) == (dtype, torch.float32, torch.float32)
    assert_close("lse", lse, plainly(case, p, torch.float64)["lse"], 2e-5)
    check_against_dense(case, p, tolerance)


def test_gradients_equal_finite_differences():
    mask = IntervalMask.from_slices([[1, 4], [2, 5]], [[0, 3], [4, 6]], [1, 2], 5, 6)
    inputs = [x.requires_grad_() for x in inputs_of(make_case(mask, 2, (2, 1), (3, 2)))]
    sink = torch.randn(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v, sink):
            out, lse, _ = attention_forward(q, k, v, mask.lo, mask.hi, sink, 0.6, 1.2)
            ctx.save_for_backward(q, k, v, out, lse, sink)
            return out, lse

        @staticmethod
        def backward(ctx, dout, dlse):
            *tensors, sink = ctx.saved_tensors
            return tuple(attention_backward(dout, dlse, *tensors, mask.lo, mask.hi, sink, 0.6, 1.2))

    assert torch.autograd.gradcheck(Attention.apply, (*inputs, sink), atol=1e-7)


def test_only_the_gradients_asked_for_are_computed():
    mask = IntervalMask.from_slices([[0, 30]], [[0, 30]], 1, 30, 30)
    q, k, v = inputs_of(make_case(mask, heads=(1, 1)))
    sink = torch.randn(1, 1, 1, 1, dtype=torch.float64)
    out, lse, _ = attention_forward(q, k, v, mask.lo, mask.hi, sink, 1.0, 0.5)
    arguments = (torch.randn_like(out), None, q, k, v, out, lse, mask.lo, mask.hi, sink, 1.0, 0.5)
    every = attention_backward(*arguments)
    for wanted in range(16):
        needs = tuple(bool(wanted >> i & 1) for i in range(4))
        for need, got, want in zip(needs, attention_backward(*arguments, needs), every, strict=True):
            assert torch.equal(got, want) if need else got is None


def test_no_tensor_grows_with_rows_times_keys():
    rows = 4096
    mask = IntervalMask.from_slices([[0, rows]], [[0, rows]], 1, rows, rows)
    q, k, v = inputs_of(make_case(mask, heads=(2, 1), dtype=torch.float32))

    class LargestTensor(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.elements = max(self.elements, result.untyped_storage().size() // result.element_size())
            return result

    with LargestTensor() as largest:
        out, lse, _ = attention_forward(q, k, v, mask.lo, mask.hi, None, 1.0, 0.0)
        attention_backward(out, None, q, k, v, out, lse, mask.lo, mask.hi, None, 1.0, 0.0)
    assert 0 < largest.elements <= rows * rows // 16
