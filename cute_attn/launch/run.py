"""One launch: the kernel of a spec, from memory or obtained and bound to what runs it, is called."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import torch

from ..jit.entry import SYMBOL
from ..jit.obtain import obtain
from ..jit.record import note
from ..jit.runtime import runtime_library
from ..loadable import load_module
from ..spec.operation import Spec

__all__ = ["Kernel", "KernelBackend", "Order", "kernel", "run", "start"]

KernelBackend = Literal["sm90", "sim"]
Order = tuple[str, int]

_kernels: dict[tuple[Spec, KernelBackend], Kernel] = {}
_lock = threading.Lock()  # one compile of a spec is enough, and where files cannot be locked nothing else sees to it


@dataclass(frozen=True)
class Kernel:
    """A kernel to be called with tuples in the order of its argument structs; `ptx` is what the simulator runs."""

    spec: Spec
    function: Any
    ptx: str


def run(
    spec: Spec,
    arguments: tuple[tuple[Any, ...], ...],
    backend: KernelBackend,
    fresh: Sequence[torch.Tensor | None],
    order: Order | None = None,
) -> None:
    """Launches the kernel of a spec on the GPU ("sm90") or in the simulator ("sim").

    Args:
        arguments: its argument structs, each as a tuple.
        fresh: those of them that nobody wrote yet; the simulator sees to it that none is read before it is written.
        order: mode and seed of the simulator; None takes those of `backend("sim", ...)`.
    """
    start(kernel(spec, backend), arguments, backend, fresh, order)


def start(
    found: Kernel,
    arguments: tuple[tuple[Any, ...], ...],
    backend: KernelBackend,
    fresh: Sequence[torch.Tensor | None],
    order: Order | None = None,
) -> None:
    """`run` with its kernel."""
    if backend == "sim":
        mode, seed = order or (None, None)
        _simulator().run(found.function, *arguments, mode=mode, seed=seed, ptx=found.ptx, fresh=fresh)
    else:
        found.function(*arguments)


def kernel(spec: Spec, backend: KernelBackend) -> Kernel:
    """The kernel of a spec: looked for in memory, else obtained as `cute_attn.jit.obtain` says."""
    note(spec)
    found = _kernels.get((spec, backend))
    if found is not None:
        return found
    with _lock:
        if (spec, backend) not in _kernels:
            entry = obtain(spec)
            _kernels[spec, backend] = Kernel(spec, _open(entry.shared_object, backend), entry.ptx)
        return _kernels[spec, backend]


def _open(shared_object: bytes, backend: KernelBackend) -> Any:
    """The host function of a shared object, bound for a backend; it is loaded as it was verified, from memory."""
    if backend == "sim":
        return _simulator().load(shared_object, SYMBOL)
    _provide_cuda_runtime()
    return load_module(shared_object).get_function(SYMBOL)


@functools.cache
def _simulator() -> ModuleType:
    """Imported once: to ask for a module again takes a microsecond, at every call."""
    from .. import sim

    return sim


@functools.cache
def _provide_cuda_runtime() -> None:
    """Makes the symbols of the DSL's runtime library global: shared objects loaded after it find them."""
    ctypes.CDLL(str(runtime_library()), mode=ctypes.RTLD_GLOBAL)
