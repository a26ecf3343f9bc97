"""A compiled kernel, wherever it comes from: a bundle, the cache on disk, or the compiler."""

from __future__ import annotations

import logging
import shlex
import threading
import warnings
from collections.abc import Sequence

from ..directories import warn_unusable
from ..errors import Unavailable
from ..spec.operation import Spec
from . import bundle, cache
from .compile import compile
from .compiler import needs_compiler
from .entry import BrokenEntry, Entry, link, linker
from .near import near_misses

__all__ = ["KernelNotBuilt", "cached_or_compiled", "obtain"]

log = logging.getLogger("cute_attn.compile")
_compiling = threading.Lock()  # the compiler is not thread-safe


class KernelNotBuilt(Unavailable):
    """No bundle and no cache has this kernel, and compiling it is not allowed or not possible.

    `spec` is the kernel's, `why` what keeps it from being compiled, `near` what is nearly it, each with the difference.
    """

    def __init__(self, spec: Spec, why: str, near: Sequence[str] = ()) -> None:
        command = f"cute-attn build --spec {shlex.quote(spec.canonical())} --output DIRECTORY"
        super().__init__(
            f"{why}, and no cache or bundle has the kernel {spec};"
            + "".join(f"\n  {found};" for found in near)
            + f"\nthis builds it, for load_bundle or CUTE_ATTN_BUNDLES:\n  {command}"
        )
        self.spec, self.why, self.near = spec, why, tuple(near)


def obtain(spec: Spec) -> Entry:
    """The compiled kernel of a spec.

    Looked for in bundles, then in the cache, then compiled and written to the cache, once on a machine however many
    processes ask. A broken entry of the cache is set aside with a warning and replaced. Where the cache cannot be
    reached or written, one warning says so and the entry lives in memory.

    Raises KernelNotBuilt where it would have to be compiled and CUTE_ATTN_CACHE_MODE is "cached-only", or the compiler
    is not installed.
    """
    mode = cache.cache_mode()
    return bundle.find(spec, mode) or cached_or_compiled(spec, mode)


def cached_or_compiled(spec: Spec, mode: str = "jit") -> Entry:
    """`obtain` without bundles: what this installation itself makes of a spec."""
    found = None
    try:
        found = cache.read(spec)
    except BrokenEntry as error:
        if mode == "cached-only":
            warnings.warn(f"a cached kernel is broken: {error}", stacklevel=4)
    except OSError as error:
        warn_unusable(error)
    if found is not None:
        return found
    if mode == "cached-only":
        raise KernelNotBuilt(spec, "CUTE_ATTN_CACHE_MODE is cached-only", near_misses(spec, mode))
    with cache.lock(spec):
        try:
            found = cache.read(spec)  # another process may have written it, or replaced a broken one
        except BrokenEntry as error:
            warnings.warn(f"a cached kernel is broken and is compiled anew: {error}", stacklevel=4)
            _set_aside(spec)
        except OSError as error:
            warn_unusable(error)
        return found or _compiled(spec, mode)


def _compiled(spec: Spec, mode: str) -> Entry:
    log.info("compiling %s", spec)
    with _compiling:
        try:
            with needs_compiler():
                linker()  # sooner than after the compile
                built = link(compile(spec))
        except Unavailable as error:
            raise KernelNotBuilt(spec, str(error), near_misses(spec, mode)) from error
    try:
        return cache.commit(built)
    except OSError as error:
        warn_unusable(error)
        return built


def _set_aside(spec: Spec) -> None:
    try:
        cache.set_aside(spec)
    except OSError as error:
        log.info("the broken entry of %s stays where it is: %s", spec, error)
