"""Parses PTX text into instructions with typed operands. Knows the grammar, not what instructions do."""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass, field

from ..errors import Place, UnsupportedInstruction


@dataclass(frozen=True)
class Reg:
    """A register. `kind` is the class of its file: p (predicate), h, r, d, q (16, 32, 64, 128 bits)."""

    name: str
    kind: str


@dataclass(frozen=True)
class Imm:
    """An immediate. Floating-point literals keep their value in `bits` of `width` bits; integers have width 0."""

    bits: int
    width: int = 0


@dataclass(frozen=True)
class Sym:
    """A name that is no register: a parameter, a shared variable, a special register, the sink `_`."""

    name: str


@dataclass(frozen=True)
class Mem:
    """`[base + offset]`, or `[base, {coordinates}]` for tensor copies."""

    base: Reg | Sym | Imm
    offset: int = 0
    coordinates: tuple[Operand, ...] = ()


@dataclass(frozen=True)
class Vec:
    """`{a, b, ...}`."""

    items: tuple[Operand, ...]


@dataclass(frozen=True)
class Pair:
    """`a|b`: two destinations of one instruction."""

    first: Operand
    second: Operand


@dataclass(frozen=True)
class Not:
    """`!p` as a source operand."""

    reg: Reg


Operand = Reg | Imm | Sym | Mem | Vec | Pair | Not


@dataclass
class Instruction:
    """One instruction: `@guard name.modifiers operands;`."""

    line: int
    text: str
    name: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Reg | None = None
    guard_negated: bool = False

    @property
    def opcode(self) -> str:
        return ".".join((self.name, *self.modifiers))


@dataclass(frozen=True)
class Param:
    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class SharedVariable:
    name: str
    align: int
    size: int  # 0 for the dynamic shared memory


@dataclass
class Kernel:
    """One entry: its parameters, shared variables, and instructions with the labels that point into them."""

    name: str
    params: dict[str, Param] = field(default_factory=dict)
    shared: dict[str, SharedVariable] = field(default_factory=dict)
    local: dict[str, SharedVariable] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)  # "threads" at most, "minnctapersm", "maxnreg": where given


_TYPE_SIZE = {"b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "b32": 4, "u32": 4, "s32": 4, "f32": 4}
_TYPE_SIZE |= {"b64": 8, "u64": 8, "s64": 8, "f64": 8, "b128": 16}
_KIND = {"pred": "p", **{t: {1: "h", 2: "h", 4: "r", 8: "d", 16: "q"}[size] for t, size in _TYPE_SIZE.items()}}
# What bad text runs into.
MALFORMED = ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError
# Bytes that a CTA, a thread and a kernel can have.
MAX_SHARED, MAX_LOCAL, MAX_PARAMETERS = 227 << 10, 512 << 10, 32764
_NAME = re.compile(r"[%$A-Za-z_][\w$%.:]*")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_VARIABLE = re.compile(r"(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$%]+)\s*(?:\[(\d*)\])?\s*(?:\[(\d*)\])?")


def parse(text: str, entry: str) -> Kernel:
    """The kernel `entry` of a PTX module.

    Raises:
        UnsupportedInstruction: for a missing entry, or text that does not parse.
    """
    clean = _COMMENT.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)
    place = Place(entry)
    head = re.search(r"\.entry\s+" + re.escape(entry) + r"\b", clean)
    if head is None:
        raise UnsupportedInstruction("the PTX has no such entry", place)
    body = _Body(Kernel(entry), clean, text.split("\n"))
    body.line, body.counted = clean.count("\n", 0, head.start()) + 1, head.start()
    try:
        return _parsed(body, head.end())
    except MALFORMED as error:
        raise body.error(f"the text does not parse ({error!r})") from error


def _parsed(body: _Body, position: int) -> Kernel:
    kernel, clean = body.kernel, body.text
    entry = body.line
    for match in re.finditer(r"^\s*(?:\.extern|\.visible|\.weak)?\s*\.shared\s+([^;]*);", clean, re.M):
        body.line = clean.count("\n", 0, match.start(1)) + 1
        _declare(kernel.shared, match.group(1), MAX_SHARED)
    body.line = entry
    opening = re.compile(r"[({]").search(clean, position)
    if opening is None:
        raise body.error("the entry has no body")
    if opening.group() == "(":
        closing = clean.index(")", opening.start())
        _parameters(kernel, clean[opening.end() : closing])
        position = closing + 1
    start = clean.index("{", position)
    _limits(kernel, clean[position:start])
    body.run(start + 1)
    return kernel


def _limits(kernel: Kernel, text: str) -> None:
    """The directives between the parameters of an entry and its body."""
    for name, numbers in re.findall(r"\.(maxntid|reqntid|minnctapersm|maxnreg)\s+(\d+(?:\s*,\s*\d+)*)", text):
        product = math.prod(int(number) for number in numbers.split(","))
        kernel.limits["threads" if name.endswith("ntid") else name] = product


def _declare(table: dict[str, SharedVariable], declaration: str, most: int) -> None:
    """Enters a variable of shared or local memory, of which there is so much.

    Raises:
        ValueError: for an alignment that is no power of two, or more than there is.
    """
    match = _VARIABLE.match(declaration.strip())
    if match:
        align, kind, name, first, second = match.groups()
        size = _TYPE_SIZE[kind] * (int(first or 0) if first is not None else 1) * int(second or 1)
        table[name] = SharedVariable(name, _alignment(align, kind), size)
        total = sum(variable.size for variable in table.values())
        if total > most:
            raise ValueError(f"{total} bytes of variables; there are {most}")


def _alignment(align: str | None, kind: str) -> int:
    number = int(align or _TYPE_SIZE[kind])
    if number.bit_count() != 1 or number > MAX_SHARED:
        raise ValueError(f"an alignment of {number}")
    return number


def _parameters(kernel: Kernel, text: str) -> None:
    offset = 0
    for item in filter(None, (part.strip() for part in text.split(","))):
        match = _VARIABLE.search(re.sub(r"^\.param\s+|\.ptr\s+(\.\w+\s+)?(\.align\s+\d+\s+)?", "", item))
        if match is None:
            raise ValueError(f"parameter {item!r}")
        align, kind, name, count, _ = match.groups()
        size = _TYPE_SIZE[kind] * int(count or 1)
        step = _alignment(align, kind)
        offset = -(-offset // step) * step
        kernel.params[name] = Param(name, offset, size)
        offset += size
        if offset > MAX_PARAMETERS:
            raise ValueError(f"{offset} bytes of parameters; there are {MAX_PARAMETERS}")


class _Body:
    """Reads statements of a body; inner `{ }` scopes have their own registers and labels, renamed apart here."""

    def __init__(self, kernel: Kernel, text: str, lines: list[str]):
        self.kernel, self.text, self.lines = kernel, text, lines
        self.registers: list[dict[str, Reg | Vec]] = [{}]
        self.ranges: list[list[tuple[str, int, str]]] = [[]]
        self.labels: list[dict[str, str]] = [{}]
        self.scopes = 0
        self.line, self.counted = 1, 0

    def run(self, position: int) -> None:
        text, end = self.text, len(self.text)
        self._enter(position)
        while position < end:
            char = text[position]
            if char.isspace() or char == ";":
                position += 1
            elif char == "{":
                position += 1
                self._enter(position)
            elif char == "}":
                position += 1
                self.registers.pop()
                self.ranges.pop()
                self.labels.pop()
                if len(self.registers) == 1:
                    return
            else:
                position = self._statement(position)
        raise self.error("the body does not end")

    def _enter(self, position: int) -> None:
        """Opens a scope and finds its labels first: a branch may precede its label."""
        self.scopes += 1
        self.registers.append({})
        self.ranges.append([])
        labels, depth = {}, 0
        for match in re.finditer(r"[{}]|([$A-Za-z_][\w$]*)\s*:(?!:)", self.text[position:]):
            if match.group() == "{":
                depth += 1
            elif match.group() == "}":
                depth -= 1
                if depth < 0:
                    break
            elif depth == 0:
                labels[match.group(1)] = f"{match.group(1)}@{self.scopes}"
        self.labels.append(labels)

    def _statement(self, position: int) -> int:
        text = self.text
        self.line += text.count("\n", self.counted, position)
        self.counted = position
        label = re.compile(r"([$A-Za-z_][\w$]*)\s*:(?!:)").match(text, position)
        if label:
            self.kernel.labels[self._label(label.group(1))] = len(self.kernel.instructions)
            return label.end()
        if text.startswith((".loc\t", ".loc ", ".file"), position):
            return text.index("\n", position)
        end = text.index(";", position)
        statement = text[position:end].strip()
        if statement.startswith("."):
            self._directive(statement)
        else:
            self._instruction(statement)
        return end + 1

    def _directive(self, statement: str) -> None:
        if statement.startswith(".reg"):
            kinds, names = re.fullmatch(r"\.reg((?:\s*\.\w+)+)\s+(.*)", statement, re.S).groups()  # type: ignore[union-attr]
            *vector, kind = kinds.replace(".", " ").split()
            if vector:
                self._vectors(vector, kind, names)
                return
            for name in names.split(","):
                bank = re.fullmatch(r"\s*([%\w$]+)<(\d+)>\s*", name)
                if bank:
                    self.ranges[-1].append((bank.group(1), int(bank.group(2)), _KIND[kind]))
                else:
                    plain = name.strip()
                    self.registers[-1][plain] = Reg(f"{plain}@{self.scopes}", _KIND[kind])
        elif statement.startswith(".shared"):
            _declare(self.kernel.shared, statement.removeprefix(".shared"), MAX_SHARED)
        elif statement.startswith(".local"):
            _declare(self.kernel.local, statement.removeprefix(".local"), MAX_LOCAL)
        elif not statement.startswith(".pragma"):
            raise self.error(f"directive {statement.split()[0]} is not known")

    def _vectors(self, vector: list[str], kind: str, names: str) -> None:
        """Registers of several elements: v.x or v.r, v.y or v.g, ..."""
        if vector not in (["v2"], ["v4"]) or "<" in names:
            raise self.error("this declaration is not known")
        for name in (part.strip() for part in names.split(",")):
            elements = tuple(Reg(f"{name}.{x}@{self.scopes}", _KIND[kind]) for x in "xyzw"[: int(vector[0][1:])])
            self.registers[-1][name] = Vec(elements)
            for letters in ("xyzw", "rgba"):
                self.registers[-1] |= {f"{name}.{x}": e for x, e in zip(letters, elements, strict=False)}

    def _instruction(self, statement: str) -> None:
        match = re.match(r"(?:@(!?)\s*([%\w$]+)\s+)?([a-z]\w*)((?:\.[\w:]+)*)\s*", statement)
        if match is None:
            raise self.error("the statement does not parse")
        negated, guard, name, modifiers = match.groups()
        rest = statement[match.end() :].strip()
        operands = tuple(self._operand(part) for part in _split(rest)) if rest else ()
        register = None
        if guard:
            operand = self._operand(guard)
            if not isinstance(operand, Reg):
                raise self.error(f"guard {guard} is no register")
            register = operand
        raw = self.lines[self.line - 1].strip()
        self.kernel.instructions.append(
            Instruction(self.line, raw, name, tuple(modifiers.split(".")[1:]), operands, register, bool(negated))
        )

    def _operand(self, text: str) -> Operand:
        text = text.strip()
        if text.startswith("[") and text.endswith("]"):
            return self._memory(text[1:-1])
        if text.startswith("{") and text.endswith("}"):
            return Vec(tuple(self._operand(part) for part in _split(text[1:-1])))
        if "|" in text:
            first, second = text.split("|")
            return Pair(self._operand(first), self._operand(second))
        if text.startswith("!"):
            operand = self._operand(text[1:])
            if isinstance(operand, Reg):
                return Not(operand)
        if text[0].isdigit() or text[0] == "-":
            return self._immediate(text)
        register = self._register(text)
        if register is not None:
            return register
        for labels in reversed(self.labels):
            if text in labels:
                return Sym(labels[text])
        if not _NAME.fullmatch(text):
            raise self.error(f"operand {text!r} does not parse")
        return Sym(text)

    def _memory(self, text: str) -> Mem:
        parts = _split(text)
        base_text, offset = parts[0], 0
        match = re.fullmatch(r"(.+?)\s*\+\s*(-?\w+)", base_text)
        if match:
            base_text, offset = match.group(1), int(match.group(2), 0)
            if not -(1 << 31) <= offset < 1 << 31:
                raise self.error(f"offset {offset} is none of 32 bits with a sign")
        base = self._operand(base_text)
        if not isinstance(base, Reg | Sym | Imm):
            raise self.error(f"address [{text}] does not parse")
        coordinates: tuple[Operand, ...] = ()
        if len(parts) > 2:
            raise self.error(f"address [{text}] does not parse")
        if len(parts) > 1:
            vector = self._operand(parts[1])
            coordinates = vector.items if isinstance(vector, Vec) else (vector,)
        return Mem(base, offset, coordinates)

    def _immediate(self, text: str) -> Imm:
        bits = re.fullmatch(r"0[fF]([0-9A-Fa-f]{8})|0[dD]([0-9A-Fa-f]{16})", text)
        if bits:
            return Imm(int(bits[1] or bits[2], 16), 32 if bits[1] else 64)
        text = text.rstrip("U")
        try:
            number = self._number(text)
        except (OverflowError, ValueError):
            raise self.error(f"number {text!r} does not parse") from None
        if not -(1 << 63) <= number.bits < 1 << 64:
            raise self.error(f"number {text} has more than 64 bits")
        return number

    def _number(self, text: str) -> Imm:
        if re.fullmatch(r"-?\d+\.\d*(?:[eE][-+]?\d+)?", text):
            return Imm(struct.unpack("<Q", struct.pack("<d", float(text)))[0], 64)
        if re.fullmatch(r"-?0[0-7]+", text):
            return Imm(int(text, 8))
        return Imm(int(text, 0))

    def _register(self, name: str) -> Reg | Vec | None:
        for registers, ranges in zip(reversed(self.registers), reversed(self.ranges), strict=True):
            if name in registers:
                return registers[name]
            for prefix, count, kind in ranges:
                digits = name[len(prefix) :]
                if name.startswith(prefix) and digits.isdigit() and int(digits) < count:
                    return Reg(name, kind)
        return None

    def _label(self, name: str) -> str:
        return self.labels[-1].get(name, name)

    def error(self, what: str) -> UnsupportedInstruction:
        return UnsupportedInstruction(what, Place(self.kernel.name, self.line, self.lines[self.line - 1].strip()))


def _split(text: str) -> list[str]:
    """Splits at commas that are outside brackets and braces."""
    parts, depth, start = [], 0, 0
    for position, char in enumerate(text):
        if char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    parts.append(text[start:].strip())
    return parts
