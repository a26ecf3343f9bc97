"""Which memory is known to be unwritten: named in `run`, or allocated within `simulated` and not written since."""

import copy
import gc

import kernels
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.flex_attention import flex_attention

from cute_attn import sim
from cute_attn.sim.errors import UninitializedRead
from cute_attn.sim.host import capture, gpu
from cute_attn.sim.host.fresh import FreshMemory


@pytest.fixture
def memory():
    with FreshMemory() as memory:
        yield memory


def unwritten(memory, tensor):
    """How many bytes, of the memory that a tensor has a part of."""
    storage = tensor.untyped_storage()
    shadow = memory.shadow(storage.data_ptr(), storage.nbytes())
    return 0 if shadow is None else int(shadow.sum())


# ---------------------------------------------------------------------------- run(fresh=)


def vectors(n):
    return torch.randn(n), torch.empty(n), torch.empty(n)


def test_a_kernel_must_not_read_fresh_tensors():
    x, y, out = vectors(300)
    with pytest.raises(UninitializedRead, match="read of byte 0 of y that nobody wrote") as caught:
        sim.run(kernels.scaled_sum(), x, y, out, 1.0, fresh=(y, out))
    place = caught.value.place
    assert "scaled_sum" in place.kernel
    assert place.text.startswith("ld.global")
    assert place.warps == (0, 1, 2, 3)


def test_a_kernel_may_write_fresh_tensors_and_none_are_skipped():
    x, y, out = vectors(300)
    report = sim.run(kernels.scaled_sum(), x, y.zero_(), out, 1.0, fresh=(None, out))
    assert torch.equal(out, x)
    assert report.unwritten == {}


def test_the_report_says_how_many_bytes_of_a_fresh_tensor_nobody_wrote(monkeypatch):
    def execute(launch, buffers, schedule, **options):
        next(b for b in buffers if b.name == "out").unwritten[:100] = False
        return sim.Report()

    monkeypatch.setattr(capture, "execute", execute)
    x, y, out = vectors(300)
    assert sim.run(kernels.scaled_sum(), x, y, out, 1.0, fresh=(y, out)).unwritten == {"y": 1200, "out": 1100}


def test_a_reduction_into_a_fresh_tensor_reads_it():
    out = torch.empty(128)
    with pytest.raises(UninitializedRead, match="out that nobody wrote"):
        sim.run(kernels.column_sums(), torch.ones(8, 128), out, torch.zeros(1), fresh=(out,))


def test_what_a_fresh_tensor_shares_with_another_argument_is_written():
    both = torch.randn(300)
    x, out = both[:200], both[100:]
    sim.run(kernels.scaled_sum(), x, x, out, 1.0, fresh=(out,))
    y = both[50:250]
    with pytest.raises(UninitializedRead, match=r"x\+y that nobody wrote"):  # y's last 50
        sim.run(kernels.scaled_sum(), x, y, torch.empty(200), 1.0, fresh=(y,))


@pytest.mark.parametrize(
    ("fresh", "error", "message"),
    [
        (torch.zeros(3), TypeError, "fresh is a tensor; it must be a sequence"),
        ([3], TypeError, r"fresh\[0\] is a int; it must be a tensor or None"),
        ([None, torch.zeros(2, 3)], ValueError, r"fresh\[1\] of shape \(2, 3\) is none of .* passed: x, y, out"),
    ],
)
def test_what_is_called_fresh_must_be_among_the_arguments(fresh, error, message):
    with pytest.raises(error, match=message):
        sim.run(kernels.scaled_sum(), *vectors(10), 1.0, fresh=fresh)


def test_strict_takes_fresh_tensors_of_kernels_and_refuses_them_for_python_code():
    x, y, out = vectors(300)
    with pytest.raises(UninitializedRead):
        sim.strict(kernels.scaled_sum(), x, y, out, 1.0, fresh=(y,))
    assert sim.strict(kernels.scaled_sum(), x, x, out, 1.0, fresh=(out,)).unwritten == {}
    with pytest.raises(ValueError, match="fresh has 1 tensors; Python code takes none"):
        sim.strict(lambda x: x, x, fresh=(x,))


# ---------------------------------------------------------------------------- simulated()


def test_within_simulated_empty_tensors_are_unwritten_until_a_kernel_writes_them():
    x = torch.ones(300)
    with sim.simulated() as reports:
        first, second = torch.empty(300), torch.empty_like(x)
        with pytest.raises(UninitializedRead, match="y that nobody wrote"):
            kernels.scaled_sum()(x, first, second, 1.0)
        kernels.scaled_sum()(x[:200], x[:200], first[:200], 1.0)
        kernels.scaled_sum()(x[:200], first[:200], second[:200], 1.0)
        with pytest.raises(UninitializedRead, match="byte 796 of y"):
            kernels.scaled_sum()(x[:200], first[1:201], second[:200], 1.0)
    assert second[:200].tolist() == [3.0] * 200
    assert [report.unwritten for report in reports] == [{}, {}]


def test_a_backward_of_autograd_is_watched_too():
    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, grad):
            out, unread = torch.empty_like(grad), torch.empty_like(grad)
            kernels.scaled_sum()(grad.contiguous(), torch.zeros_like(grad), out, 2.0)
            with pytest.raises(UninitializedRead, match="y that nobody wrote"):
                kernels.scaled_sum()(out, unread, out, 2.0)
            return out

    x = torch.randn(40, requires_grad=True)
    with sim.simulated():
        Scaled.apply(x).sum().backward()
    assert x.grad.tolist() == [2.0] * 40


def test_a_block_within_another_goes_on_with_what_the_outer_one_knows():
    x = torch.ones(30)
    with sim.simulated():
        first, second = torch.empty(30), torch.empty(30)
        with sim.simulated(mode="late"):
            with pytest.raises(UninitializedRead):
                kernels.scaled_sum()(x, first, second, 1.0)
            kernels.scaled_sum()(x, x, first, 1.0)
        kernels.scaled_sum()(x, first, second, 1.0)


def test_fresh_tensors_named_within_simulated_stay_so_until_written():
    x, y, out = vectors(30)
    with sim.simulated():
        z = torch.zeros(30).mul_(0)
        with pytest.raises(UninitializedRead):
            sim.run(kernels.scaled_sum(), x, z, out, 1.0, fresh=(z, out))
        sim.run(kernels.scaled_sum(), x, x, y, 1.0, fresh=(y,))
        sim.run(kernels.scaled_sum(), x, y, out, 1.0)


def test_tensors_handed_out_to_numpy_or_by_dlpack_count_as_written():
    with sim.simulated():
        x, y, out = (torch.empty(30) for _ in range(3))
        x.numpy()[:] = 1
        np.from_dlpack(y)[:15] = 1
        np.asarray(out)
        kernels.scaled_sum()(x, y, out, 1.0)
    assert torch.Tensor.numpy is torch._C.TensorBase.numpy


# ---------------------------------------------------------------------------- what is noted


@pytest.mark.parametrize(
    "allocate",
    [
        lambda x: torch.empty(4, 5),
        lambda x: torch.empty_like(x),
        lambda x: torch.empty_strided((4, 5), (5, 1)),
        lambda x: torch.empty_permuted((4, 5), (1, 0)),
        lambda x: x.new_empty(4, 5),
        lambda x: x.new_empty_strided((4, 5), (1, 4)),
        lambda x: torch.Tensor(4, 5),
        lambda x: torch.empty(4, 5).requires_grad_(),
    ],
)
@pytest.mark.parametrize("filled", [False, True])
def test_whatever_allocates_is_noted_filled_for_debugging_or_not(memory, allocate, filled):
    torch.use_deterministic_algorithms(filled)
    try:
        tensor = allocate(torch.zeros(4, 5))
    finally:
        torch.use_deterministic_algorithms(False)
    assert unwritten(memory, tensor) == 80


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.tensor([1.0, 2.0]),
        lambda: torch.zeros(4),
        lambda: torch.full((4,), 1.0),
        lambda: torch.randn(4),
        lambda: torch.from_numpy(np.ones(4)),
        lambda: copy.deepcopy(torch.ones(4)),
        lambda: torch.empty(4) + 1,
        lambda: torch.empty(4).clone(),
        lambda: torch.empty(4).set_(torch.ones(4)),
        lambda: torch.nn.Linear(3, 3).weight.detach(),
    ],
)
def test_what_holds_values_is_not(memory, make):
    assert unwritten(memory, make()) == 0


@pytest.mark.parametrize(
    ("write", "left"),
    [
        (lambda x: x.zero_(), 0),
        (lambda x: x[1].copy_(torch.ones(6)), 72),
        (lambda x: x[:, 1:3].fill_(2), 64),
        (lambda x: x.T[5].normal_(), 80),
        (lambda x: x.__setitem__((slice(2), 0), 1.0), 88),
        (lambda x: torch.add(torch.ones(6), 1, out=x[3]), 72),
        (lambda x: torch._foreach_zero_([x[0], x[2]]), 48),
        (lambda x: x.view(torch.uint8)[0, :5].fill_(1), 91),
        (lambda x: x.expand(2, 4, 6)[1].zero_(), 0),
        (lambda x: x.detach().data[0].fill_(1), 72),
        (lambda x: torch.from_dlpack(x.detach())[2].fill_(1), 0),
        (lambda x: x.index_fill_(0, torch.tensor([1]), 3.0), 0),  # not looked into: counts whole
        (lambda x: x.untyped_storage().fill_(0), 0),
        (lambda x: x + 1, 96),
        (lambda x: x[0].tolist(), 96),
    ],
)
def test_what_an_operator_writes_is_written_from_then_on(memory, write, left):
    x = torch.empty(4, 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "__dlpack__", memory.exported(torch.Tensor.__dlpack__))
        write(x)
    assert unwritten(memory, x) == left


def test_memory_of_a_tensor_that_is_gone_may_be_used_again(memory):
    gone = {torch.empty(1 << 12).untyped_storage().data_ptr() for _ in range(100)}
    written = [torch.ones(n) for _ in range(100) for n in (1 << 12, (1 << 12) + gpu.ALIGNMENT // 4)]
    assert gone & {x.data_ptr() for x in written}, "the allocator never gave the same memory again"
    assert not any(unwritten(memory, x) for x in written)


def test_a_view_keeps_what_is_known_of_its_storage(memory):
    view = torch.empty(100)[10:20]
    gc.collect()
    assert int(memory.shadow(view.data_ptr(), 40).sum()) == 40


def test_a_storage_that_was_resized_counts_as_written(memory):
    x = torch.empty(10)
    x.untyped_storage().resize_(4000)
    assert unwritten(memory, x) == 0


def test_operators_outside_of_aten_may_write_whatever_they_take(memory):
    """As those of torch.distributed do: their schemas do not say so."""
    with torch.library._scoped_library("cute_attn_test", "DEF") as library:
        library.define("received(Tensor[] tensors) -> ()")
        library.impl("received", lambda tensors: None, "CPU")
        x = torch.empty(10)
        torch.ops.cute_attn_test.received([x[:5]])
    assert unwritten(memory, x) == 20


def test_fake_tensors_have_no_memory(memory):
    with FakeTensorMode():
        assert torch.empty(3).zero_().shape == (3,)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_operators_of_higher_order_go_on_working():
    q = torch.randn(1, 1, 16, 16)
    with sim.simulated():
        assert flex_attention(q, q, q).isfinite().all()


def test_compiled_functions_run_uncompiled_so_that_their_writes_are_seen():
    fill = torch.compile(lambda x: x.fill_(2.0), fullgraph=True)
    x, out = torch.ones(30), torch.empty(30)
    with sim.simulated():
        y = torch.empty(30)
        fill(y)
        kernels.scaled_sum()(x, y, out, 1.0)
    assert out.tolist() == [3.0] * 30
