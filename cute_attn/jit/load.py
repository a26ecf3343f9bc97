"""Kernels ready to be called: from memory, else obtained and bound to a runtime."""

from __future__ import annotations

import ctypes
import functools
import threading
from dataclasses import dataclass
from typing import Any, Literal

from ..loadable import load_module
from ..spec.operation import Spec
from .entry import SYMBOL
from .obtain import obtain
from .record import note
from .runtime import runtime_library

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
    return Kernel(spec, _open(entry.shared_object, runtime), entry.ptx)


def _open(shared_object: bytes, runtime: Runtime) -> Any:
    """The host function of a shared object, bound to a runtime; it is loaded as it was verified, from memory."""
    if runtime == "sim":
        from cute_attn import sim

        return sim.load(shared_object, SYMBOL)
    _provide_cuda_runtime()
    return load_module(shared_object).get_function(SYMBOL)


@functools.cache
def _provide_cuda_runtime() -> None:
    """Makes the symbols of the DSL's runtime library global: shared objects loaded after it find them."""
    ctypes.CDLL(str(runtime_library()), mode=ctypes.RTLD_GLOBAL)
