"""Hopper machine code as blocks and loops: what a warp issues in one pass of a loop, found without running it."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import Unavailable
from ..packages import folders_of

__all__ = ["BasicBlock", "Instruction", "NaturalLoop", "disassemble", "disassembler", "loops", "parse"]


@dataclass(frozen=True)
class Instruction:
    """One instruction: `opcode` with its modifiers, `guard` its predicate or "", `target` the label it branches to."""

    opcode: str
    guard: str
    operands: str
    target: str | None

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.split(".", 1)[0]

    @property
    def pipe(self) -> str:
        """uniform, hgmma, mufu, cvt, fp, int, memory or control; what is uniform takes no issue slot of the others."""
        name = self.name
        if name == "HGMMA":
            return "hgmma"
        if name.startswith("U") or name == "R2UR":
            return "uniform"
        if name == "MUFU":
            return "mufu"
        if name in ("F2F", "F2FP", "F2I", "I2F", "I2FP", "FRND"):
            return "cvt"
        if name in _CONTROL:
            return "control"
        if name in _MEMORY or name.startswith(("LD", "ST", "RED", "ATOM")):
            return "memory"
        if name[0] in "FH" or name == "MUFU":
            return "fp"
        return "int"


_CONTROL = {"BAR", "BMOV", "BRA", "BREAK", "BRX", "BSSY", "BSYNC", "CALL", "DEPBAR", "ELECT", "ERRBAR", "EXIT", "KILL"}
_CONTROL |= {"NANOSLEEP", "NOP", "RET", "VOTE", "WARPGROUP", "WARPSYNC", "YIELD", "ENDCOLLECTIVE"}
_MEMORY = {"CCTL", "CS2R", "FENCE", "MEMBAR", "S2R", "S2UR", "SHFL", "SYNCS"}


@dataclass(frozen=True)
class BasicBlock:
    """A basic block, entered at the front and left at the end only; `next` holds the numbers of those that follow."""

    instructions: tuple[Instruction, ...]
    next: tuple[int, ...]


@dataclass(frozen=True)
class NaturalLoop:
    """A natural loop: all its blocks in program order, and those that every pass runs through."""

    blocks: tuple[BasicBlock, ...]
    common: tuple[BasicBlock, ...]

    def instructions(self, common: bool = True) -> Iterator[Instruction]:
        """Of the blocks that every pass runs, or of the others."""
        chosen = set(map(id, self.common))
        return (i for b in self.blocks if (id(b) in chosen) == common for i in b.instructions)


def disassembler() -> str:
    """nvdisasm, from NVIDIA's wheel or the CUDA toolkit. Raises Unavailable if there is none."""
    found = sorted(path for root in folders_of("nvidia") for path in root.glob("cu*/bin/nvdisasm"))
    program = str(found[-1]) if found else shutil.which("nvdisasm")
    if program is None:
        raise Unavailable(
            "reading machine code needs nvdisasm, which the extra `inspect` of cute-attn brings: "
            "pip install nvidia-cuda-nvdisasm"
        )
    return program


def disassemble(cubin: bytes) -> str:
    """The text of `nvdisasm -c`. Raises Unavailable without a disassembler, or if it refuses the code."""
    program = disassembler()
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        result = subprocess.run([program, "-c", file.name], capture_output=True, text=True)
    if result.returncode:
        raise Unavailable(f"{program} refused the machine code: {result.stderr.strip()}")
    return result.stdout


_LINE = re.compile(r"/\*[0-9a-f]+\*/\s+(@\S+\s+)?([A-Z][A-Za-z0-9_.]*)\s*(.*?)\s*;")
_LABEL = re.compile(r"^(\.L\w+):")
_TARGET = re.compile(r"`\((\.L\w+)\)")


def parse(text: str) -> list[list[BasicBlock]]:
    """The basic blocks of each function of disassembled code, in program order."""
    parts = re.split(r"^\.text\.\S+:$", text, flags=re.MULTILINE)[1:]
    return [_blocks(part) for part in parts or [text]]


def _blocks(text: str) -> list[BasicBlock]:
    lines: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if match := _LABEL.match(line):
            labels[match[1]] = len(lines)
        elif match := _LINE.search(line):
            target = _TARGET.search(match[3])
            lines.append(Instruction(match[2], (match[1] or "").strip(), match[3], target[1] if target else None))
    jumps = {i for i, line in enumerate(lines) if _leaves(line)}
    targets = {labels[t] for i in jumps if (t := lines[i].target) in labels}
    starts = sorted({0, *targets, *(i + 1 for i in jumps)} - {len(lines)})
    number = {start: n for n, start in enumerate(starts)}
    blocks = []
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        last = lines[end - 1]
        following = []
        if end - 1 in jumps and last.target in labels:
            following.append(number[labels[last.target]])
        if end in number and not (end - 1 in jumps and _always(last)):
            following.append(number[end])
        blocks.append(BasicBlock(tuple(lines[start:end]), tuple(following)))
    return blocks


def _leaves(line: Instruction) -> bool:
    return line.name in ("BRA", "EXIT", "RET", "BRX", "JMP")


def _always(line: Instruction) -> bool:
    return (
        not line.guard
        and ".DIV" not in line.opcode
        and not (line.name == "BRA" and re.match(r"U?!?U?P\d", line.operands))
    )


def _dominators(blocks: list[BasicBlock]) -> list[set[int]]:
    """For each block, the blocks that every way to it from the entry runs through, itself included."""
    before: list[list[int]] = [[] for _ in blocks]
    for n, block in enumerate(blocks):
        for m in block.next:
            before[m].append(n)
    everything = set(range(len(blocks)))
    dominators = [{0} if n == 0 else everything for n in range(len(blocks))]
    changed = True
    while changed:
        changed = False
        for n in range(1, len(blocks)):
            ways = [dominators[m] for m in before[n]]
            new = (set.intersection(*ways) if ways else set()) | {n}
            if new != dominators[n]:
                dominators[n], changed = new, True
    return dominators


def loops(blocks: list[BasicBlock]) -> list[NaturalLoop]:
    """Innermost natural loops that hold tensor-core instructions, in program order.

    A loop round a barrier's retry holds none and is therefore part of the pass, counted once.
    """
    dominators = _dominators(blocks)
    bodies: dict[int, set[int]] = {}
    latches: dict[int, list[int]] = {}
    for n, block in enumerate(blocks):
        for head in block.next:
            body = _body(blocks, head, n) if head in dominators[n] else set()
            if any(i.name == "HGMMA" for m in body for i in blocks[m].instructions):
                bodies.setdefault(head, set()).update(body)
                latches.setdefault(head, []).append(n)
    found = []
    for head, body in sorted(bodies.items()):
        if any(other != head and inner < body for other, inner in bodies.items()):
            continue
        common = set.intersection(*(dominators[n] for n in latches[head])) & body
        found.append(NaturalLoop(tuple(blocks[n] for n in sorted(body)), tuple(blocks[n] for n in sorted(common))))
    return found


def _body(blocks: list[BasicBlock], head: int, latch: int) -> set[int]:
    """Blocks from which `latch` is reached without passing `head`."""
    before: dict[int, list[int]] = {}
    for n, block in enumerate(blocks):
        for m in block.next:
            before.setdefault(m, []).append(n)
    body, todo = {head, latch}, [latch]
    while todo:
        n = todo.pop()
        if n == head:
            continue
        for m in before.get(n, []):
            if m not in body:
                body.add(m)
                todo.append(m)
    return body
