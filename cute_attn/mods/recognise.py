"""A traced mask_mod as intervals, and what of it is none as a predicate that thins them; no pair is ever evaluated."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from ..mask import IntervalMask
from .compare import NotIntervals, TooMany, limited
from .evaluate import evaluate
from .graph import COLUMN, Graph, Node
from .reader import GraphReader
from .trace import Traced

__all__ = ["MOST_LAYERS", "Recognised", "part", "recognise"]

MOST_LAYERS = 64  # intervals a row of a mask that is read as such; more are slower than asking
_WORK = 1 << 31  # rows and keys of all binary searches for a plane of a part: cases within cases end here
_ROOM = 1 << 23  # intervals of all rows together, on the way
_ROWS = 1 << 14  # rows at a time where all of them at once have no room


@dataclass(frozen=True)
class Recognised:
    """intervals: the pairs that may be attended. predicate: which of them are, or None for all. reason: why there is a
    predicate, or ""."""

    intervals: IntervalMask
    predicate: Traced | None
    reason: str


def recognise(
    traced: Traced,
    seqlen_q: int,
    seqlen_k: int,
    batch: int,
    heads: int,
    device: torch.device,
    *,
    reads_all: bool = True,
) -> Recognised:
    """Reads a mask_mod: its conjunction is taken apart, and what cannot be read of it remains.

    reads_all: whether the function must be defined for all pairs; else what indexes outside of a captured tensor, or
        divides by 0, is left to the predicate.

    The mask has planes for batch elements and heads only where the graph reads them. Raises IndexError where the
    function indexes outside of a captured tensor, ZeroDivisionError where it divides by 0.
    """
    graph = traced.graph
    parts = _conjuncts(graph, graph.outputs[0])
    if not graph.reads("b"):
        batch = 1
    if not graph.reads("h"):
        heads = 1
    everything = _Everything(traced, seqlen_q, seqlen_k, batch, heads, device, reads_all)
    mask: IntervalMask | None = None
    left, reasons = [], []
    for node, negated in parts:
        try:
            found = everything.read(node, negated)
            mask = found if mask is None else limited(mask & found, MOST_LAYERS)
        except NotIntervals as error:
            left.append((node, negated))
            reasons.append(str(error))
    if mask is None:
        hi = torch.full((1, 1, seqlen_q), seqlen_k, dtype=torch.int32, device=device)
        mask = IntervalMask._made(torch.zeros_like(hi), hi, seqlen_k)
    predicate = _conjunction(traced, left) if left else None
    return Recognised(mask, predicate, "; ".join(dict.fromkeys(reasons)))


class _Everything:
    """All rows and planes of a graph, read part by part."""

    def __init__(
        self, traced: Traced, rows: int, keys: int, batch: int, heads: int, device: torch.device, reads_all: bool
    ) -> None:
        self.traced, self.graph, self.device, self.reads_all = traced, traced.graph, device, reads_all
        self.rows, self.keys, self.batch, self.heads = rows, keys, batch, heads
        self.reads = {op: _reading(self.graph, op) for op in ("b", "h")}
        self.own = self.reads["b"] | self.reads["h"]
        self.stages = self.graph.stages()
        self._work = 0
        self._values: dict[tuple[object, ...], torch.Tensor] = {}
        self._shared: dict[int, IntervalMask] = {}

    def read(self, node: int, negated: bool) -> IntervalMask:
        """A node for all rows and planes."""
        if not self.rows or not self.keys:
            nothing = torch.zeros(1, 1, self.rows, dtype=torch.int32, device=self.device)
            return IntervalMask._made(nothing, nothing.clone(), self.keys)
        batch = self.batch if node in self.reads["b"] else 1
        heads = self.heads if node in self.reads["h"] else 1
        planes = [self._plane(node, negated, b, h) for b in range(batch) for h in range(heads)]
        return _stacked(planes, self.keys, heads, dim=0)

    def _plane(self, node: int, negated: bool, b: int, h: int) -> IntervalMask:
        self._work = _WORK
        try:
            return self._rows(node, negated, b, h, 0, self.rows)
        except TooMany:
            if self.rows <= _ROWS:
                raise
        found = [
            self._rows(node, negated, b, h, first, min(first + _ROWS, self.rows))
            for first in range(0, self.rows, _ROWS)
        ]
        return _stacked(found, self.keys, 1, dim=2)

    def _rows(self, node: int, negated: bool, b: int, h: int, first: int, end: int) -> IntervalMask:
        def value(i: int) -> torch.Tensor:
            return self._value(i, b, h, first, end)

        most = max(8, _ROOM // (end - first))
        known = self._shared if end - first == self.rows else {}  # parts of many rows would not be small together
        reader = GraphReader(self.graph, end - first, self.keys, value, self.device, most, self._spend, known, self.own)
        found = reader.keys_of(node)
        return limited(~found if negated else found, MOST_LAYERS)

    def _spend(self, work: int) -> None:
        self._work -= work
        if self._work < 0:
            raise NotIntervals("it has too many cases")

    def _value(self, i: int, b: int, h: int, first: int, end: int) -> torch.Tensor:
        """What a node of one side says, found once for all planes that share it."""
        place: object = None if self.stages[i] == COLUMN else (first, end)
        key = (i, b if i in self.reads["b"] else None, h if i in self.reads["h"] else None, place)
        if key not in self._values:
            inputs = {
                "b": torch.tensor(b, device=self.device),
                "h": torch.tensor(h, device=self.device),
                "q": torch.arange(first, end, device=self.device),
                "kv": torch.arange(self.keys, device=self.device),
            }
            only = part(self.traced, i)
            needed = {name: x for name, x in inputs.items() if only.graph.reads(name)}
            try:
                (found,) = evaluate(only.graph, needed, only.tensors, only.scalars, torch.float32, name="mask_mod")
            except (IndexError, ZeroDivisionError) as error:
                if self.reads_all:
                    raise
                raise NotIntervals(str(error)) from None
            self._values[key] = found.to(self.device)
        return self._values[key]


def _stacked(masks: list[IntervalMask], keys: int, heads: int, dim: int) -> IntervalMask:
    """Masks of planes, or of rows, after each other."""
    layers = max(mask.layers for mask in masks)
    sides = []
    for side in ("lo", "hi"):
        bounds = [getattr(mask, side) for mask in masks]
        padded = [torch.nn.functional.pad(x, (0, 0, 0, layers - x.shape[1])) for x in bounds]
        sides.append(padded[0] if len(padded) == 1 else torch.cat(padded, dim))
    return IntervalMask._made(sides[0], sides[1], keys, heads)


def _conjuncts(graph: Graph, node: int, negated: bool = False) -> list[tuple[int, bool]]:
    """Nodes, some of them negated, all of which must hold."""
    op, args = graph.nodes[node].op, graph.nodes[node].operands
    if op == "not":
        return _conjuncts(graph, args[0], not negated)
    if op == ("or" if negated else "and"):
        return [found for a in args for found in _conjuncts(graph, a, negated)]
    return [(node, negated)]


def _reading(graph: Graph, op: str) -> set[int]:
    """The nodes that depend on an input."""
    found: set[int] = set()
    for i, node in enumerate(graph.nodes):
        if node.op == op or found.intersection(node.operands):
            found.add(i)
    return found


def part(traced: Traced, output: int) -> Traced:
    """The function that gives another node of the graph, and nothing that it does not need."""
    graph = traced.graph
    needed = {output}
    for i in range(output, -1, -1):
        if i in needed:
            needed.update(graph.nodes[i].operands)
    nodes: list[Node] = []
    place: dict[int, int] = {}
    tensors: list[int] = []
    scalars: list[int] = []
    for i in sorted(needed):
        node = graph.nodes[i]
        if node.op == "const":
            args = node.args
        elif node.op == "scalar":
            args = (_position(scalars, int(node.args[0])),)
        else:
            args = tuple(place[a] for a in node.operands)
            if node.op == "load":
                args = (_position(tensors, int(node.args[0])), *args)
        place[i] = len(nodes)
        nodes.append(dataclasses.replace(node, args=args))
    smaller = Graph(
        tuple(nodes),
        (place[output],),
        tuple(graph.tensors[i] for i in tensors),
        tuple(graph.scalars[i] for i in scalars),
    )
    return Traced(smaller.text, [traced.tensors[i] for i in tensors], [traced.scalars[i] for i in scalars])


def _position(places: list[int], x: int) -> int:
    if x not in places:
        places.append(x)
    return places.index(x)


def _conjunction(traced: Traced, parts: list[tuple[int, bool]]) -> Traced:
    """The function that says whether all parts hold."""
    graph = traced.graph
    nodes = list(graph.nodes)
    output = None
    for node, negated in parts:
        if negated:
            nodes.append(Node("not", (node,), "bool"))
            node = len(nodes) - 1
        if output is not None:
            nodes.append(Node("and", (output, node), "bool"))
            node = len(nodes) - 1
        output = node
    assert output is not None
    whole = dataclasses.replace(graph, nodes=tuple(nodes))
    return part(Traced(whole.text, traced.tensors, traced.scalars), output)
