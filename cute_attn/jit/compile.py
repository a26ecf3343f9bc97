"""From a spec to machine code, on any machine: no GPU and no tensor is needed."""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..spec.operation import Spec, operation

__all__ = ["ARCHITECTURE", "Compiled", "compile", "compile_count"]

ARCHITECTURE = "sm_90a"

_count = 0


@dataclass(frozen=True)
class Compiled:
    """A compiled kernel.

    function: the DSL's callable; it takes what the kernel's `arguments` module describes, less the stream.
    ptx, cubin: its code. log: what the assembler said: registers, spills, warnings.
    """

    spec: Spec
    function: Any
    ptx: str
    cubin: bytes
    log: str

    @property
    def registers(self) -> int:
        """Registers of a thread at entry, before they are moved between warpgroups; of several kernels, the most."""
        return max(self._numbers(r"Used (\d+) registers"))

    @property
    def spill_bytes(self) -> int:
        return sum(self._numbers(r"(\d+) bytes spill (?:stores|loads)"))

    @property
    def warnings(self) -> tuple[str, ...]:
        """The assembler's warnings (C7508: setmaxnreg ignored; C7512, C7513 and others: products serialised)."""
        return tuple(found.strip() for found in re.findall(r"\(C7\d{3}\).*?(?= ptxas |$)", self._said()))

    def _said(self) -> str:
        """The log in one line: the DSL wraps its text."""
        return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", self.log).split())

    def _numbers(self, pattern: str) -> list[int]:
        found = re.findall(pattern, self._said())
        if not found:
            raise RuntimeError(f"the assembler reported no {pattern!r}:\n{self.log}")
        return [int(number) for number in found]


def compile(spec: Spec) -> Compiled:
    """Compiles a spec for Hopper. Takes 5 to 20 s.

    Raises ValueError if the spec's tile does not fit a multiprocessor. One compile at a time in a process: the DSL is
    not thread-safe.
    """
    global _count
    kind = operation(spec.op)
    kind.check(spec)
    kernel, arguments = kind.program(spec)
    import cutlass.cute as cute

    _count += 1
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as dump, _for_hopper(), _without_lines(), contextlib.redirect_stderr(said):
        options = f"--enable-tvm-ffi --gpu-arch {ARCHITECTURE} --keep-ptx --keep-cubin --dump-dir {dump} remarks{{ptx}}"
        function = cute.compile(kernel, *arguments, options=options)
        return Compiled(spec, function, function.__ptx__, bytes(function.__cubin__), said.getvalue())


def compile_count() -> int:
    """How many kernels this process has compiled."""
    return _count


@contextlib.contextmanager
def _for_hopper() -> Iterator[None]:
    """The DSL's target while compiling: without it and without a GPU the DSL takes another architecture, in silence."""
    from cutlass.cutlass_dsl import CuTeDSL

    environment = CuTeDSL._get_dsl().envar
    before = environment._arch
    environment.arch = ARCHITECTURE
    try:
        yield
    finally:
        environment._arch = before


@contextlib.contextmanager
def _without_lines() -> Iterator[None]:
    """For the assembler's remarks the DSL would find the source line of every operation: a fifth of a compile."""
    from cutlass.base_dsl import dsl

    enable = getattr(dsl, "_set_enable_frame_filtering", None)
    if enable is None:  # a DSL that finds them in another way takes its time
        yield
        return
    dsl._set_enable_frame_filtering = lambda _wanted: enable(False)
    try:
        yield
    finally:
        dsl._set_enable_frame_filtering = enable
