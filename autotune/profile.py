"""What a compiled candidate says of itself before it runs: registers, spills, serialised products, its loops."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cute_attn.directories import cache_directory
from cute_attn.jit import cache
from cute_attn.jit.compile import compile
from cute_attn.jit.entry import BrokenEntry, link
from cute_attn.jit.fingerprint import key
from cute_attn.spec.operation import Spec

__all__ = ["Loop", "Profile", "compile_profile"]


@dataclass(frozen=True)
class Loop:
    """One pass of a loop with products: cycles that it keeps the tensor cores busy, issue slots of a warp."""

    tensor_cycles: int
    slots: int


@dataclass(frozen=True)
class Profile:
    """loops: none if there is no disassembler. warnings: the assembler's."""

    registers: int
    spill_bytes: int
    warnings: tuple[str, ...] = ()
    loops: tuple[Loop, ...] = ()

    @property
    def refusal(self) -> str:
        """Why it is not worth running; "" if it is. Spills and serialised products never run."""
        if self.spill_bytes:
            return f"spills {self.spill_bytes} bytes"
        serialised = [w for w in self.warnings if w.startswith("(C75") and not w.startswith("(C7508")]
        return f"products serialised: {serialised[0]}" if serialised else ""


def compile_profile(spec: Spec) -> Profile:
    """Compiles a spec into the cache and profiles it; a profile is kept beside the cache and not made twice."""
    path = cache_directory() / "profiles" / f"{key(spec)}.json"
    if path.exists() and _has_entry(spec):
        return _parsed(path)
    compiled = compile(spec)
    found = Profile(compiled.registers, compiled.spill_bytes, compiled.warnings, _loops(compiled))
    cache.commit(link(compiled))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(found)))
    return found


def _has_entry(spec: Spec) -> bool:
    try:
        return cache.read(spec) is not None
    except BrokenEntry:
        return False


def _parsed(path: Path) -> Profile:
    found = json.loads(path.read_text())
    loops = tuple(Loop(**loop) for loop in found.pop("loops"))
    return Profile(**{**found, "warnings": tuple(found["warnings"]), "loops": loops})


def _loops(compiled: object) -> tuple[Loop, ...]:
    from cute_attn.profile.inspect import inspect

    try:
        report = inspect(compiled)  # type: ignore[arg-type]
    except RuntimeError:  # no disassembler
        return ()
    return tuple(Loop(loop.tensor_cycles, loop.common) for loop in report.loops if loop.tensor_cycles)
