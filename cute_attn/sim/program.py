"""A kernel as a graph of nodes: compiled segments, branches, synchronising operations; made once a PTX text."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from . import access, arithmetic, convert, system, warp, wgmma
from .addresses import PARAM_BASE, SHARED_START
from .errors import Place, UnsupportedInstruction
from .node import BRANCH, EXIT, SEGMENT, SYSTEM, Node
from .ptx import MALFORMED, Instruction, Kernel, Reg, Sym, parse
from .segment import Emitter, Rows, registers_read, registers_written, stack
from .template import Reader, Template

NEAR = 24  # nodes among which a loop that polls must close


class Program:
    """Everything that depends only on the PTX: parsed, cut, stacked; segments are compiled when first run."""

    def __init__(self, ptx: str, entry: str):
        self.kernel: Kernel = parse(ptx, entry)
        self.rows = Rows()
        self.sites = {id(i): n for n, i in enumerate(self.kernel.instructions)}
        self.locks: dict[Reg, int] = {}  # wgmma registers: their bit
        self.tiles: dict[int, wgmma.Tile] = {}  # by site
        self.shared_offset: dict[str, int] = {}
        self._lay_out_shared()
        self.nodes: list[Node] = []
        self._build()
        self._find_joins()
        self._find_spins()
        self._place_registers()

    # ------------------------------------------------------------------ layout of memory

    def _lay_out_shared(self) -> None:
        offset, dynamic_align = SHARED_START, 16
        for variable in self.kernel.shared.values():
            if variable.size:
                offset = -(-offset // variable.align) * variable.align
                self.shared_offset[variable.name] = offset
                offset += variable.size
            else:
                dynamic_align = max(dynamic_align, variable.align)
        self.dynamic_start = -(-offset // dynamic_align) * dynamic_align
        for variable in self.kernel.shared.values():
            if not variable.size:
                self.shared_offset[variable.name] = self.dynamic_start
        offset = 0
        self.local_offset: dict[str, int] = {}
        for variable in self.kernel.local.values():
            offset = -(-offset // variable.align) * variable.align
            self.local_offset[variable.name] = offset
            offset += variable.size
        self.local_bytes = offset

    def symbol(self, name: str, kind: str) -> str:
        """The expression of a name that is no register."""
        special = arithmetic.special_register(name)
        wide = kind[1:] == "64"
        if special:
            return f"{special}.astype(np.uint64)" if wide else special
        if name in self.shared_offset:
            return f"c.shared_address({self.shared_offset[name]}, {wide})"
        if name in self.local_offset:
            return f"c.local_address({self.local_offset[name]}, {wide})"
        if name in self.kernel.params:
            return f"np.array([{PARAM_BASE + self.kernel.params[name].offset}], np.uint64)"
        raise UnsupportedInstruction(f"the name {name} is not known", Place(self.kernel.name))

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
            operation = self._made(functools.partial(system.build, self), reader)
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
            own = set() if template.accumulator else touched & pending
            if own or polls:
                flush()
                starts[index] = len(self.nodes)
            run.append(template)
            pending |= {*template.accumulator, *template.fragment}
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
        node.warpgroup = any(t.accumulator for t in templates)
        node.detail = templates
        return node

    def _control(self, reader: Reader) -> Node:
        instruction = reader.instruction
        if instruction.name == "trap":
            return Node(SYSTEM, instruction, operation=system.trap)
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
        if (
            reader.instruction.name in ("prefetch", "prefetchu", "applypriority", "discard")
            and "tensormap" in reader.modifiers
        ):
            return None
        if reader.instruction.name in ("prefetch", "prefetchu"):
            return None
        matrix = wgmma.build(self, reader)
        if matrix is not None:
            return matrix
        for family in (arithmetic, convert, access, warp):
            template = family.build(reader)
            if template is not None:
                return template
        raise reader.fail("an unknown instruction")

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

    # ------------------------------------------------------------------ control flow

    def successors(self, index: int) -> list[int]:
        node = self.nodes[index]
        if node.kind == EXIT:
            return []
        if node.kind == BRANCH:
            return [node.target] if node.row < 0 else [node.next, node.target]
        return [node.next]

    def _find_joins(self) -> None:
        """Immediate post-dominators (Cooper, Harvey, Kennedy), with a virtual exit behind every `ret`."""
        count = len(self.nodes)
        predecessors: list[list[int]] = [[] for _ in range(count + 1)]
        for index in range(count):
            for successor in self.successors(index) or [count]:
                predecessors[successor].append(index)
        order, seen, work = [], {count}, [(count, iter(predecessors[count]))]
        while work:
            index, rest = work[-1]
            step = next((p for p in rest if p not in seen), None)
            if step is None:
                order.append(index)
                work.pop()
            else:
                seen.add(step)
                work.append((step, iter(predecessors[step])))
        number = {index: n for n, index in enumerate(order)}
        immediate = {count: count}
        changed = True
        while changed:
            changed = False
            for index in reversed(order[:-1]):
                known = [s for s in self.successors(index) or [count] if s in immediate]
                best = known[0]
                for other in known[1:]:
                    while best != other:
                        while number[best] < number[other]:
                            best = immediate[best]
                        while number[other] < number[best]:
                            other = immediate[other]
                if immediate.get(index) != best:
                    immediate[index] = best
                    changed = True
        for index, node in enumerate(self.nodes):
            if node.kind == BRANCH and node.row >= 0:
                join = immediate.get(index, count)
                node.join = join if join < count else None

    def _find_spins(self) -> None:
        """Which tests, when they fail, only lead back to themselves: those may as well wait."""
        for index, node in enumerate(self.nodes):
            if node.polls:
                node.spins = self._may_return(index)
            elif node.kind == SYSTEM and node.operation is system.try_wait:
                returns = self._fails_back(index, node.detail[1][0])
                node.spins = self._may_return(index) if returns is None else returns

    def _fails_back(self, start: int, row: int) -> bool | None:
        """Whether a test that left false in a predicate leads back to itself in any case; None if no branch is on it.

        The way that it takes when it succeeds is not looked at, however long it is and wherever it leads.
        """
        seen: set[int] = set()
        work, tested = [self.nodes[start].next], False
        while work:
            index = work.pop()
            if index == start or index in seen:
                continue
            seen.add(index)
            node = self.nodes[index]
            if node.kind == BRANCH and node.row == row:
                work.append(node.target if node.negated else node.next)
                tested = True
            elif self._is_idle(node) and not (node.kind == SEGMENT and self._writes(node, row)):
                work.extend(self.successors(index))
            elif node.operation is not system.trap:
                return False if tested else None
        return True if tested else None

    def _writes(self, node: Node, row: int) -> bool:
        written = (r for t in node.detail for r in registers_written(t))
        return any(r.kind == "p" and self.rows.row.get(r) == row for r in written)

    @staticmethod
    def _is_idle(node: Node) -> bool:
        """Whether a node changes nothing but registers."""
        if node.kind == SEGMENT:
            return not any(t.statement for t in node.detail)
        return node.kind == BRANCH or (node.kind == SYSTEM and node.operation in (system.try_wait, system.nothing))

    def _may_return(self, start: int) -> bool:
        """Whether there is a short way back that changes nothing but registers; nearest nodes first."""
        seen: set[int] = set()
        work = deque([self.nodes[start].next])
        while work and len(seen) < NEAR:
            index = work.popleft()
            if index == start:
                return True
            if index not in seen:
                seen.add(index)
                if self._is_idle(self.nodes[index]):
                    work.extend(self.successors(index))
        return False

    # ------------------------------------------------------------------ registers and code

    def _place_registers(self) -> None:
        for tile in self.tiles.values():
            self.rows.place(tile.accumulator)
        for tile in self.tiles.values():
            self.rows.place(tile.fragment)
            for register in (*tile.accumulator, *tile.fragment):
                self.locks.setdefault(register, 1 << len(self.locks))
        segments = [n for n in self.nodes if n.kind == SEGMENT]
        for node in sorted(segments, key=lambda n: -n.weight):
            for group in node.groups:
                self.rows.arrange(group)
        for node in segments:
            for t in node.detail:
                for register in registers_read(t) if not t.accumulator else ():
                    node.touched |= self.locks.get(register, 0)
                for register in registers_written(t):
                    node.touched |= self.locks.get(register, 0)
                    node.written |= self.locks.get(register, 0)
        for node in segments:
            for t in node.detail:
                for register in (*registers_read(t), *registers_written(t)):
                    self.rows.of(register)
        chains: dict[tuple[object, ...], int] = {}
        for tile in self.tiles.values():
            tile.settle(self.rows, self.locks)
            tile.chain = chains.setdefault(tile.kind, len(chains))

    def compile(self, node: Node) -> Any:
        """The function of a segment, made on first use."""
        emitter = Emitter(self.rows, self.sites, self.symbol)
        node.function = emitter.compile(node.groups, f"{self.kernel.name[:40]}:{node.instruction.line}")
        return node.function

    def place(self, site: int, cta: tuple[int, int, int] | None = None, warps: tuple[int, ...] = ()) -> Place:
        instruction = self.kernel.instructions[site]
        return Place(self.kernel.name, instruction.line, instruction.text, cta, warps)


@lru_cache(maxsize=64)
def program_of(ptx: str, entry: str) -> Program:
    return Program(ptx, entry)
