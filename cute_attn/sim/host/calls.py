"""Runs functions that the CuTe DSL compiled for sm_90a on CPU tensors, through their real host code.

The compiled host code is linked once more, to the launch stub in place of the CUDA runtime. It checks its arguments,
makes its TMA maps and computes its grids as on a GPU; each launch arrives here and is executed from the function's PTX.
"""

import contextlib
import contextvars
import importlib.metadata
import tempfile
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ...backend import backend, current
from ...loadable import load_module
from ..errors import (
    MissingBarrier,
    MissingProxyFence,
    Place,
    Race,
    SimError,
    TensorMapInUse,
    UninitializedRead,
    UntestedVersion,
)
from ..launch import Report, Schedule
from . import from_disk, gpu, stub
from .arguments import CudaView
from .capture import collected, simulate
from .fresh import FreshMemory, watching

CAN_WARN = (UninitializedRead, MissingBarrier, MissingProxyFence, Race, TensorMapInUse)
TESTED_VERSIONS = ("4.8.1",)  # of nvidia-cutlass-dsl: the stub leans on symbols and layouts that nobody documents


_watched_within: contextvars.ContextVar[tuple[bool, bool]] = contextvars.ContextVar(  # races, deterministic
    "cute_attn_sim_watched", default=(False, False)
)
_warned_within: contextvars.ContextVar[tuple[type[SimError], ...]] = contextvars.ContextVar(
    "cute_attn_sim_warned", default=()
)


def run(
    function: Any,
    *args: Any,
    mode: str | None = None,
    seed: int | None = None,
    ptx: str | None = None,
    fresh: Sequence[torch.Tensor | None] = (),
    warn: Sequence[type[SimError]] | None = None,
    races: bool | None = None,
    deterministic: bool = False,
) -> Report:
    """Calls a compiled function on CPU tensors and executes the kernels that it launches.

    Args:
        function: what `cute.compile(..., options="--enable-tvm-ffi --keep-ptx")` returned, or what `load` did.
        args: the function's arguments. Tensors are contiguous or strided CPU tensors, written in place.
        mode: "eager", "late", "random" or "starve"; None takes the active backend's mode, "eager" by default.
        seed: of the modes "random" and "starve"; None takes the active backend's seed, 0 by default.
        ptx: what to execute; a compiled function brings its own, a loaded one needs it.
        fresh: those tensors among the arguments whose contents nobody wrote yet, such as outputs and workspaces made by
            torch.empty; None is skipped. To read them before a launch of this call wrote them is an error. What they
            share with other arguments counts as written. Within `simulated` such tensors are found by themselves.
        warn: classes of findings that become warnings of the report, after which the kernel goes on: of
            UninitializedRead (but not its CopyInFlight), MissingBarrier, MissingProxyFence, Race and TensorMapInUse.
            What was read remains what it was, and a copy reads its map as it was when it was issued. None
            takes those of the `simulated` around, none by default.
        races: whether accesses to global memory that nothing orders are looked for; such a pair is a Race. None takes
            what the `simulated` around says, False by default.
        deterministic: with races: floating-point additions of one element that nothing orders are races too, if a sum
            in its tensor is rounded.

    Returns:
        The report of all launches together.

    Raises:
        SimError: what the kernels did wrong, or what the simulator does not know.
        TypeError, ValueError: arguments of another kind; also what the host code itself raises.
    """
    schedule, warned = _schedule(mode, seed, races, deterministic), _warned(warn)
    if hasattr(function, "ir_module"):
        return _simulate_compiled(function, args, {}, schedule, ptx, fresh, warned)
    if ptx is None:
        raise ValueError("ptx=None: a function loaded from a shared object does not carry its PTX, pass it")
    return simulate(function, argument_names(function, args), args, ptx, schedule, fresh, warned)


def load(shared_object: Path | bytes, name: str) -> Any:
    """The function `name` of a shared object that was exported and linked without a runtime, ready for `run`.

    shared_object: its file, or what is in it.

    Needs no DSL, only tvm_ffi: `compiled.export_to_c(object_file_path="k.o", function_name=name)`, then
    `cc -shared -o k.so k.o`. The stub stands in for the CUDA runtime.
    """
    stub.library()  # its symbols must be there before those that need them
    code = shared_object if isinstance(shared_object, bytes) else Path(shared_object).read_bytes()
    return load_module(stub.retargeted(code)).get_function(name)


@contextlib.contextmanager
def simulated(
    mode: str | None = None,
    seed: int | None = None,
    warn: Sequence[type[SimError]] | None = None,
    races: bool | None = None,
    deterministic: bool = False,
) -> Iterator[list[Report]]:
    """Within it, host code that compiles and calls CuTe DSL functions by itself runs on CPU tensors.

    CPU tensors say `is_cuda` and reach the DSL as CUDA tensors, compiled functions keep their PTX, a call simulates
    them, and cute_attn's own functions use backend "sim". The yielded list receives the report of each call. Functions
    compiled before keep working if they kept their PTX. `warn`, `races` and `deterministic` are as for `run`, and hold
    for every call within. Not for several threads at once: it patches torch and the DSL.

    Memory that torch.empty and its kin return within it is known to be unwritten until a kernel or an operator of
    PyTorch writes it; to read it in a kernel before is an error. A tensor handed out by `numpy` or DLPack counts as
    written; writes through `data_ptr` are not seen, so what is filled that way must come from torch.zeros. What
    torch.compile compiled runs uncompiled. That memory is aligned as on a GPU, and what asks PyTorch or the DSL for the
    properties of the GPU hears those of an H100 of 132 multiprocessors. A kernel from a library's cache on disk carries
    no PTX: to call it raises Unavailable, which says how to go without that cache.
    """
    from cutlass.cute import runtime
    from cutlass.cutlass_dsl import CuTeDSL, tvm_ffi_provider

    schedule, warned = _schedule(mode, seed, races, deterministic), _warned(warn)
    reports: list[Report] = []

    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        _simulate_compiled(self, args, kwargs, schedule, warned=warned)

    def tensor_init(self: Any, tensor: Any, *args: Any, **kwargs: Any) -> None:
        original_init(self, CudaView(tensor) if isinstance(tensor, torch.Tensor) else tensor, *args, **kwargs)

    original_init = runtime._Tensor.__init__
    settings = CuTeDSL._get_dsl().envar
    outer = watching.get()
    fresh = outer or FreshMemory()
    with contextlib.ExitStack() as stack:
        dump = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(backend("sim", mode=schedule.mode, seed=schedule.seed))
        stack.callback(collected.reset, collected.set(reports))
        stack.callback(_warned_within.reset, _warned_within.set(warned))
        stack.callback(_watched_within.reset, _watched_within.set((schedule.races, schedule.fixed_sums)))
        for owner, name, value in (
            (settings, "keep_ptx", True),
            (settings, "dump_dir", dump),
            (runtime._Tensor, "__init__", tensor_init),
            (runtime, "load_module", from_disk.guarded(runtime.load_module)),
            (tvm_ffi_provider.TVMFFIJitCompiledFunction, "__call__", call),
            (tvm_ffi_provider.TVMFFIJitCompiledFunctionWithKwargs, "__call__", call),
            (torch.Tensor, "numpy", fresh.exported(torch.Tensor.numpy)),
            (torch.Tensor, "__dlpack__", fresh.exported(torch.Tensor.__dlpack__)),
            (torch.Tensor, "is_cuda", property(lambda self: self.device.type in ("cpu", "cuda"))),
            *gpu.answers(),
        ):
            stack.enter_context(_replaced(owner, name, value))
        if outer is None:
            stack.callback(watching.reset, watching.set(fresh))
            stack.enter_context(torch.compiler.set_stance("force_eager"))  # compiled code would write unseen
            stack.enter_context(fresh)
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


def _schedule(mode: str | None, seed: int | None, races: bool | None, deterministic: bool) -> Schedule:
    request = current()
    options: dict[str, Any] = request.options if request.name == "sim" else {}
    chosen: Any = mode if mode is not None else options.get("mode", "eager")
    watched = _watched_within.get() if races is None else (races, races and deterministic)
    number = seed if seed is not None else options.get("seed", 0)
    return Schedule(chosen, number, *watched)  # refuses what it does not know


def _warned(warn: Sequence[type[SimError]] | None) -> tuple[type[SimError], ...]:
    if warn is None:
        return _warned_within.get()
    if isinstance(warn, type):
        raise TypeError(f"warn is {warn.__name__}; it must be a sequence of classes, such as [{warn.__name__}]")
    for i, error in enumerate(warn):
        if error not in CAN_WARN:
            allowed = ", ".join(e.__name__ for e in CAN_WARN)
            raise ValueError(f"warn[{i}] is {error!r}; allowed: {allowed}, behind which a kernel can go on")
    return tuple(warn)


def _check_version(function: str) -> None:
    version = importlib.metadata.version("nvidia-cutlass-dsl")
    if version not in TESTED_VERSIONS:
        tested = ", ".join(TESTED_VERSIONS)
        what = f"nvidia-cutlass-dsl {version} compiled this function; the simulator is tested with {tested}"
        raise UntestedVersion(what, Place(function))


# ---------------------------------------------------------------------------- calling compiled host code


def _simulate_compiled(
    compiled: Any,
    args: tuple,
    kwargs: dict,
    schedule: Schedule,
    ptx: str | None = None,
    fresh: Sequence[torch.Tensor | None] = (),
    warned: Sequence[type[SimError]] = (),
) -> Report:
    """Calls a compiled function under its own calling convention (keywords, defaults, dataclasses)."""
    _check_version(compiled.function_name)
    ptx = ptx or getattr(compiled, "__ptx__", None)
    if not ptx:
        raise ValueError(f"{compiled.function_name}: its PTX was not kept; compile with options='--keep-ptx'")
    linked = _linked(compiled)
    reports: list[Report] = []

    def positional(*values: Any) -> None:
        reports.append(simulate(linked, argument_names(compiled, values), values, ptx, schedule, fresh, warned))

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
        engine = BinaryExecutionEngine(stub.retargeted(code), [stub.path()], True)
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
