"""Tensor maps made by the kernel itself: fields replaced in shared or global memory, published, acquired, used."""

import numpy as np
import pytest
from snippet import run, tensor_map

from cute_attn.sim.errors import (
    MissingProxyFence,
    SimError,
    TensorMapInUse,
    UnsupportedDescriptor,
    UnsupportedInstruction,
)

MODES = ["eager", "late", "random", "starve"]
every_mode = pytest.mark.parametrize("mode", MODES)
ROWS, COLUMNS = 8, 16
COPY = "".join(
    f"ld.param.v2.b64 {{%d20, %d21}}, [p3+{i}]; st.shared.v2.b64 [%r9+{256 + i}], {{%d20, %d21}};"
    for i in (0, 16, 32, 48)
)
PUBLISH = """
    bar.warp.sync -1;
    tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%a2], [%r12], 128;"""
ACQUIRE = "fence.proxy.tensormap::generic.acquire.gpu [%a2], 128;"
LOAD = """
    @!%p1 bra WAIT;
    mbarrier.arrive.expect_tx.shared.b64 _, [%r9], {bytes};
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r9+512], [%a2, {{{x}, {y}}}], [%r9];
    WAIT: mbarrier.try_wait.parity.shared.b64 %p2, [%r9], 0; @!%p2 bra WAIT;
    shl.b32 %r13, %t, 4; add.u32 %r13, %r13, %r9; ld.shared.v4.b32 {{%r20, %r21, %r22, %r23}}, [%r13+512];
    mul.wide.u32 %d9, %t, 16; add.u64 %d9, %d9, %a1; st.global.v4.b32 [%d9], {{%r20, %r21, %r22, %r23}};"""


def fields(space, base, listed):
    """Replaces fields: (name, dimension or None, PTX operand)."""
    lines = []
    for name, dimension, value in listed:
        kind = "b64" if name in ("global_address", "global_stride") else "b32"
        which = "" if dimension is None else f"{dimension}, "
        lines.append(f"@%p1 tensormap.replace.tile.{name}.{space}.b1024.{kind} [{base}], {which}{value};")
    return "".join(lines)


def loaded(listed, mode="eager", *, publish=PUBLISH, acquire=ACQUIRE, x=0, y=0, size=512, swizzle=0):
    """The box that a warp loads through the map of a tensor of zeros with these fields replaced."""
    data = np.arange(64 * COLUMNS, dtype=np.float32).reshape(64, COLUMNS)
    nothing, out = np.zeros((ROWS, COLUMNS), np.float32), np.zeros((ROWS, COLUMNS), np.float32)
    workspace = np.zeros(32, np.uint64)
    aligned = workspace[(-workspace.ctypes.data % 128) // 8 :][:16]
    body = f"""
    mov.u32 %r9, smem; add.u32 %r12, %r9, 256; setp.eq.u32 %p1, %t, 0; @!%p1 bra READY;
    mbarrier.init.shared.b64 [%r9], 1; {COPY}
    READY: bar.warp.sync -1; fence.proxy.async;
    {fields("shared::cta", "%r12", listed)} {publish} {acquire} {LOAD.format(bytes=size, x=x, y=y)}"""
    run(body, data, out, aligned, tensor_map(nothing, (ROWS, COLUMNS), swizzle=swizzle), smem=4096, mode=mode)
    return data, out


ANOTHER = [("global_address", None, "%a0"), ("global_dim", 1, 64)]


@every_mode
def test_a_map_of_another_tensor_is_made_published_acquired_and_used(mode):
    data, out = loaded(ANOTHER, mode, y=40)
    np.testing.assert_array_equal(out, data[40:48])


def test_rows_behind_the_new_end_are_zero():
    data, out = loaded([("global_address", None, "%a0"), ("global_dim", 1, 43)], y=40)
    np.testing.assert_array_equal(out[:3], data[40:43])
    assert not out[3:].any()


def test_strides_are_bytes():
    data, out = loaded([*ANOTHER, ("global_stride", 0, 2 * 4 * COLUMNS)], y=3)
    np.testing.assert_array_equal(out, data[6:22:2])


def test_boxes_ranks_types_and_swizzles_may_be_set():
    data, out = loaded([*ANOTHER, ("swizzle_mode", None, 0), ("rank", None, 1), ("elemtype", None, 7)], swizzle=64)
    np.testing.assert_array_equal(out, data[:8])
    for name, value in (("element_stride", 1), ("interleave_layout", 0), ("fill_mode", 0)):
        dimension = 0 if name == "element_stride" else None
        data, out = loaded([*ANOTHER, (name, dimension, value)])
        np.testing.assert_array_equal(out, data[:8])


def test_a_smaller_box_brings_fewer_bytes():
    with pytest.raises(SimError, match="transaction bytes"):
        loaded([*ANOTHER, ("box_dim", 1, 4)])


@every_mode
def test_a_map_that_was_changed_must_be_acquired(mode):
    with pytest.raises(MissingProxyFence, match=r"tensor map at 0x\w+ was changed, and no fence.proxy.tensormap"):
        loaded(ANOTHER, mode, acquire="")
    with pytest.raises(MissingProxyFence, match="was changed"):
        loaded(ANOTHER, mode, acquire=ACQUIRE.replace("%a2", "%a1"))


def test_fields_of_a_map_in_global_memory_are_replaced_there():
    """The map is published first, and changed where it lies."""
    again = fields("global", "%a2", ANOTHER) + "fence.proxy.tensormap::generic.release.gpu;"
    data, out = loaded([], publish=PUBLISH + again, y=8)
    np.testing.assert_array_equal(out, data[8:16])
    with pytest.raises(MissingProxyFence):
        loaded([], publish=PUBLISH + ACQUIRE + again, acquire="")


@pytest.mark.parametrize(
    ("field", "said"),
    [
        (("global_stride", 0, 24), "a stride of 24 bytes"),
        (("box_dim", 0, 257), "a box of 257 elements"),
        (("element_stride", 0, 2), "element_stride 2"),
        (("fill_mode", None, 1), "fill_mode 1"),
        (("swizzle_mode", None, 4), "4 in a field of 2 bits"),
        (("elemtype", None, 11), "tensor map of type 11"),
    ],
)
def test_fields_that_are_not_known_are_refused(field, said):
    with pytest.raises(UnsupportedDescriptor, match=said):
        loaded([*ANOTHER, field])


@pytest.mark.parametrize(
    "lines",
    [
        "tensormap.replace.im2col.rank.global.b1024.b32 [%a0], 1;",
        "tensormap.replace.tile.rank.global.b1024.b64 [%a0], 1;",
        "tensormap.replace.tile.global_dim.global.b1024.b32 [%a0], 5, 1;",
        "tensormap.replace.tile.global_stride.global.b1024.b64 [%a0], 4, 16;",
        "tensormap.replace.tile.global_dim.global.b1024.b32 [%a0], 1;",
        "tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%a0], [%r1], 64;",
        "fence.proxy.tensormap::generic.acquire.gpu [%a0], 64;",
        "fence.proxy.tensormap::generic.acquire.gpu;",
        "fence.proxy.tensormap::generic.gpu;",
    ],
)
def test_other_forms_are_refused(lines):
    with pytest.raises(UnsupportedInstruction):
        run(lines, np.zeros(16, np.uint64))


def test_a_diverged_warp_publishes_nothing():
    lines = PUBLISH.replace("bar.warp.sync -1;", "setp.ne.u32 %p3, %t, 0; @%p3 bra END;") + "END: bar.warp.sync -1;"
    with pytest.raises(UnsupportedInstruction, match="diverged warp"):
        loaded(ANOTHER, publish=lines)


def test_what_was_replaced_in_global_memory_must_be_released():
    again = fields("global", "%a2", ANOTHER)
    for early in ("", "fence.proxy.tensormap::generic.release.gpu;"):
        with pytest.raises(MissingProxyFence, match=r"and no fence.proxy.tensormap::generic.release since"):
            loaded([], publish=f"{PUBLISH} {early} {again}", y=8)


def changed_again(mode, how, *, waits=(), told="", races=False, warned=()):
    """The second of two warps loads or stores through a map, which the first, when it knows of that, makes anew.

    waits: which of them wait for the copy, before `told`; the others behind it.
    """
    data, workspace = np.zeros((64, COLUMNS), np.float32), np.zeros(32, np.uint64)
    aligned = workspace[(-workspace.ctypes.data % 128) // 8 :][:16]
    if how == "load":
        copy = """mbarrier.arrive.expect_tx.shared.b64 _, [%r9], 512;
        cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r9+512], [%a2, {0, 0}], [%r9];"""
        wait = "W{0}: mbarrier.try_wait.parity.shared.b64 %p2, [%r9], 0; @!%p2 bra W{0};"
    else:
        copy = """cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%a2, {0, 0}], [%r9+512];
        cp.async.bulk.commit_group;"""
        wait = "cp.async.bulk.wait_group.read 0;"
    early = "".join(f"setp.ne.u32 %p4, %warp, {w}; @%p4 bra E{w}; {wait.format(w)} E{w}: " for w in waits)
    body = f"""
    mov.u32 %r9, smem; add.u32 %r12, %r9, 256; setp.eq.u32 %p1, %t, 0; @!%p1 bra READY;
    mbarrier.init.shared.b64 [%r9], 1; {COPY}
    READY: shl.b32 %r13, %t, 3; add.u32 %r13, %r13, %r9; st.shared.b64 [%r13+512], 0; fence.proxy.async;
    setp.ne.u32 %p3, %warp, 0; bar.sync 0; @%p3 bra FIRST; {PUBLISH} FIRST: bar.sync 0; {ACQUIRE}
    setp.ne.u32 %p1, %t, 32; @%p1 bra ISSUED; {copy} ISSUED: bar.sync 0;
    {early} {told} @%p3 bra SECOND; {PUBLISH} SECOND: bar.sync 0; {wait.format(3)}"""
    arguments = (data, data, aligned, tensor_map(data, (ROWS, COLUMNS)))
    return run(body, *arguments, block=64, smem=4096, mode=mode, races=races, warned=warned)


@pytest.mark.parametrize("mode", ["late", "starve"])
@pytest.mark.parametrize("how", ["load", "store"])
def test_a_map_that_copies_go_through_must_not_change(how, mode):
    with pytest.raises(TensorMapInUse, match=r"tensor map 0x\w+ is changed while a copy in flight reads it"):
        changed_again(mode, how)


@every_mode
@pytest.mark.parametrize("how", ["load", "store"])
def test_a_kernel_that_changes_a_map_in_use_may_go_on_with_a_warning(how, mode):
    report = changed_again(mode, how, races=True, warned=[TensorMapInUse])
    assert [warning.split(":")[0] for warning in report.warnings] == ["TensorMapInUse"]


def test_that_nothing_orders_a_change_behind_copies_is_found():
    said = r"change of the tensor map 0x\w+, and nothing orders it behind the copy through it by warp 1"
    with pytest.raises(TensorMapInUse, match=said):
        changed_again("eager", "load", races=True)
    with pytest.raises(TensorMapInUse, match=said):
        changed_again("random", "store", waits=(1,), races=True)


@every_mode
def test_a_map_may_change_when_the_copies_through_it_were_awaited(mode):
    for how, waits, told in (("load", (0,), ""), ("load", (1,), "bar.sync 0;"), ("store", (1,), "bar.sync 0;")):
        changed_again(mode, how, waits=waits, told=told, races=True)


def test_an_acquire_that_nothing_orders_behind_a_change_is_of_the_map_before_it():
    """By another warp, which the schedule happens to run later."""
    body = f"""
    mov.u32 %r9, smem; add.u32 %r12, %r9, 256; setp.eq.u32 %p1, %t, 0; @!%p1 bra READY; {COPY}
    READY: bar.warp.sync -1; setp.ne.u32 %p3, %warp, 0; @%p3 bra OTHER; {PUBLISH} OTHER: MEET
    fence.proxy.async; setp.eq.u32 %p1, %t, 32; @!%p1 bra DONE; {ACQUIRE} st.shared.b64 [%r9+512], 0; fence.proxy.async;
    cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%a2, {{0, 64}}], [%r9+512];
    cp.async.bulk.commit_group; cp.async.bulk.wait_group.read 0; DONE: bar.sync 0;"""
    data, workspace = np.zeros((64, COLUMNS), np.float32), np.zeros(32, np.uint64)
    aligned = workspace[(-workspace.ctypes.data % 128) // 8 :][:16]
    arguments = (data, data, aligned, tensor_map(data, (1, 4)))
    body = body.replace("st.shared.b64 [%r9+512], 0;", "st.shared.v4.b32 [%r9+512], {0, 0, 0, 0};")
    run(body.replace("MEET", "bar.sync 1;"), *arguments, block=64, smem=4096, races=True)
    with pytest.raises(MissingProxyFence, match="was changed"):
        run(body.replace("MEET", ""), *arguments, block=64, smem=4096, races=True)


def changed_after_multicast(mode, issuer, *, waits=True):
    """A CTA of two loads for both through a map, waits for the mbarrier of its own, and makes the map anew."""
    data, workspace = np.zeros((64, COLUMNS), np.float32), np.zeros(32, np.uint64)
    aligned = workspace[(-workspace.ctypes.data % 128) // 8 :][:16]
    wait = "W: mbarrier.try_wait.parity.shared.b64 %p2, [%r9], 0; @!%p2 bra W;"
    body = f"""
    mov.u32 %r9, smem; add.u32 %r12, %r9, 256; setp.eq.u32 %p1, %t, 0; mov.u16 %h1, 3;
    mov.u32 %r1, %cluster_ctarank; setp.ne.u32 %p3, %r1, {issuer}; @!%p1 bra READY;
    mbarrier.init.shared.b64 [%r9], 1; {COPY} mbarrier.arrive.expect_tx.shared.b64 _, [%r9], 512;
    READY: fence.proxy.async; barrier.cluster.arrive; barrier.cluster.wait; @%p3 bra TOLD;
    {PUBLISH} {ACQUIRE} @!%p1 bra TOLD;
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster
        [%r9+512], [%a2, {{0, 0}}], [%r9], %h1;
    TOLD: {wait if waits else ""} @%p3 bra END; {PUBLISH}
    END: {"" if waits else wait} barrier.cluster.arrive; barrier.cluster.wait;"""
    arguments = (data, data, aligned, tensor_map(data, (ROWS, COLUMNS)))
    run(body, *arguments, grid=2, cluster=2, smem=4096, mode=mode, races=True)


@every_mode
@pytest.mark.parametrize("issuer", [0, 1])
def test_who_sees_one_barrier_of_a_multicast_knows_that_it_has_read_its_map(issuer, mode):
    changed_after_multicast(mode, issuer)


@pytest.mark.parametrize("issuer", [0, 1])
def test_who_sees_no_barrier_of_a_multicast_may_not_change_its_map(issuer):
    with pytest.raises(TensorMapInUse, match=r"behind the copy through it by warp 0 of CTA"):
        changed_after_multicast("eager", issuer, waits=False)
