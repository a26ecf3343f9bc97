"""Global memory that nobody wrote: reading it is an error, by whatever instruction, and what stays so is reported."""

import gc

import kernels
import numpy as np
import pytest
import torch
from snippet import run, tensor_map

from cute_attn import sim
from cute_attn.sim.errors import UninitializedRead
from cute_attn.sim.fresh import FreshMemory

BARRIER = "mov.u32 %r9, smem; mbarrier.init.shared.b64 [%r9+1024], 1; fence.proxy.async.shared::cta;"
WAIT = "WAIT: mbarrier.try_wait.parity.shared.b64 %p2, [%r9+1024], 0; @!%p2 bra WAIT;"
ONE = "setp.ne.u32 %p1, %t, 0; @%p1 bra END;"
READS = {
    "load": "ld.global.u32 %r1, [%a0];",
    "byte": "ld.global.u8 %r1, [%a0];",
    "vector": "ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%a0];",
    "atomic": "atom.global.add.u32 %r1, [%a0], 1;",
    "reduction": "red.global.add.u32 [%a0], 1;",
    "asynchronous copy": "mov.u32 %r9, smem; cp.async.ca.shared.global [%r9], [%a0], 16; cp.async.wait_all;",
    "bulk copy": BARRIER + "mbarrier.arrive.expect_tx.shared.b64 _, [%r9+1024], 64;"
    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r9], [%a0], 64, [%r9+1024];" + WAIT,
    "bulk reduction": "mov.u32 %r9, smem; st.shared.v4.u32 [%r9], {1, 1, 1, 1}; fence.proxy.async.shared::cta;"
    "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [%a0], [%r9], 16;"
    "cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;",
}


@pytest.mark.parametrize("mode", ["eager", "late"])
@pytest.mark.parametrize("name", READS)
def test_every_way_of_reading_names_the_tensor(name, mode):
    body = f"{ONE} {READS[name]}\n END:"
    run(body, np.zeros(32, np.uint32), smem=2048, mode=mode)
    with pytest.raises(UninitializedRead, match="byte 0 of argument 0 that nobody wrote") as caught:
        run(body, np.zeros(32, np.uint32), smem=2048, mode=mode, unwritten=[0])
    assert caught.value.place.line


@pytest.mark.parametrize("operation", ["load", "add"])
def test_tensor_copies_and_reductions_do_too(operation):
    array = np.zeros((8, 8), np.float32)
    body = {
        "load": BARRIER + "mbarrier.arrive.expect_tx.shared.b64 _, [%r9+1024], 64;"
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r9], "
        "[%d1, {%r20, %r21}], [%r9+1024];" + WAIT,
        "add": "mov.u32 %r9, smem; st.shared.v4.u32 [%r9], {0, 0, 0, 0}; st.shared.v4.u32 [%r9+16], {0, 0, 0, 0};"
        "st.shared.v4.u32 [%r9+32], {0, 0, 0, 0}; st.shared.v4.u32 [%r9+48], {0, 0, 0, 0};"
        "fence.proxy.async.shared::cta;"
        "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%d1, {%r20, %r21}], [%r9];"
        "cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;",
    }[operation]
    body = "mov.b64 %d1, p1; mov.u32 %r20, 0; mov.u32 %r21, 2;" + body
    arguments = array, tensor_map(array, (2, 8))
    run(f"{ONE} {body}\n END:", *arguments, smem=2048)
    with pytest.raises(UninitializedRead, match="byte 64 of argument 0 that nobody wrote"):
        run(f"{ONE} {body}\n END:", *arguments, smem=2048, unwritten=[0])


def test_what_a_kernel_wrote_it_may_read():
    body = "mad.wide.u32 %o, %t, 4, %a0; st.global.u32 [%o], 1; bar.sync 0; xor.b32 %r2, %t, 31;"
    body += "mad.wide.u32 %o, %r2, 4, %a0; ld.global.u32 %r1, [%o]; ld.global.u8 %r3, [%o+2];"
    run(body, np.zeros(32, np.uint32), unwritten=[0])


def tensors(n=300):
    return torch.randn(n), torch.randn(n), torch.full((n,), float("nan"))


def test_a_caller_says_which_tensors_are_fresh_and_learns_what_stayed_so():
    x, y, out = tensors()
    assert sim.run(kernels.scaled_sum(), x, y, out, 2.0, fresh=[out]).unwritten == {}
    with pytest.raises(UninitializedRead, match="byte 0 of x that nobody wrote"):
        sim.run(kernels.scaled_sum(), x, y, out, 2.0, fresh=[x])
    assert sim.run(kernels.scaled_sum(), x, y, out, 2.0).unwritten == {}


def test_what_other_tensors_share_with_a_fresh_one_counts_as_written():
    both, y, out = torch.randn(400), torch.randn(200), torch.empty(200)
    x = both[:200]
    sim.run(kernels.scaled_sum(), x, y, out, 2.0, fresh=[out])
    assert torch.equal(out, 2.0 * x + y)
    sim.run(kernels.scaled_sum(), x, both[:200], out, 2.0, fresh=[x])  # the same memory, by another tensor


@pytest.mark.parametrize(
    ("fresh", "error", "message"),
    [
        ([1], TypeError, r"fresh\[0\] must be a tensor, got int"),
        ([torch.ones(3)], ValueError, r"fresh\[0\] must be among"),
    ],
)
def test_fresh_tensors_are_those_of_the_call(fresh, error, message):
    with pytest.raises(error, match=message):
        sim.run(kernels.scaled_sum(), *tensors(), 1.0, fresh=fresh)


def test_memory_that_host_code_allocates_is_noted_from_call_to_call():
    x, y, out = tensors()
    with sim.simulated():
        fresh = torch.empty(300)
        with pytest.raises(UninitializedRead, match="of x that nobody wrote"):
            kernels.scaled_sum()(fresh, y, out, 1.0)
        kernels.scaled_sum()(x, y, fresh, 1.0)
        kernels.scaled_sum()(fresh, y, out, 1.0)
    assert torch.equal(out, x + y + y)


@pytest.mark.parametrize("allocate", [
    lambda: torch.empty(4, 6), lambda: torch.ones(4, 6).new_empty(4, 6), lambda: torch.empty_like(torch.ones(4, 6)),
    lambda: torch.empty_strided((4, 6), (6, 1)),
])  # fmt: skip
def test_every_allocation_is_noted_and_pytorch_s_writes_clear_what_they_write(allocate):
    with FreshMemory() as memory:
        x = allocate()
        assert memory.of(x).all()
        x[1:, 2] = 1.0
        assert (~memory.of(x)).reshape(4, 6, 4).all(2).sum() == 3
        x.view(-1)[:2].copy_(torch.ones(2))
        assert (~memory.of(x)).sum() == 4 * 5
        torch.add(torch.ones(4, 6), 1.0, out=x)
        assert not memory.of(x).any()
        assert memory.of(torch.zeros(5)) is None


def test_a_reused_address_has_no_shadow_of_what_lay_there_before():
    with FreshMemory() as memory:
        x = torch.empty(1000)
        address = x.data_ptr()
        del x
        gc.collect()
        others = [torch.ones(1000) for _ in range(50)]
        assert all(memory.of(other) is None for other in others)
        if any(other.data_ptr() == address for other in others):
            assert address not in memory.shadows


def test_memory_filled_by_pytorch_for_debugging_is_still_fresh():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with FreshMemory() as memory:
            assert memory.of(torch.empty(10)).all()
    finally:
        torch.use_deterministic_algorithms(False)
