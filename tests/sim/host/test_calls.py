"""The host side: real host code runs, its launches arrive as it asked for them, and errors come back through it."""

import subprocess
import sys
import textwrap
import types

import kernels
import pytest
import torch

from cute_attn.backend import backend, current
from cute_attn.sim.errors import (
    CopyInFlight,
    Deadlock,
    Place,
    SimError,
    UninitializedRead,
    UntestedVersion,
)
from cute_attn.sim.host import calls, capture, stub
from cute_attn.sim.host.strict import strict
from cute_attn.sim.launch import Report, Schedule


@pytest.fixture
def launches(monkeypatch):
    """Records launches instead of executing them."""
    seen = []

    def execute(launch, buffers, schedule, **options):
        seen.append((launch, list(buffers), schedule))
        return Report(warnings=("seen",), statistics={"ctas": launch.grid[0]})

    monkeypatch.setattr(capture, "execute", execute)
    return seen


def vectors(n):
    return torch.randn(n), torch.randn(n), torch.full((n,), float("nan"))


def test_a_launch_arrives_as_the_host_code_asked_for_it(launches):
    x, y, out = vectors(300)
    report = calls.run(kernels.scaled_sum(), x, y, out, 2.5)
    ((launch, buffers, schedule),) = launches
    assert (launch.grid, launch.block, launch.cluster, launch.smem_bytes) == ((3, 1, 1), (128, 1, 1), (1, 1, 1), 0)
    assert f".entry {launch.kernel}" in launch.ptx
    pointers = [int.from_bytes(argument[:8], "little") for argument in launch.arguments[:3]]
    assert pointers == [x.data_ptr(), y.data_ptr(), out.data_ptr()]
    assert launch.arguments[3] == torch.tensor([2.5]).numpy().tobytes()
    assert {buffer.name: buffer.address for buffer in buffers} == {
        "x": x.data_ptr(),
        "y": y.data_ptr(),
        "out": out.data_ptr(),
    }
    assert schedule == Schedule("eager", 0)
    assert report == Report(warnings=("seen",), statistics={"ctas": 3})


def test_the_host_code_checks_its_arguments_and_its_error_arrives(launches):
    x, y, out = vectors(300)
    with pytest.raises(ValueError, match=r"Mismatched .*y\.shape\[0\]"):
        calls.run(kernels.scaled_sum(), x, y[:200], out, 2.5)
    assert launches == []


def test_cluster_and_shared_memory_of_a_launch(launches):
    from kernels.matmul import matmul

    a, b, c = (torch.zeros(shape, dtype=torch.bfloat16) for shape in ((256, 64), (64, 64), (256, 64)))
    calls.run(matmul(cluster=2), a, b, c, 2)
    ((launch, _, _),) = launches
    assert launch.cluster == (2, 1, 1)
    assert launch.smem_bytes > 3 * (128 + 64) * 64 * 2
    assert [len(argument) for argument in launch.arguments].count(128) == 3  # the TMA maps


def test_buffers_write_through_to_the_tensors(monkeypatch):
    def execute(launch, buffers, schedule, **options):
        buffers[[b.name for b in buffers].index("out")].data[:] = 0
        return Report()

    monkeypatch.setattr(capture, "execute", execute)
    x, y, out = vectors(64)
    calls.run(kernels.scaled_sum(), x, y, out, 1.0)
    assert torch.equal(out, torch.zeros(64))


def test_a_buffer_spans_what_its_tensor_spans_and_shared_memory_merges(launches):
    both, out = torch.randn(400), torch.empty(200)
    calls.run(kernels.scaled_sum(), both[100:300], both[200:400], out, 1.0)
    spans = {b.name: (b.address - both.data_ptr(), b.data.size) for b in launches[0][1] if b.name != "out"}
    assert spans == {"x+y": (400, 1200)}


def test_an_error_of_the_engine_is_raised_after_the_call_and_stops_later_launches(monkeypatch):
    error = Deadlock("nobody moves", Place("k"))
    launched = []

    def execute(launch, buffers, schedule, **options):
        launched.append(launch)
        raise error

    monkeypatch.setattr(capture, "execute", execute)
    with pytest.raises(Deadlock) as raised:
        calls.run(kernels.scaled_sum(), *vectors(10), 1.0)
    assert raised.value is error
    assert len(launched) == 1


def test_a_launch_that_nobody_took_is_an_error_of_the_call():
    """As it is behind a callback that Python could not call."""
    somebody = stub.LaunchCallback(lambda *launch: 0)
    capture._hook()
    stub.library().cute_attn_stub_on_launch(somebody)
    try:
        with pytest.raises(RuntimeError, match="the simulator's runtime returned"):
            calls.run(kernels.scaled_sum(), *vectors(10), 1.0)
    finally:
        stub.library().cute_attn_stub_on_launch(capture._callback)


def test_launches_are_left_out_within_and_taken_behind():
    x, y, out = vectors(10)
    with capture.launches_are_left_out():
        calls.run(kernels.scaled_sum(), x, y, out, 1.0)
    assert out.isnan().all()
    calls.run(kernels.scaled_sum(), x, y, out, 1.0)
    assert torch.equal(out, x + y)


def test_mode_and_seed_come_from_the_call_or_else_from_the_backend(launches):
    with backend("sim", mode="random", seed=7):
        calls.run(kernels.scaled_sum(), *vectors(10), 1.0)
        calls.run(kernels.scaled_sum(), *vectors(10), 1.0, mode="late", seed=0)
    assert [schedule for *_, schedule in launches] == [Schedule("random", 7), Schedule("late", 0)]
    with pytest.raises(ValueError, match="mode is 'fast'"):
        calls.run(kernels.scaled_sum(), *vectors(10), 1.0, mode="fast")


def test_races_are_looked_for_where_the_call_or_what_is_round_it_says_so(launches):
    calls.run(kernels.scaled_sum(), *vectors(10), 1.0, races=True)
    calls.run(kernels.scaled_sum(), *vectors(10), 1.0, races=True, deterministic=True)
    with calls.simulated(races=True, deterministic=True):
        calls.run(kernels.scaled_sum(), *vectors(10), 1.0)
        calls.run(kernels.scaled_sum(), *vectors(10), 1.0, races=False)
    watched = [(schedule.races, schedule.fixed_sums) for *_, schedule in launches]
    assert watched == [(True, False), (True, True), (True, True), (False, False)]


def test_strict_looks_for_races_in_one_schedule_and_for_sums_in_no_order_where_there_must_be_none(launches):
    for deterministic in (False, True):
        strict(kernels.scaled_sum(), *vectors(10), 1.0, deterministic=deterministic)
    first, second = ([x[2] for x in launches[i : i + 6]] for i in (0, 6))
    assert [(s.mode, s.fixed_sums) for s in first if s.races] == [("eager", False)]
    assert [(s.mode, s.fixed_sums) for s in second if s.races] == [("eager", True)]


def test_another_version_of_the_dsl_is_refused(launches, monkeypatch):
    monkeypatch.setattr(calls.importlib.metadata, "version", lambda name: "4.9.0")
    with pytest.raises(UntestedVersion, match=r"nvidia-cutlass-dsl 4\.9\.0 .* tested with 4\.8\.1"):
        calls.run(kernels.scaled_sum(), *vectors(10), 1.0)


def test_a_function_whose_ptx_was_not_kept_is_refused(launches, monkeypatch):
    function = kernels.scaled_sum()
    monkeypatch.setattr(function, "artifacts", None)
    with pytest.raises(ValueError, match="--keep-ptx"):
        calls.run(function, *vectors(10), 1.0)


def test_a_function_compiled_without_tvm_ffi_is_refused(launches):
    function = types.SimpleNamespace(ir_module=None, function_name="f", __ptx__=".entry f() {}")
    with pytest.raises(TypeError, match="f: compile with options='--enable-tvm-ffi'"):
        calls.run(function, *vectors(10), 1.0)


def test_a_loaded_function_needs_its_ptx(launches):
    with pytest.raises(ValueError, match=r"ptx=None: .* pass it"):
        calls.run(lambda *_: None, *vectors(10), 1.0)


def test_tensors_elsewhere_are_refused(launches):
    x, y, out = vectors(10)
    with pytest.raises(ValueError, match=r"out: .* CPU tensors, got one on meta"):
        calls.run(kernels.scaled_sum(), x, y, out.to("meta"), 1.0)


def test_simulated_host_code_compiles_and_calls_by_itself_and_leaves_no_trace(launches):
    before = torch.Tensor.is_cuda
    x, y, out = vectors(50)
    with calls.simulated(mode="late") as reports:
        assert x.is_cuda
        kernels.scaled_sum()(x, y, out, 1.0)
        kernels.scaled_sum()(x=x, y=y, out=out, scale=1.0)
    assert len(reports) == 2
    assert launches[0][2] == Schedule("late", 0)
    assert torch.Tensor.is_cuda is before
    assert not x.is_cuda
    with pytest.raises(ValueError, match="device_type=cuda"):
        kernels.scaled_sum()(x, y, out, 1.0)


def test_simulated_code_reaches_our_own_functions_too(launches):
    with calls.simulated(mode="random", seed=5) as reports:
        assert current().name == "sim"
        calls.run(kernels.scaled_sum(), *vectors(10), 1.0)
    assert launches[0][2] == Schedule("random", 5)
    assert len(reports) == 1
    calls.run(kernels.scaled_sum(), *vectors(10), 1.0)
    assert len(reports) == 1


@pytest.mark.slow
def test_an_exported_shared_object_runs_without_the_dsl(tmp_path):
    function = kernels.scaled_sum()
    function.export_to_c(object_file_path=str(tmp_path / "k.o"), function_name="scaled_sum")
    subprocess.run(["cc", "-shared", "-o", str(tmp_path / "k.so"), str(tmp_path / "k.o")], check=True)
    (tmp_path / "k.ptx").write_text(function.__ptx__)
    program = f"""
        import sys, torch
        from cute_attn.sim.host import calls
        from cute_attn.sim.host.arguments import cuda_view
        function = calls.load("{tmp_path}/k.so", "scaled_sum")
        x, y, out = torch.randn(200), torch.randn(200), torch.full((200,), float("nan"))
        try:
            function(*map(cuda_view, (x, y, out)), 2.0)
        except RuntimeError as error:
            assert "outside cute_attn.sim.run" in str(error), error
        else:
            raise AssertionError("a launch outside of run went unnoticed")
        calls.run(function, x, y, out, 2.0, ptx=open("{tmp_path}/k.ptx").read())
        assert torch.equal(out, x * 2 + y), out
        assert "cutlass" not in sys.modules
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_user_may_ask_for_warnings_of_what_is_read_and_thrown_away():
    x, y, out = vectors(300)
    with pytest.raises(UninitializedRead):
        calls.run(kernels.scaled_sum(), x, y, out, 1.0, fresh=[y])
    report = calls.run(kernels.scaled_sum(), x, y, out, 1.0, fresh=[y], warn=[UninitializedRead])
    (warning,) = report.warnings
    assert warning.startswith("UninitializedRead: read of byte 0 of y that nobody wrote; PTX line ")
    report = strict(kernels.scaled_sum(), x, y, out, 1.0, fresh=[y], warn=[UninitializedRead])
    assert report.warnings == (warning,)


def test_what_is_warned_of_holds_for_all_calls_within():
    def own():
        x, y, out = torch.ones(300), torch.empty(300), torch.empty(300)
        calls.run(kernels.scaled_sum(), x, y, out, 1.0)

    with calls.simulated(warn=[UninitializedRead]) as reports:
        own()
    assert "UninitializedRead" in reports[0].warnings[0]
    with calls.simulated(), pytest.raises(UninitializedRead):
        own()


@pytest.mark.parametrize("error", [Deadlock, CopyInFlight, SimError, ValueError, "UninitializedRead"])
def test_what_no_kernel_can_go_on_behind_is_no_warning(error):
    with pytest.raises(ValueError, match=r"warn\[0\] is .*; allowed: UninitializedRead, MissingBarrier"):
        calls.run(kernels.scaled_sum(), *vectors(10), 1.0, warn=[error])
    with pytest.raises(TypeError, match=r"warn is UninitializedRead; it must be a sequence"):
        calls.run(kernels.scaled_sum(), *vectors(10), 1.0, warn=UninitializedRead)
