"""What a compiled candidate says of itself before it runs: registers, spills, serialised products, its loops."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cute_attn.directories import cache_directory
from cute_attn.jit import cache
from cute_attn.jit.compile import Compiled, compile
from cute_attn.jit.entry import BrokenEntry, link
from cute_attn.jit.fingerprint import key
from cute_attn.predict.kernel import Code, read
from cute_attn.profile import sass
from cute_attn.spec.operation import Spec

from .files import write_json

__all__ = ["Profile", "compile_profile", "read_profile", "write_profile"]


@dataclass(frozen=True)
class Profile:
    """warnings: the assembler's. code: its loops. unknown: why these, and what else is empty, are not known; "" where
    they are."""

    registers: int
    spill_bytes: int
    warnings: tuple[str, ...] = ()
    code: Code = field(default_factory=Code)
    unknown: str = ""

    @property
    def refusal(self) -> str:
        """Why it is not worth running; "" if it is. Spills and serialised products never run."""
        if self.spill_bytes:
            return f"spills {self.spill_bytes} bytes"
        serialised = [w for w in self.warnings if w.startswith("(C75") and not w.startswith("(C7508")]
        return f"products serialised: {serialised[0]}" if serialised else ""

    def to_json(self) -> dict[str, Any]:
        return {
            "registers": self.registers,
            "spill_bytes": self.spill_bytes,
            "warnings": list(self.warnings),
            "loops": self.code.to_json(),
            "unknown": self.unknown,
        }


def compile_profile(spec: Spec) -> Profile:
    """Compiles a spec into the cache and profiles it; a profile is kept beside the cache and made anew if its kernel is
    gone or there is a disassembler now that knows more."""
    found = read_profile(cache_directory(), key(spec))
    if found is not None and _has_entry(spec) and not (found.unknown and _has_disassembler()):
        return found
    compiled = compile(spec)
    code, unknown = _code(compiled)
    found = Profile(compiled.registers, compiled.spill_bytes, compiled.warnings, code, unknown)
    cache.commit(link(compiled))
    write_profile(cache_directory(), key(spec), found)
    return found


def read_profile(root: Path, name: str) -> Profile | None:
    """The profile kept in a cache or bundle for the entry of that name; None where it is cut or lacks a part."""
    try:
        found = json.loads(_path(root, name).read_text())
        code = Code.from_json(found["loops"])
        profile = Profile(
            found["registers"], found["spill_bytes"], tuple(found["warnings"]), code, found["unknown"]
        )  # fmt: skip
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return profile if _is_sound(profile) else None


def write_profile(root: Path, name: str, profile: Profile) -> None:
    path = _path(root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, profile.to_json())


def _is_sound(profile: Profile) -> bool:
    """Whether a profile that was read has numbers where numbers belong, and either loops or a reason."""
    loops = profile.code.loops
    numbers = [profile.registers, profile.spill_bytes]
    for loop in loops:
        numbers += [loop.tensor_cycles, loop.shared_cycles, *(n for step in loop.steps for n in step.work)]
    texts = [profile.unknown, *profile.warnings]
    if not all(isinstance(n, int) for n in numbers) or not all(isinstance(text, str) for text in texts):
        return False
    return bool(profile.unknown) != bool(loops) and all(loop.tensor_cycles > 0 for loop in loops)


def _path(root: Path, name: str) -> Path:
    return root / "profiles" / f"{name}.json"


def _has_entry(spec: Spec) -> bool:
    try:
        return cache.read(spec) is not None
    except BrokenEntry:
        return False


def _has_disassembler() -> bool:
    try:
        return bool(sass.disassembler())
    except RuntimeError:
        return False


def _code(compiled: Compiled) -> tuple[Code, str]:
    """Its loops; or none, and why they are not known."""
    try:
        return read(compiled.cubin), ""
    except (RuntimeError, ValueError) as error:  # no disassembler, or it refuses; no loop has products
        return Code(), str(error)
