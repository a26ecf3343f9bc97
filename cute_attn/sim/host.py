"""Runs functions that the CuTe DSL compiled for sm_90a on CPU tensors, through their real host code.

The compiled host code is linked once more, to the launch stub in place of the CUDA runtime. It checks its arguments,
makes its TMA maps and computes its grids as on a GPU; each launch arrives here and is executed from the function's PTX.
"""

import collections
import contextlib
import contextvars
import ctypes
import functools
import importlib.metadata
import re
import tempfile
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cute_attn.backend import backend, current
from cute_attn.sim import stub
from cute_attn.sim.engine import execute
from cute_attn.sim.errors import Place, SharedMemoryExceeded, UntestedVersion
from cute_attn.sim.launch import Buffer, Launch, Report, Schedule

TESTED_VERSIONS = ("4.8.1",)  # of nvidia-cutlass-dsl: the stub leans on symbols and layouts that nobody documents
CLUSTER_DIMENSION = 4  # cudaLaunchAttributeClusterDimension
MAX_SMEM_BYTES = 232_448  # what a Hopper multiprocessor lets one block ask for
MAX_THREADS = 1024
NOT_SUPPORTED = 801  # cudaErrorNotSupported


@dataclass
class _Call:
    """One call of a compiled function: what its launches need, and what they left behind."""

    ptx: str
    schedule: Schedule
    buffers: Sequence[Buffer] = ()
    reports: list[Report] = field(default_factory=list)
    error: BaseException | None = None


_current: contextvars.ContextVar[_Call | None] = contextvars.ContextVar("cute_attn_sim_call", default=None)
_collected: contextvars.ContextVar[list[Report] | None] = contextvars.ContextVar("cute_attn_sim_reports", default=None)


def run(function: Any, *args: Any, mode: str | None = None, seed: int | None = None, ptx: str | None = None) -> Report:
    """Calls a compiled function on CPU tensors and executes the kernels that it launches.

    Args:
        function: what `cute.compile(..., options="--enable-tvm-ffi --keep-ptx")` returned, or what `load` did.
        args: the function's arguments. Tensors are contiguous or strided CPU tensors, written in place.
        mode: "eager", "late" or "random"; None takes the active backend's mode, "eager" by default.
        seed: of the mode "random"; None takes the active backend's seed, 0 by default.
        ptx: what to execute; a compiled function brings its own, a loaded one needs it.

    Returns:
        The report of all launches together.

    Raises:
        SimError: what the kernels did wrong, or what the simulator does not know.
        TypeError, ValueError: arguments of another kind; also what the host code itself raises.
    """
    schedule = _schedule(mode, seed)
    if hasattr(function, "ir_module"):
        return _simulate_compiled(function, args, {}, schedule, ptx)
    if ptx is None:
        raise ValueError("ptx=None: a function loaded from a shared object does not carry its PTX, pass it")
    return _simulate(function, argument_names(function, args), args, ptx, schedule)


def load(path: Path, name: str) -> Any:
    """The function `name` of a shared object that was exported and linked without a runtime, ready for `run`.

    Needs no DSL, only tvm_ffi: `compiled.export_to_c(object_file_path="k.o", function_name=name)`, then
    `cc -shared -o k.so k.o`. The stub stands in for the CUDA runtime.
    """
    import tvm_ffi

    stub.library()  # its symbols must be there before those that need them
    with tempfile.TemporaryDirectory() as scratch:
        retargeted = Path(scratch) / "retargeted.so"
        retargeted.write_bytes(stub.retargeted(Path(path).read_bytes()))
        return tvm_ffi.load_module(str(retargeted)).get_function(name)


@contextlib.contextmanager
def simulated(mode: str | None = None, seed: int | None = None) -> Iterator[list[Report]]:
    """Within it, host code that compiles and calls CuTe DSL functions by itself runs on CPU tensors.

    CPU tensors say `is_cuda` and reach the DSL as CUDA tensors, compiled functions keep their PTX, a call simulates
    them, and cute_attn's own functions use backend "sim". The yielded list receives the report of each call. Functions
    compiled before keep working if they kept their PTX. Not for several threads at once: it patches torch and the DSL.
    """
    from cutlass.cute import runtime
    from cutlass.cutlass_dsl import CuTeDSL, tvm_ffi_provider

    schedule = _schedule(mode, seed)
    reports: list[Report] = []

    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        _simulate_compiled(self, args, kwargs, schedule)

    def tensor_init(self: Any, tensor: Any, *args: Any, **kwargs: Any) -> None:
        original_init(self, _CudaView(tensor) if isinstance(tensor, torch.Tensor) else tensor, *args, **kwargs)

    original_init = runtime._Tensor.__init__
    settings = CuTeDSL._get_dsl().envar
    with contextlib.ExitStack() as stack:
        dump = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(backend("sim", mode=schedule.mode, seed=schedule.seed))
        stack.callback(_collected.reset, _collected.set(reports))
        for owner, name, value in (
            (settings, "keep_ptx", True),
            (settings, "dump_dir", dump),
            (runtime._Tensor, "__init__", tensor_init),
            (tvm_ffi_provider.TVMFFIJitCompiledFunction, "__call__", call),
            (tvm_ffi_provider.TVMFFIJitCompiledFunctionWithKwargs, "__call__", call),
            (torch.Tensor, "is_cuda", property(lambda self: self.device.type in ("cpu", "cuda"))),
        ):
            stack.enter_context(_replaced(owner, name, value))
        yield reports


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    own = name in vars(owner)
    before = getattr(owner, name) if own else None
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)  # uncovers the inherited one


def _schedule(mode: str | None, seed: int | None) -> Schedule:
    request = current()
    options: dict[str, Any] = request.options if request.name == "sim" else {}
    chosen: Any = mode if mode is not None else options.get("mode", "eager")
    return Schedule(chosen, seed if seed is not None else options.get("seed", 0))  # refuses what it does not know


def _check_version(function: str) -> None:
    version = importlib.metadata.version("nvidia-cutlass-dsl")
    if version not in TESTED_VERSIONS:
        tested = ", ".join(TESTED_VERSIONS)
        what = f"nvidia-cutlass-dsl {version} compiled this function; the simulator is tested with {tested}"
        raise UntestedVersion(what, Place(function))


def merged(reports: Sequence[Report]) -> Report:
    """One report of several launches."""
    statistics: collections.Counter[str] = collections.Counter()
    for report in reports:
        statistics.update(report.statistics)
    reduced = frozenset().union(*(report.reduced for report in reports))
    return Report(reduced, tuple(warning for report in reports for warning in report.warnings), dict(statistics))


# ---------------------------------------------------------------------------- calling compiled host code


def _simulate_compiled(compiled: Any, args: tuple, kwargs: dict, schedule: Schedule, ptx: str | None = None) -> Report:
    """Calls a compiled function under its own calling convention (keywords, defaults, dataclasses)."""
    _check_version(compiled.function_name)
    ptx = ptx or getattr(compiled, "__ptx__", None)
    if not ptx:
        raise ValueError(f"{compiled.function_name}: its PTX was not kept; compile with options='--keep-ptx'")
    linked = _linked(compiled)
    reports: list[Report] = []

    def positional(*values: Any) -> None:
        reports.append(_simulate(linked, argument_names(compiled, values), values, ptx, schedule))

    wrapper = _wrapper(compiled)
    call = _rebound(wrapper, compiled._tvm_ffi_function, positional) if wrapper else positional
    call(*args, **kwargs)
    return reports[0]


def _wrapper(compiled: Any) -> types.FunctionType | None:
    """The Python function, if there is one, that orders the arguments of a compiled function."""
    return getattr(compiled, "_kwargs_wrapper", None)


def _linked(compiled: Any) -> Any:
    """The compiled host code, linked to the stub."""
    linked = compiled.__dict__.get("_cute_attn_sim_linked")
    if linked is None:
        if not hasattr(compiled, "_create_tvm_ffi_function"):
            raise TypeError(f"{compiled.function_name}: compile with options='--enable-tvm-ffi', got {type(compiled)}")
        import tvm_ffi
        from cutlass._mlir._mlir_libs._cutlass_ir import _aot_support
        from cutlass._mlir._mlir_libs._cutlass_ir._execution_engine import BinaryExecutionEngine

        code = _aot_support.export_module_to_bytes(compiled.ir_module, format="o", opt_level=3, enable_pic=True)
        engine = BinaryExecutionEngine(stub.retargeted(code), [str(stub.path())], True)
        entry = engine.lookup("__tvm_ffi_" + compiled.function_name)
        linked = tvm_ffi.Function.__from_extern_c__(entry, keep_alive_object=engine)
        compiled._cute_attn_sim_linked = linked
    return linked


def _rebound(wrapper: types.FunctionType, before: Any, after: Any) -> types.FunctionType:
    """The wrapper with another function in the place of the one that it calls."""
    names = {name: after if value is before else value for name, value in wrapper.__globals__.items()}
    rebound = types.FunctionType(wrapper.__code__, names, wrapper.__name__, wrapper.__defaults__, wrapper.__closure__)
    rebound.__kwdefaults__ = wrapper.__kwdefaults__
    return rebound


def argument_names(function: Any, values: Sequence[Any]) -> list[str]:
    """What the reports call the positional arguments of a function."""
    wrapper = _wrapper(function)
    if wrapper is None:
        return [f"argument {i}" for i in range(len(values))]
    return list(wrapper.__code__.co_varnames[: len(values)])


def _simulate(function: Callable, names: Sequence[str], values: Sequence[Any], ptx: str, schedule: Schedule) -> Report:
    """Calls host code that is linked to the stub, with its launches executed."""
    _hook()
    tensors: dict[str, torch.Tensor] = {}
    converted = [_converted(value, name, tensors) for value, name in zip(values, names, strict=True)]
    call = _Call(ptx, schedule, _buffers(tensors))
    token = _current.set(call)
    try:
        function(*converted)
    finally:
        _current.reset(token)
    if call.error is not None:
        raise call.error
    report = merged(call.reports)
    collected = _collected.get()
    if collected is not None:
        collected.append(report)
    return report


def _converted(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """An argument with its CPU tensors turned to CUDA ones for the host code; notes each tensor under its name."""
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu":
            raise ValueError(f"{name}: cute_attn.sim runs on CPU tensors, got one on {value.device}")
        tensors[name] = value
        return _cuda_view(value)
    if isinstance(value, (tuple, list)):
        return tuple(_converted(item, f"{name}[{i}]", tensors) for i, item in enumerate(value))
    return value


class _CudaView:
    """A CPU tensor that hands itself over as device kDLCUDA, so that the DSL compiles global-memory accesses."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor.detach()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, **_: Any) -> Any:
        capsule = self.tensor.__dlpack__()
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
        # DLTensor: the data pointer, then the device type
        ctypes.c_int32.from_address(pointer(capsule, b"dltensor") + 8).value = 2
        return capsule


def _cuda_view(tensor: torch.Tensor) -> Any:
    import tvm_ffi

    return tvm_ffi.from_dlpack(_CudaView(tensor))


def _buffers(tensors: dict[str, torch.Tensor]) -> list[Buffer]:
    """The memory that each tensor spans; tensors that share memory become one buffer."""
    spans = []
    for name, tensor in tensors.items():
        if tensor.numel():
            extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
            spans.append([tensor.data_ptr(), tensor.data_ptr() + extent * tensor.element_size(), name])
    spans.sort()
    merged: list[list] = []
    for span in spans:
        if merged and span[0] < merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], span[1])
            merged[-1][2] += f"+{span[2]}"
        else:
            merged.append(span)
    return [Buffer(start, _bytes_at(start, end - start), name) for start, end, name in merged]


def _bytes_at(address: int, size: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


# ---------------------------------------------------------------------------- launches


def _on_launch(kernel: bytes, image: int, config_address: int, arguments: Any) -> int:
    """What the stub calls for each launch. Errors wait until the host code has returned: it cannot carry them."""
    call = _current.get()
    if call is None:
        return NOT_SUPPORTED
    if call.error is None:
        try:
            launch = _launch(kernel.decode(), call.ptx, stub.LaunchConfig.from_address(config_address), arguments)
            call.reports.append(execute(launch, call.buffers, call.schedule))
        except BaseException as error:  # KeyboardInterrupt too: none may cross the C frames
            call.error = error
    return 0


_callback = stub.LaunchCallback(_on_launch)


@functools.cache
def _hook() -> None:
    stub.library().cute_attn_stub_on_launch(_callback)


def _launch(kernel: str, ptx: str, config: stub.LaunchConfig, arguments: Any) -> Launch:
    cluster = (1, 1, 1)
    attributes = (stub.LaunchAttribute * config.n_attributes).from_address(config.attributes or 0)
    for attribute in attributes if config.n_attributes else ():
        if attribute.id == CLUSTER_DIMENSION:
            cluster = tuple(attribute.value[:3])
    grid, block = tuple(config.grid), tuple(config.block)
    _check_launch(kernel, grid, block, cluster, config.smem_bytes)
    values = tuple(ctypes.string_at(arguments[i], size) for i, size in enumerate(_parameter_sizes(ptx, kernel)))
    return Launch(kernel, ptx, grid, block, cluster, config.smem_bytes, values)


def _check_launch(kernel: str, grid: tuple, block: tuple, cluster: tuple, smem_bytes: int) -> None:
    """What the driver would refuse."""
    if smem_bytes > MAX_SMEM_BYTES:
        what = f"launched with {smem_bytes} bytes of shared memory, at most {MAX_SMEM_BYTES}"
        raise SharedMemoryExceeded(what, Place(kernel))
    if min(grid + block + cluster) < 1 or np.prod(block) > MAX_THREADS:
        raise ValueError(
            f"{kernel}: launched with grid {grid}, block {block}, cluster {cluster}; at most {MAX_THREADS} threads"
        )
    if any(size % step for size, step in zip(grid, cluster, strict=True)):
        raise ValueError(f"{kernel}: launched with grid {grid}, which cluster {cluster} does not divide")


_SIZES = {"8": 1, "16": 2, "32": 4, "64": 8}


@functools.lru_cache(maxsize=256)
def _parameter_sizes(ptx: str, kernel: str) -> tuple[int, ...]:
    """Bytes of each parameter of an entry: `.param .u32 name` or `.param .align 64 .b8 name[128]`."""
    entry = re.search(rf"\.entry\s+{re.escape(kernel)}\s*\((.*?)\)", ptx, re.DOTALL)
    if entry is None:
        raise ValueError(f"{kernel} is launched but is no entry of the PTX at hand")
    parameters = re.findall(
        r"\.param\b.*?\.[busf](8|16|32|64)\b[^\[,]*?(?:\[(\d+)\])?\s*(?:,|$)", entry.group(1), re.DOTALL
    )
    return tuple(_SIZES[bits] * int(count or 1) for bits, count in parameters)
