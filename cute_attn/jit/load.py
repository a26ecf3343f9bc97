"""Kernels ready to be called: from memory, else obtained and bound to a runtime."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..spec.operation import Spec
from .entry import SYMBOL
from .obtain import obtain
from .record import note

__all__ = ["Kernel", "Runtime", "kernel"]

Runtime = Literal["sm90", "sim"]

_kernels: dict[tuple[Spec, Runtime], Kernel] = {}
_lock = threading.Lock()  # one compile of a spec is enough, and where files cannot be locked nothing else sees to it


@dataclass(frozen=True)
class Kernel:
    """A kernel to be called with tuples in the order of its argument structs; `ptx` is what the simulator runs."""

    spec: Spec
    function: Any
    ptx: str


def kernel(spec: Spec, runtime: Runtime) -> Kernel:
    """The kernel of a spec, to run on the GPU ("sm90") or in the simulator ("sim").

    Looked for in memory, else obtained as `cute_attn.jit.obtain` says.
    """
    note(spec)
    found = _kernels.get((spec, runtime))
    if found is not None:
        return found
    with _lock:
        if (spec, runtime) not in _kernels:
            _kernels[spec, runtime] = _load(spec, runtime)
        return _kernels[spec, runtime]


def _load(spec: Spec, runtime: Runtime) -> Kernel:
    entry = obtain(spec)
    if entry.path is not None:
        return Kernel(spec, _open(entry.path, runtime), entry.ptx)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "kernel.so"
        path.write_bytes(entry.shared_object)
        return Kernel(spec, _open(path, runtime), entry.ptx)


def _open(shared_object: Path, runtime: Runtime) -> Any:
    """The host function of a shared object, bound to a runtime."""
    if runtime == "sim":
        from cute_attn import sim

        return sim.load(shared_object, SYMBOL)
    import tvm_ffi

    _provide_cuda_runtime()
    return tvm_ffi.load_module(str(shared_object))[SYMBOL]


@functools.cache
def _provide_cuda_runtime() -> None:
    """Makes the symbols of the DSL's runtime library global: shared objects loaded after it find them."""
    package = importlib.util.find_spec("nvidia_cutlass_dsl")
    roots = [Path(p) for p in (package.submodule_search_locations or [])] if package else []
    libraries = [lib for root in roots for lib in sorted(root.glob("**/libcute_dsl_runtime.so"))]
    if not libraries:
        raise RuntimeError("running kernels needs libcute_dsl_runtime.so, which nvidia-cutlass-dsl brings")
    ctypes.CDLL(str(libraries[0]), mode=ctypes.RTLD_GLOBAL)
