"""What a compiled candidate says of itself before it runs: registers, spills, serialised products, its loops."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cute_attn.directories import cache_directory
from cute_attn.jit import cache
from cute_attn.jit.compile import Compiled, compile
from cute_attn.jit.entry import BrokenEntry, link
from cute_attn.jit.fingerprint import key
from cute_attn.profile import sass
from cute_attn.spec.operation import Spec

from .files import write_json

__all__ = ["Loop", "Profile", "compile_profile", "read_profile", "write_profile"]


@dataclass(frozen=True)
class Loop:
    """One pass of a loop with products: cycles that it keeps the tensor cores busy, issue slots of a warp."""

    tensor_cycles: int
    slots: int


@dataclass(frozen=True)
class Profile:
    """warnings: the assembler's. unknown: why loops, and what else is empty, are not known; "" where they are."""

    registers: int
    spill_bytes: int
    warnings: tuple[str, ...] = ()
    loops: tuple[Loop, ...] = ()
    unknown: str = ""

    @property
    def refusal(self) -> str:
        """Why it is not worth running; "" if it is. Spills and serialised products never run."""
        if self.spill_bytes:
            return f"spills {self.spill_bytes} bytes"
        serialised = [w for w in self.warnings if w.startswith("(C75") and not w.startswith("(C7508")]
        return f"products serialised: {serialised[0]}" if serialised else ""


def compile_profile(spec: Spec) -> Profile:
    """Compiles a spec into the cache and profiles it; a profile is kept beside the cache and made anew if its kernel is
    gone or there is a disassembler now that knows more."""
    found = read_profile(cache_directory(), key(spec))
    if found is not None and _has_entry(spec) and not (found.unknown and _has_disassembler()):
        return found
    compiled = compile(spec)
    loops, unknown = _loops(compiled)
    found = Profile(compiled.registers, compiled.spill_bytes, compiled.warnings, loops, unknown)
    cache.commit(link(compiled))
    write_profile(cache_directory(), key(spec), found)
    return found


def read_profile(root: Path, name: str) -> Profile | None:
    """The profile kept in a cache or bundle for the entry of that name; None where it is cut or lacks a part."""
    try:
        found = json.loads(_path(root, name).read_text())
        loops = tuple(Loop(loop["tensor_cycles"], loop["slots"]) for loop in found["loops"])
        profile = Profile(
            found["registers"], found["spill_bytes"], tuple(found["warnings"]), loops, found["unknown"]
        )  # fmt: skip
    except (OSError, ValueError, TypeError, KeyError):
        return None
    numbers = [profile.registers, profile.spill_bytes, *(n for loop in loops for n in (loop.tensor_cycles, loop.slots))]
    texts = [profile.unknown, *profile.warnings]
    sound = all(isinstance(n, int) for n in numbers) and all(isinstance(text, str) for text in texts)
    return profile if sound and all(loop.tensor_cycles > 0 for loop in loops) else None


def write_profile(root: Path, name: str, profile: Profile) -> None:
    path = _path(root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(profile))


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


def _loops(compiled: Compiled) -> tuple[tuple[Loop, ...], str]:
    """Its loops with products; or none, and why they are not known."""
    from cute_attn.profile.inspect import inspect

    try:
        report = inspect(compiled)
    except RuntimeError as error:  # no disassembler, or it refuses
        return (), str(error)
    return tuple(Loop(loop.tensor_cycles, loop.common) for loop in report.loops if loop.tensor_cycles), ""
