"""From machine code to what a model can play: each loop with products as steps of a warpgroup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cute_attn.profile import sass

__all__ = ["PIPES", "Code", "Loop", "Step", "read"]

PIPES = ("slots", "fma", "alu", "mufu", "lsu")
# Cycles of a sub-partition that an instruction of a warp takes, from the throughputs of the CUDA C++ programming guide
# for compute capability 9.0 (results a cycle of a multiprocessor: 128, 64, 16, 32).
CYCLES = {"fma": 1, "alu": 2, "mufu": 8, "lsu": 4}
_ALU = ("FMNMX", "FSEL", "FSETP", "FSET", "FCHK", "HMNMX", "HSET")
SHARED_BYTES_A_CYCLE = 128


@dataclass(frozen=True)
class Step:
    """What a warpgroup does next.

    kind: "run": instructions, `work` cycles of each of PIPES that a warp takes on its sub-partition; "products": a
    group of products goes to the tensor cores for `work[0]` cycles; "wait": until at most `work[0]` groups are left;
    "turn", "give": of ping-pong; "meet": all consumer warpgroups; "staged", "send": until the last dQ is on its way, be
    it by a warp that sends it or by additions from registers, and the next for it.
    """

    kind: str
    work: tuple[int, ...] = ()


@dataclass(frozen=True)
class Loop:
    """One pass of a loop. tensor_cycles: of its products, of one warpgroup; shared_cycles: of their operands."""

    steps: tuple[Step, ...]
    tensor_cycles: int
    shared_cycles: int

    def total(self, pipe: str) -> int:
        """Cycles of a pipe that a warp takes in a pass."""
        return sum(step.work[PIPES.index(pipe)] for step in self.steps if step.kind == "run")


@dataclass(frozen=True)
class Code:
    """The loops of a kernel that hold products, in program order."""

    loops: tuple[Loop, ...] = field(default=())

    @property
    def full(self) -> Loop:
        """The leanest: over tiles that need no mask."""
        return min(self.loops, key=lambda loop: loop.total("slots") / loop.tensor_cycles)

    @property
    def partial(self) -> Loop:
        return max(self.loops, key=lambda loop: loop.total("slots") / loop.tensor_cycles)

    def to_json(self) -> list[Any]:
        return [{**asdict(loop), "steps": [[step.kind, *step.work] for step in loop.steps]} for loop in self.loops]

    @classmethod
    def from_json(cls, loops: Iterable[dict[str, Any]]) -> Code:
        """Raises KeyError, TypeError or ValueError for what `to_json` does not write."""
        return cls(
            tuple(
                Loop(
                    tuple(Step(kind, tuple(work)) for kind, *work in loop["steps"]),
                    loop["tensor_cycles"],
                    loop["shared_cycles"],
                )
                for loop in loops
            )
        )


def read(cubin: bytes) -> Code:
    """The loops of machine code. Raises Unavailable without a disassembler, ValueError without such loops."""
    blocks = sass.parse(sass.disassemble(cubin))
    loops = tuple(_loop(loop) for function in blocks for loop in sass.loops(function))
    if not loops:
        raise ValueError("this kernel has no loop with tensor-core products: there is nothing to predict its time by")
    return Code(loops)


def _loop(loop: sass.NaturalLoop) -> Loop:
    lines = list(loop.instructions())
    passes_turns = any(_of_consumers(line) for line in lines if line.opcode.startswith("BAR.ARV"))
    steps = tuple(_merged(_steps(lines, passes_turns)))
    products = [_product(line) for line in lines if line.name == "HGMMA"]
    return Loop(steps, sum(tensor for tensor, _ in products), sum(shared for _, shared in products))


def _steps(lines: Sequence[sass.Instruction], passes_turns: bool) -> Iterator[Step]:
    group = 0
    is_handed_over = any(line.name == "BAR" and not _of_consumers(line) for line in lines)
    additions = [] if is_handed_over else [i for i, line in enumerate(lines) if _adds_dq(line)]
    for i, line in enumerate(lines):
        if line.name == "HGMMA":
            group += max(_product(line))
            if "gsb0" in line.operands:
                yield Step("products", (group,))
                group = 0
        elif line.opcode.startswith("WARPGROUP.DEPBAR"):
            yield Step("wait", (int(line.operands.rsplit("0x", 1)[1], 16),))
        elif line.name == "BAR":
            arrives = line.opcode.startswith("BAR.ARV")
            if _of_consumers(line):
                yield Step("give" if arrives else "turn" if passes_turns else "meet")
            else:
                yield Step("send" if arrives else "staged")
        if i in additions[:1]:
            yield Step("staged")
        if line.pipe != "uniform":
            yield Step("run", _cost(line))
        if i in additions[-1:]:
            yield Step("send")


def _merged(steps: Iterable[Step]) -> Iterator[Step]:
    """Instructions between two events as one step."""
    run = [0] * len(PIPES)
    for step in steps:
        if step.kind == "run":
            run = [a + b for a, b in zip(run, step.work, strict=True)]
            continue
        if any(run):
            yield Step("run", tuple(run))
        run = [0] * len(PIPES)
        yield step
    if any(run):
        yield Step("run", tuple(run))


def _adds_dq(line: sass.Instruction) -> bool:
    """Whether an addition of four fp32 in global memory: those of what flows to captured tensors are of one."""
    return line.opcode.startswith("RED") and "F32x4" in line.opcode


def _of_consumers(line: sass.Instruction) -> bool:
    """Whether a named barrier counts whole warpgroups: that with the warp which sends dQ counts a warp more."""
    return int(line.operands.rsplit("0x", 1)[1], 16) % 128 == 0


def _product(line: sass.Instruction) -> tuple[int, int]:
    """Cycles of the tensor cores, N / 2 for 64xNx16, and of shared memory, which A comes from unless in registers."""
    n = int(re.search(r"64x(\d+)x", line.opcode)[1])  # type: ignore[index]
    a_is_shared = "gdesc" in line.operands.split(",")[1]
    return n // 2, 32 * (n + 64 * a_is_shared) // SHARED_BYTES_A_CYCLE


def _cost(line: sass.Instruction) -> tuple[int, ...]:
    pipe = {"mufu": "mufu", "cvt": "alu", "memory": "lsu", "int": "alu", "fp": "fma"}.get(line.pipe, "")
    if line.name in _ALU:
        pipe = "alu"
    wide = 4 if line.name in ("STSM", "LDSM") or ".128" in line.opcode or _adds_dq(line) else 1
    cycles = CYCLES.get(pipe, 0) * (wide if pipe == "lsu" else 1)
    return (1, *(cycles if name == pipe else 0 for name in PIPES[1:]))
