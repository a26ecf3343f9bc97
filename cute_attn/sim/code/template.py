"""How an instruction looks to the code generator: typed destinations, typed sources, the NumPy expression between."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from string import Formatter

import numpy as np

from ..errors import Place, UnsupportedInstruction
from ..formats import WIDTH
from . import functions
from .multiply import Multiply
from .ptx import Imm, Instruction, Mem, Not, Operand, Pair, Reg, Sym, Vec

KIND_WIDTH = {"p": 1, "h": 16, "r": 32, "d": 64}
# the view of a register file that an operand of each type is read through
VIEW = {"pred": "P", "b16": "H", "u16": "H", "s16": "S", "f16": "X", "bf16": "H"}
VIEW |= {"b32": "R", "u32": "R", "s32": "I", "f32": "F", "f16x2": "R", "bf16x2": "R"}
VIEW |= {"b64": "D", "u64": "D", "s64": "L", "f64": "G"}


@dataclass(frozen=True)
class Typed:
    """An operand and the type it is read or written as."""

    operand: Operand
    type: str


@dataclass
class Template:
    """An instruction for the code generator.

    `code` is a ufunc name ("np.add") or an expression over {0}, {1}, ...; with several destinations it gives a tuple.
    Instructions of equal `key` whose dependences allow it are run as one call on stacked registers.
    `ordered` ones (memory, votes) keep their order; their code may use {site}, and gets the whole group's sites.
    """

    instruction: Instruction
    destinations: tuple[Typed, ...]
    sources: tuple[Typed, ...]
    code: str
    ufunc: bool = False
    ordered: bool = False
    statement: bool = False  # run for its effect
    single: bool = False  # never stacked with others
    extra: tuple[str, ...] = ()  # further parts of the key
    offsets: int | None = None  # byte offset of a memory operand: {offset}
    multiply: Multiply | None = None  # of a wgmma

    @property
    def key(self) -> tuple[object, ...]:
        types = tuple(t.type for t in (*self.destinations, *self.sources))
        kinds = tuple(_shape(t.operand) for t in self.sources)
        return (self.code, types, kinds, self.ordered, *self.extra)


Group = list[Template]  # that run as one call


def _shape(operand: Operand) -> str:
    """What must be equal for operands to be stacked: registers and immediates stack with their like."""
    if isinstance(operand, Reg):
        return ""
    return operand.name if isinstance(operand, Sym) else type(operand).__name__


class Reader:
    """Takes an instruction's modifiers and operands apart; what nobody takes is an error."""

    def __init__(self, kernel: str, instruction: Instruction):
        self.kernel, self.instruction = kernel, instruction
        self.modifiers = list(instruction.modifiers)
        self.operands = instruction.operands

    def fail(self, what: str) -> UnsupportedInstruction:
        place = Place(self.kernel, self.instruction.line, self.instruction.text)
        return UnsupportedInstruction(f"{what} in {self.instruction.opcode}", place)

    def take(self, *allowed: str) -> str | None:
        """The first modifier that is one of these, removed; None if there is none."""
        for modifier in self.modifiers:
            if modifier in allowed:
                self.modifiers.remove(modifier)
                return modifier
        return None

    def flag(self, modifier: str) -> bool:
        return self.take(modifier) is not None

    def need(self, *allowed: str) -> str:
        found = self.take(*allowed)
        if found is None:
            raise self.fail(f"none of {', '.join(allowed)}")
        return found

    def done(self, *ignored: str) -> None:
        """Every modifier must have been taken, but for those that change nothing here."""
        left = [m for m in self.modifiers if m not in ignored]
        if left:
            raise self.fail(f"modifier {', '.join('.' + m for m in left)} is not known")

    def count(self, *allowed: int) -> None:
        if len(self.operands) not in allowed:
            raise self.fail(f"{len(self.operands)} operands")

    @property
    def hints(self) -> int:
        """How many operands say what the caches are to do: the last, where there is one."""
        return int("L2::cache_hint" in self.instruction.modifiers)

    def constant(self) -> int:
        """The only operand, a number from 0 on."""
        self.count(1)
        operand = self.operands[0]
        if not isinstance(operand, Imm) or operand.width or operand.bits < 0:
            raise self.fail("a count that is no constant")
        return operand.bits

    def template(
        self,
        code: str,
        destination: Typed | Iterable[Typed],
        sources: Sequence[Typed],
        *,
        ufunc: bool = False,
        ordered: bool = False,
        single: bool = False,
        extra: tuple[str, ...] = (),
    ) -> Template:
        destinations = (destination,) if isinstance(destination, Typed) else tuple(destination)
        for typed in (*destinations, *sources):
            if isinstance(typed.operand, Reg):
                width = KIND_WIDTH.get(typed.operand.kind)
                if width != WIDTH[typed.type]:
                    raise self.fail(f"register {typed.operand.name} has {width} bits, not {WIDTH[typed.type]},")
            elif isinstance(typed.operand, Not):
                if typed.type != "pred" or typed.operand.reg.kind != "p":
                    raise self.fail(f"operand {typed.operand}")
            elif isinstance(typed.operand, Vec | Pair | Mem):
                raise self.fail(f"operand {typed.operand}")
        needed = arguments_of(code) if ufunc else places_in(code)
        if needed != len(sources):
            raise self.fail(f"{len(sources)} sources where {needed} are needed")
        return Template(
            self.instruction,
            destinations,
            tuple(sources),
            code,
            ufunc=ufunc,
            ordered=ordered,
            single=single,
            extra=extra,
        )

    def typed(self, types: str | Sequence[str], start: int = 0) -> list[Typed]:
        """Operands from `start` on, as one type or a list of them."""
        operands = self.operands[start:]
        if isinstance(types, str):
            types = [types] * len(operands)
        return [Typed(o, t) for o, t in zip(operands, types, strict=True)]


def registers_read(t: Template) -> list[Reg]:
    found = [o.reg if isinstance(o, Not) else o for o in (s.operand for s in t.sources) if isinstance(o, Reg | Not)]
    if t.multiply:
        found += t.multiply.fragment
    if t.instruction.guard:
        found += [t.instruction.guard, *registers_written(t)]  # lanes that are off keep what was there
    return found


def registers_written(t: Template) -> list[Reg]:
    return [d.operand for d in t.destinations if isinstance(d.operand, Reg)]


@lru_cache(maxsize=256)
def arguments_of(function: str) -> int:
    """How many a NumPy function, or one of ours, takes."""
    if function.startswith("np."):
        return getattr(np, function[3:]).nin
    return len(inspect.signature(getattr(functions, function)).parameters)


@lru_cache(maxsize=256)
def places_in(code: str) -> int:
    """How many sources an expression has places for: {0}, {1}, ..."""
    numbers = [int(name) for _, name, _, _ in Formatter().parse(code) if name and name.isdigit()]
    return max(numbers, default=-1) + 1


def is_sink(operand: Operand) -> bool:
    return isinstance(operand, Sym) and operand.name == "_"
