"""A kernel as a graph of nodes: compiled segments, branches, synchronising operations; made once a PTX text."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import Place
from ..state.lanes import FileRows
from ..state.matrices import MmaTile
from . import access, arithmetic, convert, mma, system, warp, wgmma
from .budget import registers_at_entry
from .constants import constant_registers, moves_constant
from .control_flow import find_joins, find_spins
from .extents import unit_of
from .layout import Layout
from .node import BRANCH, EXIT, SEGMENT, Node
from .operands import node_of
from .ptx import MALFORMED, Instruction, Kernel, Reg, Sym, parse
from .segment import Emitter, stack
from .template import Reader, Template, registers_read, registers_written

_PREFETCHES = ("global", "local", "L1", "L2", "L2::evict_last", "L2::evict_normal", "tensormap", "param", "const")


class Program:
    """Everything that depends only on the PTX: parsed, cut, stacked; segments are compiled when first run."""

    def __init__(self, ptx: str, entry: str):
        self.kernel: Kernel = parse(ptx, entry)
        self.parameters = {name: (p.offset, p.size) for name, p in self.kernel.params.items()}
        self.layout = Layout(self.kernel)
        self.rows, self.sites = self.layout.rows, self.layout.sites
        self.registers = self.rows.size
        self.local_bytes, self.dynamic_start = self.layout.local_bytes, self.layout.dynamic_start
        self.units = tuple(unit_of(self.kernel.instructions, space) for space in ("global", "shared"))
        self.locks: dict[Reg, int] = {}  # wgmma registers: their bit
        self.tiles: dict[int, MmaTile] = {}
        self.nodes: list[Node] = []
        self._build()
        self.registers_at_entry = registers_at_entry(self.kernel)
        find_joins(self.nodes)
        find_spins(self.nodes, self.rows)
        self._place_registers()

    # ------------------------------------------------------------------ nodes

    def _build(self) -> None:
        instructions = self.kernel.instructions
        leaders = set(self.kernel.labels.values())
        starts: dict[int, int] = {}
        run: list[Template] = []
        pending: set[Reg] = set()  # registers that wgmmas of the open segment own

        def flush() -> None:
            if run:
                self.nodes.append(self._segment(list(run)))
                run.clear()
            pending.clear()

        for index, instruction in enumerate(instructions):
            if index in leaders:
                flush()
            if not run:
                starts[index] = len(self.nodes)
            reader = Reader(self.kernel.name, instruction)
            if instruction.name in ("bra", "ret", "exit", "trap"):
                flush()
                starts[index] = len(self.nodes)
                self.nodes.append(self._made(self._control, reader))
                continue
            operation = self._made(functools.partial(system.build, self.layout), reader)
            if operation is not None:
                flush()
                starts[index] = len(self.nodes)
                self._system(instruction, operation)
                continue
            template = self._made(self._template, reader)
            if template is None:
                continue
            touched = {*registers_read(template), *registers_written(template)}
            polls = access.is_polled(reader)
            own = set() if template.multiply else touched & pending
            if own or polls:
                flush()
                starts[index] = len(self.nodes)
            run.append(template)
            if template.multiply:
                pending |= {*template.multiply.accumulator, *template.multiply.fragment}
            publishes = access.is_published(reader)
            if polls or publishes:
                flush()
                self.nodes[-1].polls, self.nodes[-1].publishes = polls, publishes
        flush()
        end = Instruction(instructions[-1].line if instructions else 0, "", "ret", (), ())
        starts[len(instructions)] = len(self.nodes)
        self.nodes.append(Node(EXIT, end))
        self._link(starts, leaders)

    @staticmethod
    def _made(make: Callable[[Reader], Any], reader: Reader) -> Any:
        """What a handler makes of an instruction; one with operands of other numbers or kinds is refused."""
        try:
            return make(reader)
        except MALFORMED as error:
            raise reader.fail(f"these operands ({error!r})") from error

    def _segment(self, templates: list[Template]) -> Node:
        node = Node(SEGMENT, templates[0].instruction, groups=stack(templates), weight=len(templates))
        node.warpgroup = any(t.multiply for t in templates)
        node.detail = templates
        return node

    def _control(self, reader: Reader) -> Node:
        instruction = reader.instruction
        if instruction.name == "trap":
            return node_of(self.layout, reader, system.trap)
        if instruction.name != "bra":
            reader.done("uni")
            node = Node(EXIT, instruction)
            if instruction.guard is not None:
                node = self._guarded(instruction)
                self.nodes.append(node)
                node.next, node.target = len(self.nodes), len(self.nodes) + 1
                return Node(EXIT, instruction)
            return node
        reader.done("uni")
        label = instruction.operands[0]
        if not isinstance(label, Sym) or label.name not in self.kernel.labels:
            raise reader.fail(f"label {label}")
        node = Node(BRANCH, instruction, detail=self.kernel.labels[label.name], negated=instruction.guard_negated)
        if instruction.guard is not None:
            node.row = self.rows.of(instruction.guard)
        return node

    def _guarded(self, instruction: Instruction) -> Node:
        """A branch round the next node for lanes whose guard is off."""
        assert instruction.guard is not None
        return Node(BRANCH, instruction, row=self.rows.of(instruction.guard), negated=not instruction.guard_negated)

    def _system(self, instruction: Instruction, node: Node) -> None:
        if instruction.guard is not None:
            branch = self._guarded(instruction)
            self.nodes.append(branch)
            branch.next, branch.target = len(self.nodes), len(self.nodes) + 1
        self.nodes.append(node)

    def _template(self, reader: Reader) -> Template | None:
        if reader.instruction.name in ("prefetch", "prefetchu"):
            reader.done(*_PREFETCHES)
            reader.count(1)
            return None
        for family in (wgmma, mma, arithmetic, convert, access, warp):
            template = family.build(reader)
            if template is not None:
                self._check(reader, template)
                return template
        raise reader.fail("an unknown instruction")

    def _check(self, reader: Reader, template: Template) -> None:
        """Raises unless it writes to registers, and reads registers and names that there are."""
        for typed in template.destinations:
            if not isinstance(typed.operand, Reg):  # handlers leave out the sinks that they allow
                raise reader.fail(f"destination {typed.operand}")
        for typed in template.sources:
            if isinstance(typed.operand, Sym):
                self.layout.symbol(typed.operand.name, typed.type)

    def _link(self, starts: dict[int, int], leaders: set[int]) -> None:
        last = len(self.nodes) - 1
        following = last
        for index in range(len(self.kernel.instructions), -1, -1):  # labels before dropped instructions fall through
            following = starts.get(index, following)
            starts[index] = following
        for position, node in enumerate(self.nodes):
            if node.next < 0 and position < last:
                node.next = position + 1
            if node.kind == BRANCH and node.target < 0:
                node.target = starts[node.detail]

    # ------------------------------------------------------------------ registers and code

    def _place_registers(self) -> None:
        segments = [n for n in self.nodes if n.kind == SEGMENT]
        constants = constant_registers([t for n in segments for t in n.detail])
        multiplies = {self.sites[id(t.instruction)]: t.multiply for n in segments for t in n.detail if t.multiply}
        for multiply in multiplies.values():
            self.rows.place(multiply.accumulator)
        for multiply in multiplies.values():
            self.rows.place(multiply.fragment)
            for register in (*multiply.accumulator, *multiply.fragment):
                self.locks.setdefault(register, 1 << len(self.locks))
        for node in sorted(segments, key=lambda n: -n.weight):
            for group in node.groups:
                self.rows.arrange(group)
        for node in segments:
            for t in node.detail:
                for register in registers_read(t) if not t.multiply else ():
                    node.touched |= self.locks.get(register, 0)
                for register in registers_written(t):
                    bit = self.locks.get(register, 0)
                    node.touched |= bit
                    node.written |= bit
                    node.constant = node.constant | bit if moves_constant(t, constants) else node.constant & ~bit
        for node in segments:
            for t in node.detail:
                for register in (*registers_read(t), *registers_written(t)):
                    self.rows.of(register)
        chains: dict[tuple[object, ...], int] = {}
        for site, multiply in multiplies.items():
            chain = chains.setdefault(multiply.kind, len(chains))
            self.tiles[site] = multiply.tile(self.rows.of, self.locks, chain)

    def compile(self, node: Node) -> Any:
        """The function of a segment, made on first use."""
        emitter = Emitter(self.rows, self.sites, self.layout.symbol)
        node.function = emitter.compile(node.groups, f"{self.kernel.name[:40]}:{node.instruction.line}")
        return node.function

    def file_rows(self, node: Node) -> tuple[FileRows, FileRows]:
        """The rows that a segment touches, and of these the ones that it writes."""
        if node.file_rows is None:
            written = {r for t in node.detail for r in registers_written(t)}
            touched = written.union(r for t in node.detail for r in registers_read(t))
            node.file_rows = self._by_file(touched), self._by_file(written)
        return node.file_rows

    def _by_file(self, registers: Iterable[Reg]) -> FileRows:
        rows: dict[str, list[int]] = {kind: [] for kind in self.registers}
        for register in registers:
            rows[register.kind].append(self.rows.of(register))
        return {kind: np.array(sorted(some), np.intp) for kind, some in rows.items()}

    def place(self, site: int, cta: tuple[int, int, int] | None = None, warps: tuple[int, ...] = ()) -> Place:
        instruction = self.kernel.instructions[site]
        return Place(self.kernel.name, instruction.line, instruction.text, cta, warps)


@lru_cache(maxsize=64)
def program_of(ptx: str, entry: str) -> Program:
    return Program(ptx, entry)
