"""A call that came before is not checked again, and nothing that should be refused passes for it."""

import copy
import pickle

import numpy as np
import pytest
import torch

from cute_attn import IntervalMask, backend, flex_flash_attn_func, prepare, sim
from cute_attn.mask import causal
from cute_attn.mask.source import MaskSource
from cute_attn.ops import flex_flash, mask_cache, ready

ROWS = 40


@pytest.fixture(autouse=True)
def launched(monkeypatch):
    """The tensors of all launches, none of which is done; kernels are not made."""
    found = []
    kernel = type("Kernel", (), {"function": None, "ptx": ""})()
    monkeypatch.setattr("cute_attn.launch.run.kernel", lambda spec, backend: kernel)
    monkeypatch.setattr(sim, "run", lambda function, tensors, *rest, **options: found.append(tensors))
    with backend("sim"):
        yield found
    mask_cache.clear_masks()  # whose calls keep that kernel


@pytest.fixture
def checked(monkeypatch):
    """Of each call that is checked, an entry."""
    found, check = [], flex_flash.check_qkv
    monkeypatch.setattr(flex_flash, "check_qkv", lambda *x: found.append(x) or check(*x))
    return found


def halves(rows=ROWS):
    return [torch.randn(rows, heads, 64, dtype=torch.bfloat16) for heads in (4, 2, 2)]


def test_other_values_are_the_same_call(launched, checked):
    mask = causal(ROWS)
    for _ in range(3):
        inputs = halves()
        out, lse = flex_flash_attn_func(*inputs, mask)
        assert [x.data_ptr() for x in launched[-1][:5]] == [x.data_ptr() for x in (*inputs, out, lse)]
    assert len(checked) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"softmax_scale": 0.5},
        {"softcap": 2.0},
        {"deterministic": True},
        {"sm_margin": 4},
        {"softmax_scale": np.float64(0.5)},
    ],
)
def test_other_arguments_are_other_calls(options, checked):
    mask, inputs = causal(ROWS), halves()
    for given in ({}, options, options, {}):
        flex_flash_attn_func(*inputs, mask, **given)
    assert len(checked) == 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"softcap": False}, TypeError, "softcap must be a number"),
        ({"sm_margin": False}, TypeError, "sm_margin must be an int >= 0"),
        ({"deterministic": 0}, TypeError, "deterministic must be True or False"),
        ({"auto_range_merge": 0}, TypeError, "auto_range_merge must be True or False"),
        ({"sink_layout": ["sh"]}, ValueError, "sink_layout must be 'sh' or 'ssh'"),
        ({"return_max_logits": 0}, TypeError, "return_max_logits must be True or False"),
        ({"softmax_scale": float("nan")}, ValueError, "softmax_scale must be finite"),
        ({"k_ranges": [[0, 1]]}, ValueError, "k_ranges must be None"),
    ],
)
def test_what_equals_a_good_argument_and_is_none_is_refused(options, error, message):
    mask, inputs = causal(ROWS), halves()
    flex_flash_attn_func(*inputs, mask)
    for _ in range(2):
        with pytest.raises(error, match=message):
            flex_flash_attn_func(*inputs, mask, **options)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda q, k, v: (q[1:], k, v), ValueError, "q_ranges must be an IntervalMask of batch 1 for 39 queries"),
        (lambda q, k, v: (q.half(), k, v), TypeError, "q, k and v must have one dtype"),
        (lambda q, k, v: (q, k, v.to("meta")), ValueError, "q, k and v must be on one device"),
        (lambda q, k, v: (q.to_sparse(), k, v), TypeError, "q must be a dense tensor"),
        (lambda q, k, v: (q.float(), k.float(), v.float()), NotImplementedError, "bfloat16 and float16"),
        (lambda q, k, v: (q, k, 3), TypeError, "v must be a torch.Tensor"),
    ],
)
def test_other_tensors_are_checked(change, error, message):
    mask, inputs = causal(ROWS), halves()
    flex_flash_attn_func(*inputs, mask)
    with pytest.raises(error, match=message):
        flex_flash_attn_func(*change(*inputs), mask)


def test_another_backend_is_another_call(checked):
    mask, inputs = causal(ROWS), halves()
    flex_flash_attn_func(*inputs, mask)
    with backend("sim", softmax="exact"):
        flex_flash_attn_func(*inputs, mask)
    with backend("reference"):
        out, _ = flex_flash_attn_func(*inputs, mask)
    assert len(checked) == 3
    assert out.isfinite().all()


def test_ranges_of_the_same_numbers_are_the_same_call_and_others_are_read_again(launched, checked):
    inputs = halves()
    ranges, types = torch.tensor([[0, ROWS]]), torch.tensor([1])
    for _ in range(3):
        flex_flash_attn_func(*inputs, ranges.clone(), ranges.t().contiguous().t(), attn_type_map=types.clone())
    assert len(checked) == 1
    bounds = launched[-1][5:7]
    ranges.numpy()[0, 1] = ROWS - 8  # which no version of the tensor counts
    flex_flash_attn_func(*inputs, torch.tensor([[0, ROWS]]), ranges, attn_type_map=types)
    assert len(checked) == 2
    assert not all(map(torch.equal, launched[-1][5:7], bounds))


@pytest.mark.parametrize(
    ("ranges", "end"),
    [
        (torch._neg_view(torch.tensor([[0, -ROWS]])), ROWS),
        (torch._efficientzerotensor((1, 2), dtype=torch.int64), 0),  # which has no memory
        (torch.tensor([[0, 1], [ROWS, 2]]).t()[:1], ROWS),
    ],
)
def test_ranges_are_what_they_mean_not_what_their_memory_holds(ranges, end):
    rows, cpu = torch.tensor([[0, ROWS]]), torch.device("cpu")
    for _ in range(2):
        mask, _ = mask_cache.find_mask(MaskSource("slices", rows, ranges), ROWS, ROWS, cpu)
        assert mask.equals(IntervalMask.from_slices([[0, ROWS]], [[0, end]], None, ROWS, ROWS))


def test_of_more_bytes_than_are_read_at_once_all_count(monkeypatch):
    read, sizes = mask_cache.string_at, []
    monkeypatch.setattr(mask_cache, "PIECE", 24)
    monkeypatch.setattr(mask_cache, "string_at", lambda place, size: sizes.append(size) or read(place, size))
    rows, ranges = torch.tensor([[0, 8], [8, ROWS]]), torch.tensor([[0, 8], [0, ROWS]])
    for end in (ROWS, ROWS, 9):
        ranges[1, 1] = end
        mask, _ = mask_cache.find_mask(MaskSource("slices", rows, ranges), ROWS, ROWS, torch.device("cpu"))
        assert mask.equals(IntervalMask.from_slices(rows, ranges, None, ROWS, ROWS))
    assert set(sizes) == {24, 8}


@pytest.mark.parametrize(("name", "place"), [("q", 0), ("k", 1)])
def test_tensors_without_dimensions_are_refused_with_ranges_that_came_before(name, place):
    inputs, ranges = halves(), torch.tensor([[0, ROWS]])
    flex_flash_attn_func(*inputs, ranges, ranges)
    inputs[place] = inputs[place].sum()
    with pytest.raises(ValueError, match=rf"{name} must have shape"):
        flex_flash_attn_func(*inputs, ranges, ranges)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k_ranges": torch.tensor([[0.0, ROWS]])}, TypeError, "k_ranges must hold integers"),
        ({"k_ranges": torch.tensor([[0, ROWS]]).to_sparse()}, TypeError, "k_ranges must be a dense tensor"),
        ({"k_ranges": torch.tensor([[0, ROWS + 1]])}, ValueError, "k_ranges"),
        ({"k_ranges": torch.tensor([[0, ROWS], [0, 1]])}, ValueError, "k_ranges"),
        ({"attn_type_map": torch.tensor([4])}, ValueError, "attn_type_map"),
        ({"attn_type_map": torch.tensor([1, 1])}, ValueError, "attn_type_map must have shape"),
        ({"max_seqlen_q": 1}, ValueError, "max_seqlen_q"),
    ],
)
def test_other_ranges_are_checked(change, error, message):
    inputs, ranges = halves(), torch.tensor([[0, ROWS]])
    good = {"q_ranges": ranges, "k_ranges": ranges, "attn_type_map": torch.tensor([1])}
    flex_flash_attn_func(*inputs, **good)
    for _ in range(2):
        with pytest.raises(error, match=message):
            flex_flash_attn_func(*inputs, **good | change)


def test_gradients_come_and_go(launched):
    mask, inputs = causal(ROWS), halves()
    assert not flex_flash_attn_func(*inputs, mask)[0].requires_grad
    inputs[1].requires_grad_()
    for _ in range(2):
        out, lse = flex_flash_attn_func(*inputs, mask)
        assert out.requires_grad
        assert lse.requires_grad
        (grad,) = torch.autograd.grad(out, inputs[1], out)
        assert grad.shape == inputs[1].shape
    with torch.no_grad():
        assert not flex_flash_attn_func(*inputs, mask)[0].requires_grad
    assert len(launched) == 6


def test_strides_that_need_a_copy_get_it_also_when_others_came_before(launched):
    mask, (q, k, v) = causal(ROWS), halves()
    flex_flash_attn_func(q, k, v, mask)
    odd = q.transpose(0, 2).contiguous().transpose(0, 2)
    flex_flash_attn_func(odd, k, v, mask)
    assert torch.equal(launched[-1][0][0], q)
    assert launched[-1][0].is_contiguous()
    flex_flash_attn_func(q, k, v, mask)
    assert launched[-1][0].data_ptr() == q.data_ptr()


def test_a_mask_keeps_so_many_calls_and_no_more(monkeypatch):
    monkeypatch.setattr(ready, "REMEMBERED", 3)
    mask, inputs = causal(ROWS), halves()
    for margin in range(8):
        flex_flash_attn_func(*inputs, mask, sm_margin=margin)
    assert len(mask._derived["calls"]) <= 3


def test_a_mask_that_keeps_calls_is_copied_and_pickled():
    mask, inputs = causal(ROWS), halves()
    flex_flash_attn_func(*inputs, mask)
    for other in (copy.deepcopy(mask), pickle.loads(pickle.dumps(mask))):
        assert other.equals(mask)
        flex_flash_attn_func(*inputs, other)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_prepared_call_is_copied_without_its_kernel_and_finds_it_again(copied, launched):
    inputs = halves()
    other = copied(prepare(*inputs, causal(ROWS)))
    assert other._call.launch._kernel is None
    for _ in range(2):
        other(*inputs)
        assert other._call.launch._kernel is not None
    assert len(launched) == 2
