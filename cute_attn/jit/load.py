"""Kernels ready to be called: from memory, else from disk, else compiled."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import logging
import tempfile
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from . import cache
from .compile import Spec, compile

__all__ = ["Kernel", "Runtime", "kernel"]

Runtime = Literal["sm90", "sim"]

log = logging.getLogger("cute_attn.compile")
_kernels: dict[tuple[Spec, Runtime], Kernel] = {}
_lock = threading.Lock()  # the compiler is not thread-safe, and one compile of a spec is enough


@dataclass(frozen=True)
class Kernel:
    """A kernel to be called with tuples in the order of its argument structs; `ptx` is what the simulator runs."""

    spec: Spec
    function: Any
    ptx: str


def kernel(spec: Spec, runtime: Runtime) -> Kernel:
    """The kernel of a spec, to run on the GPU ("sm90") or in the simulator ("sim").

    Looked for in memory, then on disk, then compiled and written to disk; an entry on disk that is broken is set aside
    with a warning and replaced. Where the disk cannot be written a warning says so and the kernel lives in memory.
    """
    found = _kernels.get((spec, runtime))
    if found is not None:
        return found
    with _lock:
        if (spec, runtime) not in _kernels:
            _kernels[spec, runtime] = _load(spec, runtime)
        return _kernels[spec, runtime]


def _load(spec: Spec, runtime: Runtime) -> Kernel:
    try:
        entry = cache.read(spec)
    except cache.BrokenEntry as error:
        warnings.warn(f"a cached kernel is broken and is compiled anew: {error}", stacklevel=4)
        cache.set_aside(spec)
        entry = None
    if entry is None:
        log.info("compiling %s", spec)
        compiled = compile(spec)
        try:
            entry = cache.commit(compiled)
        except OSError as error:
            warnings.warn(f"a compiled kernel could not be cached and lives in memory only: {error}", stacklevel=4)
            with tempfile.TemporaryDirectory() as scratch:
                path = cache.write_shared_object(compiled, Path(scratch))
                return Kernel(spec, _open(path, runtime), compiled.ptx)
    return Kernel(spec, _open(entry.shared_object, runtime), entry.ptx)


def _open(shared_object: Path, runtime: Runtime) -> Any:
    """The host function of a shared object, bound to a runtime."""
    if runtime == "sim":
        from cute_attn import sim

        return sim.load(shared_object, cache.SYMBOL)
    import tvm_ffi

    _provide_cuda_runtime()
    return tvm_ffi.load_module(str(shared_object))[cache.SYMBOL]


@functools.cache
def _provide_cuda_runtime() -> None:
    """Makes the symbols of the DSL's runtime library global: shared objects loaded after it find them."""
    package = importlib.util.find_spec("nvidia_cutlass_dsl")
    roots = [Path(p) for p in (package.submodule_search_locations or [])] if package else []
    libraries = [lib for root in roots for lib in sorted(root.glob("**/libcute_dsl_runtime.so"))]
    if not libraries:
        raise RuntimeError("running kernels needs libcute_dsl_runtime.so, which nvidia-cutlass-dsl brings")
    ctypes.CDLL(str(libraries[0]), mode=ctypes.RTLD_GLOBAL)
