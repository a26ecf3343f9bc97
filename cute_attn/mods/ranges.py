"""What is known of the integers of a graph from how many batch elements, heads, rows and keys there are.

Which reads of captured tensors lie inside of them wherever a kernel asks: these need no guard. Kernels look at rows and
keys that there are, attended or not, so that the ranges of b, h, q and kv and the numbers of a call bound many an
index. That a read is inside is part of the graph that a kernel is made of, as one bit. And whether an int32 may wrap.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

from .graph import Graph, Node

__all__ = ["INT32", "WRAPPING", "may_wrap", "with_reads_inside"]

Range = tuple[int, int]  # first and last
INT32 = 2**31
WRAPPING = ("add", "sub", "mul", "neg", "abs", "pow", "shift_left", "floor_divide", "trunc_divide")


def with_reads_inside(
    graph: Graph, sizes: tuple[int, int, int, int], shapes: Sequence[Sequence[int]], scalars: Sequence[int | float]
) -> Graph:
    """The graph in which reads, and what flows back to them, are marked that lie inside at every place.

    sizes: how many batch elements, query heads, rows and keys there are. shapes, scalars: of what was captured.
    """
    return _marked(graph, sizes, tuple(map(tuple, shapes)), tuple(scalars))


def may_wrap(graph: Graph, sizes: tuple[int, int, int, int], scalars: Sequence[int | float]) -> bool:
    """Whether some int32 may leave its range, so that it would wrap; sizes, scalars: as of `with_reads_inside`."""
    ranges = _ranges(graph, sizes, tuple(scalars))
    return any(node.dtype == "i32" and node.op in WRAPPING and ranges[i] is None for i, node in enumerate(graph.nodes))


@functools.lru_cache(maxsize=1024)
def _marked(
    graph: Graph, sizes: tuple[int, ...], shapes: tuple[tuple[int, ...], ...], scalars: tuple[int | float, ...]
) -> Graph:
    ranges = _ranges(graph, sizes, scalars)
    nodes = []
    for node in graph.nodes:
        of = [ranges[i] for i in node.operands]
        if node.op in ("load", "scatter"):
            shape = shapes[int(node.args[0])]
            if all(r is not None and r[0] >= 0 and r[1] < size for r, size in zip(of, shape, strict=False)):
                node = Node(f"{node.op}_inside", node.args, node.dtype)
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


@functools.lru_cache(maxsize=1024)
def _ranges(graph: Graph, sizes: tuple[int, ...], scalars: tuple[int | float, ...]) -> list[Range | None]:
    inputs = {name: (0, size - 1) for name, size in zip(("b", "h", "q", "kv"), sizes, strict=True)}
    ranges: list[Range | None] = []
    for node in graph.nodes:
        of = [ranges[i] for i in node.operands]
        ranges.append(inputs[node.op] if node.op in inputs else _range(node, of, scalars))
    return ranges


def _range(node: Node, of: list[Range | None], scalars: tuple[int | float, ...]) -> Range | None:
    """What an integer may be; None for anything, and for what is none."""
    if node.dtype not in ("i32", "i64"):
        return None
    found: Range | None = None
    if node.op in ("const", "scalar"):
        x = int(node.args[0]) if node.op == "const" else int(scalars[int(node.args[0])])
        found = x, x
    elif node.op == "where":
        found = _RANGES["union"](*of[1:]) if None not in of[1:] else None
    elif node.op in _RANGES and None not in of:
        found = _RANGES[node.op](*of)
    return found if found is not None and -INT32 <= found[0] <= found[1] < INT32 else None


def _products(x: Range, y: Range) -> Range:
    every = [a * b for a in x for b in y]
    return min(every), max(every)


def _quotients(x: Range, y: Range) -> Range | None:
    every = [a // b for a in x for b in y if b > 0]
    return (min(every), max(every)) if y[0] > 0 else None


_RANGES: dict[str, Callable[..., Range | None]] = {
    "add": lambda x, y: (x[0] + y[0], x[1] + y[1]),
    "sub": lambda x, y: (x[0] - y[1], x[1] - y[0]),
    "mul": _products,
    "neg": lambda x: (-x[1], -x[0]),
    "abs": lambda x: (max(x[0], -x[1], 0), max(-x[0], x[1])),
    "minimum": lambda x, y: (min(x[0], y[0]), min(x[1], y[1])),
    "maximum": lambda x, y: (max(x[0], y[0]), max(x[1], y[1])),
    "floor_divide": _quotients,
    "remainder": lambda x, y: (0, y[1] - 1) if y[0] > 0 else None,
    "convert": lambda x: x,
    "union": lambda x, y: (min(x[0], y[0]), max(x[1], y[1])),
}
