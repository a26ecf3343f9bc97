"""A traced score_mod or mask_mod: a small graph of scalar operations, and the text that is its key.

dtype   what it is
f32     a float, in the compute dtype: fp32 in the kernels, fp64 on the reference with fp64 inputs
i32, i64, bool

op                                       args, all of them numbers of nodes unless it says otherwise
score b h q kv                           none: the score, its batch element, query head, row and column
grad                                     none: the gradient that comes to the score (see `derivative`)
const                                    a number; an infinite one or NaN as a string
scalar                                   which of the run-time scalars
load                                     which of the captured tensors; then its indices, one a dimension; a
                                         negative index counts from the end
scatter                                  the same, then a value: adds it to the tensor's gradient there
load_inside scatter_inside               the same, where every index is known to lie in the tensor (see `ranges`)
load_tabled scatter_tabled               the same, of a table that is made for kernels (see `distance`): inside at rows
                                         and keys past the end too, as many as fill a tile; a number in backwards
convert                                  x, to the node's dtype; a float to an integer truncates
round_bf16 round_fp16                    x, rounded to such a float and back
add sub mul floor_divide remainder       x, y of the node's dtype; // and % as Python has them
trunc_divide fmod pow                    x, y
div                                      x, y, floats
minimum maximum                          x, y; NaN if either is
eq ne lt le                              x, y of one dtype; gives bool. x > y is written y < x
and or xor not                           of bool
bit_and bit_or bit_xor bit_not           of i32 and i64
shift_left shift_right                   x, y of i32 and i64
where                                    a bool, x, y
neg abs sign                             x
exp exp2 expm1 log log2 log1p            x, a float
sqrt rsqrt tanh sigmoid erf sin cos      x, a float
floor ceil round trunc                   x, a float; round halves go to the even one
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

__all__ = [
    "COLUMN",
    "ELEMENT",
    "INPUTS",
    "ITEM",
    "ROW",
    "UNGUARDED",
    "Graph",
    "Node",
    "Written",
    "canonical",
    "operands",
]

# Operations on captured tensors that need no guard, and what they are with one.
UNGUARDED = {f"{action}_{how}": action for action in ("load", "scatter") for how in ("inside", "tabled")}
INPUTS = ("score", "b", "h", "q", "kv")
# What a value depends on, from what changes most seldom to what changes with every element of a tile.
ITEM, ROW, COLUMN, ELEMENT = range(4)
_OWN_STAGE = {"score": ELEMENT, "q": ROW, "kv": COLUMN}

Argument = int | float | str
Written = tuple[str, tuple[Argument, ...], str]  # op, args and dtype of a node


def operands(op: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Those arguments of an operation that are numbers of nodes; they are the last ones."""
    if op in ("const", "scalar"):
        return ()
    return args[1:] if UNGUARDED.get(op, op) in ("load", "scatter") else args


@dataclass(frozen=True)
class Node:
    """One operation: see the table of this module."""

    op: str
    args: tuple[Argument, ...]
    dtype: str

    @property
    def action(self) -> str:
        """The operation, whether or not it needs a guard."""
        return UNGUARDED.get(self.op, self.op)

    @property
    def operands(self) -> tuple[int, ...]:
        """The numbers of the nodes that it reads."""
        return operands(self.op, self.args)


@dataclass(frozen=True)
class Graph:
    """A function of scalars.

    nodes: each reads only nodes before it. outputs: numbers of nodes. tensors: dtype (f32, f64, bf16, fp16, i8, u8,
    i16, i32, i64, bool) and rank of each captured tensor. scalars: dtype of each run-time scalar.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]
    tensors: tuple[tuple[str, int], ...]
    scalars: tuple[str, ...]

    @functools.cached_property
    def text(self) -> str:
        """What machine code depends on of the function, as JSON: no lengths, no values, nothing of who a tensor is."""
        return canonical([(n.op, n.args, n.dtype) for n in self.nodes], self.outputs, self.tensors, self.scalars)

    @classmethod
    def parse(cls, text: str) -> Graph:
        """The graph that has this text; one object for a text."""
        return _parsed(text)

    def reads(self, op: str) -> bool:
        """Whether any node is such an operation, such as the input "b"."""
        return any(node.op == op for node in self.nodes)

    def stages(self) -> list[int]:
        """ITEM, ROW, COLUMN or ELEMENT of each node: how often it must be computed."""
        found: list[int] = []
        for node in self.nodes:
            own = ELEMENT if node.action == "scatter" else _OWN_STAGE.get(node.op, ITEM)
            below = {found[i] for i in node.operands} | {own}
            found.append(ELEMENT if ELEMENT in below or {ROW, COLUMN} <= below else max(below))
        return found

    def inputs(self) -> list[frozenset[str]]:
        """Which of INPUTS each node depends on."""
        found: list[frozenset[str]] = []
        for node in self.nodes:
            own = frozenset({node.op} & set(INPUTS))
            found.append(own.union(*(found[i] for i in node.operands)))
        return found

    def only(self, outputs: tuple[int, ...]) -> Graph:
        """The graph of some nodes, in which they are the outputs. Tensors and scalars keep their numbers."""
        wanted = set(outputs)
        for i in range(len(self.nodes) - 1, -1, -1):
            if i in wanted:
                wanted.update(self.nodes[i].operands)
        place = {number: i for i, number in enumerate(sorted(wanted))}
        nodes = []
        for number in place:
            node = self.nodes[number]
            own = node.args[: len(node.args) - len(node.operands)]
            nodes.append(Node(node.op, (*own, *(place[i] for i in node.operands)), node.dtype))
        return Graph(tuple(nodes), tuple(place[i] for i in outputs), self.tensors, self.scalars)

    def uses(self) -> list[int]:
        """How often each node is read, by nodes or as an output."""
        count = [0] * len(self.nodes)
        for node in self.nodes:
            for i in node.operands:
                count[i] += 1
        for i in self.outputs:
            count[i] += 1
        return count


def canonical(
    nodes: list[Written],
    outputs: tuple[int, ...],
    tensors: list[tuple[str, int]] | tuple[tuple[str, int], ...],
    scalars: list[str] | tuple[str, ...],
) -> str:
    """The text of a graph, made of plain strings: torch.compile reads this function too."""
    lines = [f'["{op}",[{",".join([_argument(x) for x in args])}],"{dtype}"]' for op, args, dtype in nodes]
    places = ",".join([f"{i}" for i in outputs])
    captured = ",".join([f'["{dtype}",{rank}]' for dtype, rank in tensors])
    numbers = ",".join([f'"{dtype}"' for dtype in scalars])
    return f"[[{','.join(lines)}],[{places}],[{captured}],[{numbers}]]"


def _argument(x: Argument) -> str:
    return f'"{x}"' if isinstance(x, str) else f"{x!r}"


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> Graph:
    nodes, outputs, tensors, scalars = json.loads(text)
    return Graph(
        tuple(Node(op, tuple(args), dtype) for op, args, dtype in nodes),
        tuple(outputs),
        tuple((dtype, rank) for dtype, rank in tensors),
        tuple(scalars),
    )
