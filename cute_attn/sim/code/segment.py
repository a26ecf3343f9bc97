"""Turns a straight run of instructions into one NumPy function: like instructions are one call on stacked registers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ..state import atomics, load_store, products
from ..state.flags import Strength
from . import functions, mma, warp
from .ptx import Imm, Not, Reg, Sym
from .rows import Rows
from .template import KIND_WIDTH, VIEW, Group, Template, Typed, registers_read, registers_written


def stack(templates: Sequence[Template]) -> list[Group]:
    """Groups templates that may run as one call, in an order that respects every dependence.

    Each gets the lowest level that its dependences allow; equal keys on one level make a group.
    """
    written: dict[Reg, int] = {}
    read: dict[Reg, int] = {}
    memory_level, memory_key = 0, None
    groups: dict[tuple[object, ...], Group] = {}
    for index, t in enumerate(templates):
        sources, destinations = registers_read(t), registers_written(t)
        level = max((written.get(r, -1) + 1 for r in (*sources, *destinations)), default=0)
        level = max([level, *(read.get(r, -1) + 1 for r in destinations)])
        key = (t.key, index) if t.single or t.instruction.guard else (t.key, None)
        if t.ordered:
            level = max(level, memory_level + (memory_key is not None and memory_key != key))
            memory_level, memory_key = level, key
        for r in sources:
            read[r] = max(read.get(r, 0), level)
        for r in destinations:
            written[r] = level
        groups.setdefault((level, key), []).append(t)
    return [groups[k] for k in sorted(groups, key=lambda k: k[0])]  # type: ignore[arg-type, return-value]


class Emitter:
    """Writes the Python text of one segment and compiles it."""

    def __init__(self, rows: Rows, sites: dict[int, int], symbol: Any):
        self.rows, self.sites, self.symbol = rows, sites, symbol
        self.constants: dict[str, Any] = {}
        self.lines: list[str] = []
        self.views: set[str] = set()

    def compile(self, groups: Sequence[Group], name: str) -> Any:
        for group in groups:
            self._emit(group)
        head = [f"    {v} = V.{v}" for v in sorted(self.views)]
        source = "\n".join(["def run(V, c, g):", *head, *(f"    {line}" for line in self.lines), "    return None"])
        modules = {"np": np, "atomics": atomics, "load_store": load_store, "products": products, "Strength": Strength}
        namespace: dict[str, Any] = {**modules, **vars(functions), **vars(warp), **vars(mma), **self.constants}
        exec(compile(source, f"<{name}>", "exec"), namespace)
        return namespace["run"]

    def _emit(self, group: Group) -> None:
        first = group[0]
        places = [self._source([t.sources[i] for t in group]) for i in range(len(first.sources))]
        where = "None"
        if first.instruction.guard:
            self.views.add("P")
            where = f"{'~' if first.instruction.guard_negated else ''}P[{self.rows.of(first.instruction.guard)}]"
        slots = {"where": where}
        if "{site}" in first.code:
            slots["site"] = self._constant(tuple(self.sites[id(t.instruction)] for t in group))
        if "{offset}" in first.code:
            slots["offset"] = self._array([t.offsets or 0 for t in group], np.int64)
        targets = [[t.destinations[i] for t in group] for i in range(len(first.destinations))]
        if first.statement:
            self.lines.append(first.code.format(*places, **slots))
        elif first.ufunc and where == "None" and (place := self._place(targets[0])):
            self.lines.append(f"{first.code}({', '.join(places)}, out={place})")
        else:
            value = f"{first.code}({', '.join(places)})" if first.ufunc else first.code.format(*places, **slots)
            self._assign(targets, value, where)

    def _assign(self, targets: list[list[Typed]], value: str, where: str) -> None:
        names = [f"t{i}" for i in range(len(targets))]
        if len(targets) > 1:
            self.lines.append(f"{', '.join(names)} = {value}")
        else:
            names = [value]
        for target, name in zip(targets, names, strict=True):
            place = self._place(target) or self._scattered(target)
            self.lines.append(f"{place} = {name}" if where == "None" else f"np.copyto({place}, {name}, where={where})")

    def _source(self, typed: list[Typed]) -> str:
        first = typed[0].operand
        if isinstance(first, Imm):
            return self._immediates([t.operand.bits for t in typed], [t.operand.width for t in typed], typed[0].type)  # type: ignore[union-attr]
        if isinstance(first, Sym):
            return self.symbol(first.name, typed[0].type)
        negated = isinstance(first, Not)
        registers = [t.operand.reg if isinstance(t.operand, Not) else t.operand for t in typed]
        view = VIEW[typed[0].type]
        self.views.add(view)
        rows = [self.rows.of(r) for r in registers]  # type: ignore[arg-type]
        text = self._slice(view, rows) or f"{view}[{self._constant(np.array(rows, np.intp))}]"
        return f"~{text}" if negated else text

    def _place(self, typed: list[Typed]) -> str | None:
        """The destination as a view, None if its rows are no slice."""
        rows = [self.rows.of(t.operand) for t in typed]  # type: ignore[arg-type]
        if len(rows) > 1 and len(set(rows)) == 1:
            return None
        view = VIEW[typed[0].type]
        self.views.add(view)
        return self._slice(view, rows)

    def _scattered(self, typed: list[Typed]) -> str:
        rows = [self.rows.of(t.operand) for t in typed]  # type: ignore[arg-type]
        return f"{VIEW[typed[0].type]}[{self._constant(np.array(rows, np.intp))}]"

    @staticmethod
    def _slice(view: str, rows: list[int]) -> str | None:
        if len(set(rows)) == 1:
            return f"{view}[{rows[0]}]"
        step = rows[1] - rows[0]
        if step > 0 and all(b - a == step for a, b in pairwise(rows)):
            return f"{view}[{rows[0]}:{rows[-1] + 1}{f':{step}' if step > 1 else ''}]"
        return None

    def _immediates(self, values: list[int], widths: list[int], kind: str) -> str:
        if kind == "pred":
            return self._array([bool(v) for v in values], np.bool_)
        if kind in ("f32", "f64", "f16"):
            return self._array(
                [_float(v, w) for v, w in zip(values, widths, strict=True)], np.dtype(f"f{int(kind[1:]) // 8}")
            )
        bits = KIND_WIDTH[{"P": "p", "H": "h", "S": "h", "R": "r", "I": "r", "D": "d", "L": "d"}[VIEW[kind]]]
        unsigned = np.array([v & ((1 << bits) - 1) for v in values], f"u{bits // 8}")
        return self._array(unsigned.view(f"i{bits // 8}") if kind[0] == "s" else unsigned, None)

    def _array(self, values: Any, dtype: Any) -> str:
        """A constant: of shape [1] if all are equal, else [members, 1]."""
        array = np.array(values, dtype)
        same = all(v.tobytes() == array[0].tobytes() for v in array)
        return self._constant(array[:1] if same else array[:, None])

    def _constant(self, value: Any) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = value
        return name


def _float(bits: int, width: int) -> float:
    if width == 32:
        return float(np.array([bits], np.uint32).view(np.float32)[0])
    if width == 64:
        return float(np.array([bits], np.uint64).view(np.float64)[0])
    return float(bits)
