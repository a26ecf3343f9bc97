"""A prepared call gives what the ordinary one gives, takes tensors like those that it was prepared with and no others,
and allocates nothing that it need not."""

import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import cute_attn
from cute_attn import IntervalMask, backend, flex_flash_attn_func, prepare
from cute_attn.launch.backward import backward as kernels_backward
from cute_attn.mask import causal, full

ROWS = 40


def randn(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype)


def packed(rows=ROWS, keys=ROWS, heads=(4, 2), dims=(8, 16), dtype=torch.float64):
    return (
        randn(rows, heads[0], dims[0], dtype=dtype),
        randn(keys, heads[1], dims[0], dtype=dtype),
        randn(keys, heads[1], dims[1], dtype=dtype),
    )


MASKS = {
    "causal": causal(ROWS),
    "rows without keys": IntervalMask.from_slices([[5, 20]], [[0, 33]], "causal", ROWS, ROWS),
    "no pairs": IntervalMask.from_slices([[0, 0]], [[0, 0]], None, ROWS, ROWS),
    "of each head": IntervalMask.from_intervals(
        torch.arange(4).view(1, 4, 1, 1).expand(1, 4, 1, ROWS), torch.full((1, 4, 1, ROWS), 30), ROWS
    ),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_a_prepared_call_gives_what_the_ordinary_one_gives(mask, softcap):
    q, k, v = packed()
    sink = randn(3, 4)
    options = {"softmax_scale": 0.3, "softcap": softcap, "sink": sink}
    wanted = flex_flash_attn_func(q, k, v, mask, **options)
    attend = prepare(q, k, v, mask, **options)
    for given in ((), (torch.empty_like(wanted[0]), torch.empty_like(wanted[1]))):
        found = attend(q, k, v, *given)
        assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))
        assert all(x is y for x, y in zip(found, given, strict=False))


def test_batches_are_taken_as_they_are():
    inputs = [torch.stack([x, -x]) for x in packed()]
    out, lse = prepare(*inputs, causal(ROWS))(*inputs)
    assert (out.shape, lse.shape) == ((2, ROWS, 4, 16), (2, 4, ROWS))
    for i in range(2):
        wanted, wanted_lse = flex_flash_attn_func(*[x[i] for x in inputs], causal(ROWS))
        torch.testing.assert_close((out[i], lse[i]), (wanted, wanted_lse))


@pytest.mark.parametrize(("rows", "keys"), [(1, 1), (1, 7), (0, 3), (3, 0)])
def test_one_token_and_none(rows, keys):
    inputs = packed(rows, keys)
    found = prepare(*inputs, full(rows, keys))(*inputs)
    for x, y in zip(found, flex_flash_attn_func(*inputs, full(rows, keys)), strict=True):
        assert torch.equal(x, y)


def test_other_values_and_strides_of_the_same_kind_are_taken():
    attend = prepare(*packed(), causal(ROWS))
    for _ in range(2):
        wide = [torch.stack([x, x], -2).flatten(-3, -2)[:, ::2] for x in packed()]
        assert not any(x.is_contiguous() for x in wide)
        torch.testing.assert_close(attend(*wide), flex_flash_attn_func(*wide, causal(ROWS)))


def test_a_mask_is_what_it_was_and_a_sink_is_what_it_is():
    ranges, sink = torch.tensor([[0, ROWS]]), torch.zeros(4)
    inputs = packed()
    mask = IntervalMask.from_slices(ranges, ranges, None, ROWS, ROWS)
    attend = prepare(*inputs, mask, sink=sink)
    ranges.fill_(0)
    sink.fill_(1.0)
    torch.testing.assert_close(
        attend(*inputs), flex_flash_attn_func(*inputs, [[0, ROWS]], [[0, ROWS]], sink=torch.ones(4))
    )


def test_threads_share_a_prepared_call():
    attend, wrong = prepare(*packed(), causal(ROWS)), []
    problems = [packed() for _ in range(4)]
    wanted = [flex_flash_attn_func(*inputs, causal(ROWS)) for inputs in problems]

    def work(inputs, results):
        for _ in range(20):
            wrong.extend(not torch.equal(x, y) for x, y in zip(attend(*inputs), results, strict=True))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(problems, wanted, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 160
    assert not any(wrong)


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("is_packed", [True, False])
def test_gradients_are_those_of_the_ordinary_call(is_packed):
    inputs = [x if is_packed else x[None] for x in packed()]
    sink = randn(4)
    leaves = [x.requires_grad_() for x in (*inputs, sink)]
    attend = prepare(*inputs, causal(ROWS), sink=sink, softcap=3.0, backward=True)
    found = torch.autograd.grad(sum(x.square().sum() for x in attend(*inputs)), leaves)
    plain = [x if is_packed else x[0] for x in inputs]
    out, lse = flex_flash_attn_func(*plain, causal(ROWS), sink=sink, softcap=3.0)
    wanted = torch.autograd.grad(out.square().sum() + lse.square().sum(), leaves)
    torch.testing.assert_close(found, wanted)


def test_gradients_come_in_batches_and_have_none_of_their_own():
    q, k, v = (x.requires_grad_() for x in packed())
    out, _ = prepare(q, k, v, causal(ROWS), backward=True)(q, k, v)
    douts = randn(3, *out.shape)
    (found,) = torch.autograd.grad(out, v, douts, retain_graph=True, is_grads_batched=True)
    for grad, dout in zip(found, douts, strict=True):
        torch.testing.assert_close(grad, torch.autograd.grad(out, v, dout, retain_graph=True)[0])
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="attention has no second derivative"):
        grad.sum().backward()


def test_a_gradient_that_was_not_prepared_is_refused():
    q, k, v = packed()
    attend = prepare(q, k, v, causal(ROWS))
    v.requires_grad_()
    with pytest.raises(RuntimeError, match="prepared without: give backward=True"):
        attend(q, k, v)
    with torch.no_grad():
        assert not attend(q, k, v)[0].requires_grad
    attend = prepare(q, k, v, causal(ROWS), backward=True)
    with pytest.raises(ValueError, match="out and lse must be None where a gradient is asked for"):
        attend(q, k, v, out=torch.empty(ROWS, 4, 16, dtype=torch.float64))


def test_a_write_into_out_is_seen_by_a_backward_that_kept_it():
    inputs, weight = packed(), randn(1).requires_grad_()
    attend = prepare(*inputs, causal(ROWS))
    out, lse = attend(*inputs)
    product = (out * weight).sum() + (lse * weight).sum()
    attend(*inputs, out, lse)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


# ---------------------------------------------------------------- wrong input


def changed(**others):
    def change(q, k, v):
        return tuple(others.get(name, lambda x: x)(x) for name, x in zip("qkv", (q, k, v), strict=True))

    return change


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (changed(q=lambda x: x[1:]), ValueError, r"q must have the shape that was prepared, \(40, 4, 8\), got \(39"),
        (changed(k=lambda x: x[1:]), ValueError, "k and v must have one length"),
        (changed(q=lambda x: x[None]), ValueError, "q must have shape"),
        (changed(v=lambda x: x.float()), TypeError, "q, k and v must have one dtype"),
        (lambda *x: [y.float() for y in x], TypeError, "q must have the dtype that was prepared, torch.float64, got"),
        (lambda *x: [y.to("meta") for y in x], ValueError, "q must be on the device that was prepared, cpu, got meta"),
        (changed(k=lambda x: x.to("meta")), ValueError, "q, k and v must be on one device"),
        (changed(q=lambda x: x.tolist()), TypeError, "q must be a torch.Tensor, got list"),
        (changed(q=lambda x: x.to_sparse()), TypeError, "q must be a dense tensor"),
    ],
)
def test_other_tensors_are_refused(change, error, message):
    inputs = packed()
    attend = prepare(*inputs, causal(ROWS))
    with pytest.raises(error, match=message):
        attend(*change(*inputs))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"out": torch.empty(ROWS, 4, 8, dtype=torch.float64)},
            ValueError,
            r"out must have shape \(40, 4, 16\) on cpu",
        ),
        ({"out": torch.empty(ROWS, 4, 16)}, TypeError, "out must be torch.float64, got torch.float32"),
        ({"out": 3}, TypeError, "out must be a torch.Tensor or None, got int"),
        ({"lse": torch.empty(ROWS, 4, dtype=torch.float64)}, ValueError, r"lse must have shape \(4, 40\)"),
        ({"lse": torch.empty(ROWS, 4, dtype=torch.float64).T}, ValueError, "lse must have a last stride of 1"),
        ({"lse": torch.empty(4, ROWS, dtype=torch.float64, device="meta")}, ValueError, "on cpu, got .* on meta"),
        ({"lse": torch.empty(4, ROWS, dtype=torch.float64, requires_grad=True)}, ValueError, "need no gradient"),
    ],
)
def test_what_cannot_be_written_is_refused(given, error, message):
    inputs = packed()
    with pytest.raises(error, match=message):
        prepare(*inputs, causal(ROWS))(*inputs, **given)


def test_results_that_lie_in_an_argument_are_refused():
    q, k, v = packed(dims=(8, 8))
    attend = prepare(q, k, v, causal(ROWS))
    with pytest.raises(ValueError, match="out must share no memory with another argument"):
        attend(q, k, v, out=q)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (packed(39), {}, ValueError, "mask must be an IntervalMask of batch 1 for 39 queries"),
        (packed(), {"softmax_scale": "1"}, TypeError, "softmax_scale must be a number"),
        (packed(), {"softcap": -1.0}, ValueError, "softcap must be >= 0"),
        (packed(), {"deterministic": 1}, TypeError, "deterministic must be True or False"),
        (packed(), {"backward": None}, TypeError, "backward must be True or False"),
        (packed(), {"sink": torch.zeros(3)}, ValueError, "sink of layout 'sh' must have shape"),
        ((*packed()[:2], None), {}, TypeError, "v must be a torch.Tensor"),
    ],
)
def test_prepare_checks_its_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        prepare(*arguments, causal(ROWS), **options)


def test_prepare_takes_an_interval_mask_alone():
    with pytest.raises(TypeError, match="mask must be an IntervalMask, got"):
        prepare(*packed(), torch.ones(ROWS, ROWS, dtype=torch.bool))


# ---------------------------------------------------------------- who else looks


def test_a_compiled_function_calls_it():
    torch._dynamo.reset()
    inputs = packed()
    attend = prepare(*inputs, causal(ROWS))
    compiled = torch.compile(lambda *x: attend(*x)[0] * 2, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), attend(*inputs)[0] * 2)
    with pytest.raises(RuntimeError, match="prepare is called outside of what is compiled"):
        torch.compile(lambda *x: prepare(*x, causal(ROWS))(*x), fullgraph=True, backend="eager")(*inputs)


def test_a_mode_sees_an_op():
    inputs, seen = packed(), []

    class Ops(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    attend, out = prepare(*inputs, causal(ROWS)), randn(ROWS, 4, 16)
    with Ops():
        found, _ = attend(*inputs, out)
    assert any("cute_attn.attention" in name for name in seen)
    assert found is out
    torch.testing.assert_close(out, attend(*inputs)[0])


# ---------------------------------------------------------------- on kernels


def halves(rows=300, heads=(2, 1), dims=(128, 128)):
    return packed(rows, rows, heads, dims, torch.bfloat16)


@pytest.fixture
def launched(monkeypatch):
    """The arguments of all launches, none of which is done; kernels are not made."""
    from cute_attn import sim

    found = []
    kernel = type("Kernel", (), {"function": None, "ptx": ""})()
    monkeypatch.setattr("cute_attn.launch.run.kernel", lambda spec, backend: kernel)
    monkeypatch.setattr(sim, "run", lambda function, *arguments, **options: found.append(arguments))
    return found


def test_kernels_read_and_write_where_the_tensors_lie_and_nothing_is_allocated(launched, monkeypatch):
    inputs = halves()
    with backend("sim"):
        attend = prepare(*inputs, causal(300), sink=torch.zeros(2))
    out, lse = torch.empty(300, 2, 128, dtype=torch.bfloat16), torch.empty(2, 300)
    for owner, name in ((torch.Tensor, "new_empty"), (torch, "empty_strided"), (torch, "empty"), (torch, "empty_like")):
        monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("allocated"))
    assert attend(*inputs, out, lse) == (out, lse)
    ((tensors, _, _),) = launched
    places = [x.data_ptr() for x in tensors[:5]]
    assert places == [x.data_ptr() for x in (*inputs, out, lse)]
    assert tensors[7].shape == (1, 2, 300)


@pytest.mark.parametrize(
    ("shift", "message"),
    [
        (lambda x: torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape), r"data_ptr\(\) % 16 = 2"),
        (lambda x: x.transpose(0, 2).contiguous().transpose(0, 2), "q must lie as kernels read it"),
    ],
)
def test_what_kernels_would_have_to_copy_is_refused(shift, message, launched):
    q, k, v = halves()
    with backend("sim"):
        attend = prepare(q, k, v, causal(300))
        attend(q, k, v)
        with pytest.raises(ValueError, match=message):
            attend(shift(q), k, v)
        with pytest.raises(ValueError, match="out must lie as kernels read it"):
            attend(q, k, v, out=shift(q).detach())
    assert len(launched) == 1


def test_strides_of_dimensions_of_one_do_not_matter(launched):
    q, k, v = halves(heads=(1, 1))
    odd = q.as_strided(q.shape, (128, 3, 1))
    with backend("sim"):
        attend = prepare(q, k, v, causal(300))
        attend(odd, k, v)
        attend(odd, k, v)
    assert [tensors[0].stride()[2] for tensors, _, _ in launched] == [8, 8]


def test_the_backend_is_that_of_its_making_and_its_kernels_are_recorded(launched):
    q, k, v = halves()
    with backend("sim"):
        attend = prepare(q, k, v, causal(300))
    with cute_attn.record_specs() as recorder:
        attend(q, k, v)
    assert len(launched) == 1
    assert [spec.op for spec in recorder.specs] == ["fwd"]
    assert "backend='sim'" in repr(attend)


def test_where_no_row_has_a_key_no_kernel_is_made(monkeypatch):
    monkeypatch.setattr("cute_attn.launch.run.kernel", lambda *_: pytest.fail("made"))
    inputs = halves()
    with backend("sim"):
        attend = prepare(*inputs, causal(300) & ~causal(300), sink=torch.ones(2))
    out, lse = attend(*inputs)
    assert (out == 0).all()
    assert (lse == 1).all()


class NewMemory(TorchDispatchMode):
    """Counts the bytes of what is allocated within it."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        known = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in known:
                self.bytes += x.untyped_storage().nbytes()
        return result


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_workspace_is_what_a_backward_allocates_beside_its_results(deterministic, launched):
    inputs = halves()
    with backend("sim"):
        assert prepare(*inputs, causal(300)).workspace_bytes == 0
        attend = prepare(*inputs, causal(300), backward=True, deterministic=deterministic)
    q, k, v = (x[None] for x in inputs)
    out, lse, mask = torch.zeros_like(q), torch.zeros(1, 2, 300), causal(300)
    options = {"softmax_scale": 1.0, "deterministic": deterministic, "needs_delta": False, "backend": "sim"}
    kernels_backward(out, q, k, v, out, lse, mask, **options)  # makes what belongs to the mask, once
    with NewMemory() as memory:
        kernels_backward(out, q, k, v, out, lse, mask, **options)
    results = sum(x.nbytes for x in inputs)
    assert attend.workspace_bytes == memory.bytes - results > 0


def test_the_simulated_kernel_gives_what_it_gives_the_ordinary_call():
    q, k, v = halves(150)
    wide = torch.cat([q, k, v], 1)
    q, k, v = wide.split((2, 1, 1), 1)  # views of one projection
    out, lse = torch.full((150, 2, 128), torch.nan, dtype=q.dtype), torch.full((2, 150), torch.nan)
    with backend("sim"):
        found = prepare(q, k, v, causal(150))(q, k, v, out, lse)
        wanted = flex_flash_attn_func(q, k, v, causal(150))
    assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))


@pytest.mark.slow
def test_simulated_gradients_are_those_of_the_ordinary_call_and_of_the_reference():
    inputs, mask = [x.requires_grad_() for x in halves(70)], causal(70)

    def gradients(attend):
        out, _ = attend()
        return torch.autograd.grad(out.float().square().sum(), inputs)

    wanted = gradients(lambda: flex_flash_attn_func(*inputs, mask))
    with backend("sim"):
        attend = prepare(*inputs, mask, backward=True)
        found = gradients(lambda: attend(*inputs))
        for _ in range(2):  # a call that is new to the mask, and one that is not
            ordinary = gradients(lambda: flex_flash_attn_func(*inputs, mask))
            assert all(torch.equal(x, y) for x, y in zip(found, ordinary, strict=True))
    for x, y in zip(found, wanted, strict=True):
        assert (x - y).abs().max() <= 0.02 * y.abs().max()


@pytest.mark.gpu
def test_a_cuda_graph_holds_a_prepared_call():
    inputs = [x.cuda() for x in halves()]
    mask = causal(300, device="cuda")
    attend = prepare(*inputs, mask)
    out, lse = attend(*inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attend(*inputs, out, lse)
    for x in inputs:
        x.copy_(torch.randn_like(x))
    graph.replay()
    torch.testing.assert_close((out, lse), flex_flash_attn_func(*inputs, mask), rtol=0, atol=0)
