"""The graph of a backward on transposed fragments: new scores, their derivatives, and what flows to captured tensors.

A thread has two keys and walks query rows, of one query head a tile. What depends on the batch element and on a key is
computed once an item, what depends on the head, and on the head and a key, once a tile; on the row, once for both keys.
"""

from dataclasses import dataclass
from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Float32, Int32
from cutlass.cutlass_dsl import dsl_user_op

from cute_attn.sm90.ptx import asm

from ..graph import INPUTS, UNGUARDED, Graph
from ..scatters import kind_of
from .evaluator import Evaluator, Values, address
from .operations import chosen, constant, read, smaller

__all__ = ["Element", "Flow", "KeyGraph", "TilePredicate", "TileScores"]

ITEM, KEY, TILE, KEY_OF_TILE, COLUMN, ELEMENT = range(6)
ORIGIN, POINTERS, DISTANCE = range(6, 9)  # beside scopes: those of a row, with addresses of it, and how far it is away
# What is known in each scope, from what changes most seldom; a value belongs to the first that knows all it depends on.
_KNOWN = [{"b"}, {"b", "kv"}, {"b", "h"}, {"b", "h", "kv"}, {"b", "h", "q"}, set(INPUTS)]
FINITE = 1.0e30  # beyond every score; what lies outside the mask may be NaN
# Of floats, those that make no NaN and no infinity of numbers: they may be asked of rows past the end.
TAME = {"score", "const", "scalar", "add", "sub", "mul", "neg", "where", "convert", *UNGUARDED}

Scopes = dict[int, Any]


class KeyEvaluator(Evaluator):
    """Of a graph whose scopes are these."""

    def __init__(self, graph: Graph, tensors: Any, scalars: Any) -> None:
        super().__init__(graph, tensors, scalars)
        self.inputs = graph.inputs()
        self.scopes = [next(s for s, known in enumerate(_KNOWN) if found <= known) for found in self.inputs]
        self.steps = self._steps()
        self.is_tame = all(node.op in TAME for node in graph.nodes if node.dtype == "f32")
        self.is_tame = self.is_tame and all(node.op != "load" for node in graph.nodes)
        inside = ("load_inside", "scatter_inside")
        self.has_room_for_keys = graph.reads("load_tabled") and not any(
            n.op in inside and "kv" in of for n, of in zip(graph.nodes, self.inputs, strict=True)
        )
        later: set[int] = {i for i in graph.outputs if graph.nodes[i].action != "scatter"}
        for number, node in enumerate(graph.nodes):
            other = node.action == "scatter"
            later |= {i for i in node.operands if other or self.scopes[i] != self.scopes[number]}
        self.kept = {scope: [i for i in sorted(later) if self.scopes[i] == scope] for scope in range(COLUMN)}

    def filled(self, scope: int, known: Scopes, **inputs: Any) -> Scopes:
        """The scopes known, and another one with all in it that others read."""
        scopes = known | {scope: self.given(**inputs)}
        for number in self.kept[scope]:
            self.value(number, scopes)
        return scopes

    def given(self, **inputs: Any) -> Values:
        return {i: inputs[node.op] for i, node in enumerate(self.graph.nodes) if node.op in inputs}

    def value(self, number: int, scopes: Scopes) -> Any:
        """Of a node; it is noted in its scope."""
        node = self.graph.nodes[number]
        if node.op == "const":
            return constant(node)
        own = scopes[self.scopes[number]]
        if number not in own:
            if node.action == "load":
                tensor = int(node.args[0])
                own[number] = read(self.pointer(number, self.tensors[tensor], scopes), self.graph.tensors[tensor][0])
            else:
                own[number] = self._computed(number, [self.value(i, scopes) for i in node.operands])
        return own[number]

    def pointer(self, number: int, tensor: Any, scopes: Scopes) -> Any:
        """To where a load or a scatter points in a tensor. In one that needs no guard, and whose last index goes with
        the row, it is so far from where it points at the origin."""
        node = self.graph.nodes[number]
        indices = node.operands[: self.graph.tensors[int(node.args[0])][1]]
        steps = [self.steps[i] for i in indices]
        goes_with_the_row = steps[-1:] in ([1], [-1]) and not any(step != 0 for step in steps[:-1])
        if node.op == node.action or not goes_with_the_row:
            return address(tensor, self.place(node, [self.value(i, scopes) for i in indices]))
        pointers = scopes[ORIGIN][POINTERS]
        if number not in pointers:
            pointers[number] = address(tensor, self.place(node, [self.value(i, scopes[ORIGIN]) for i in indices]))
        return pointers[number] + steps[-1] * scopes[DISTANCE]

    def _steps(self) -> list[int | None]:
        """By how much each integer grows from row to row; None if that is no fixed number."""
        found: list[int | None] = []
        for node, inputs in zip(self.graph.nodes, self.inputs, strict=True):
            of = [found[i] for i in node.operands]
            step: int | None = None
            if node.op == "q":
                step = 1
            elif not inputs & {"q", "score"}:
                step = 0
            elif node.op in ("add", "sub") and node.dtype == "i32" and None not in of:
                x, y = (int(x or 0) for x in of)
                step = x + y if node.op == "add" else x - y
            found.append(step)
        return found

    def is_const(self, number: int, value: float) -> bool:
        node = self.graph.nodes[number]
        return node.op == "const" and node.args[0] == value


@dataclass(frozen=True)
class KeyGraph:
    """A graph on the two keys of a thread in an item. of_keys: for each the scopes that last for the item. last_row:
    the last one that there is."""

    evaluator: KeyEvaluator
    of_keys: list[Scopes]
    last_row: Any

    @classmethod
    def of(cls, graph: str, tensors: Any, scalars: Any, batch: Any, keys: Any, lengths: Any) -> "KeyGraph":
        """keys: the two; such as lie past the end repeat the last one, where that makes a difference. lengths: of
        queries and keys."""
        evaluator = KeyEvaluator(Graph.parse(graph), tensors, scalars)
        item = evaluator.filled(ITEM, {}, b=batch)
        if not (evaluator.is_tame and evaluator.has_room_for_keys):
            keys = [cutlass.min(key, lengths[1] - 1) for key in keys]
        of_keys = [evaluator.filled(KEY, item, kv=key) for key in keys]
        return cls(evaluator, of_keys, lengths[0] - 1)

    def in_tile(self, head: Any) -> list[Scopes]:
        """Of both keys, on rows of a query head."""
        tile = self.evaluator.filled(TILE, self.of_keys[0], h=head)[TILE]
        return [self.evaluator.filled(KEY_OF_TILE, of_key | {TILE: tile}) for of_key in self.of_keys]


class TileGraph:
    """A graph in one tile. Made, used and finished in one stretch of code without branches.

    scopes: of both keys. first_row: of this thread in the tile.
    """

    def __init__(self, graph: KeyGraph, head: Any, first_row: Any) -> None:
        self.graph, self.evaluator, self.head, self.first_row = graph, graph.evaluator, head, first_row
        e = graph.evaluator
        self.scopes = graph.in_tile(head)
        origin = e.given(q=first_row if e.is_tame else Int32(0))
        for scopes in self.scopes:
            scopes[ORIGIN] = {**scopes, COLUMN: origin, ELEMENT: {}, POINTERS: {}}

    def column(self, offset: int) -> Scopes:
        """Scopes of a row so far behind the first, which the keys share. Rows past the end repeat the last one, where
        that makes a difference."""
        row = self.first_row + offset
        if self.evaluator.is_tame:
            return {COLUMN: self.evaluator.given(q=row), DISTANCE: offset}
        row = cutlass.min(row, self.graph.last_row)
        return {COLUMN: self.evaluator.given(q=row), DISTANCE: row}


class TilePredicate(TileGraph):
    """What thins a mask."""

    @property
    def reads_of_rows(self) -> int:
        """How many elements of captured tensors it reads for a row and both keys."""
        e = self.evaluator
        reads = [of for node, of in zip(e.graph.nodes, e.inputs, strict=True) if node.action == "load" and "q" in of]
        return sum(2 if "kv" in of else 1 for of in reads)

    def holds(self, key: int, column: Scopes) -> Any:
        """Whether a row attends a key, 0 or 1, as far as it goes."""
        return self.evaluator.value(self.evaluator.graph.outputs[0], self.scopes[key] | column | {ELEMENT: {}})


@dataclass(frozen=True)
class Flow:
    """Where what flows to captured tensors goes.

    targets: fp32, for each scatter of the graph the gradient of its tensor, or, of the kind "key", sums (batch, query
        heads, parts, keys), of which this thread writes those of `part` at its keys, if they are less than seqlen_k.
    """

    targets: Any
    batch: Any
    part: Any
    keys: Any
    seqlen_k: Any


@dataclass(frozen=True)
class Element:
    """score: the new one. slope: its derivative by the old one, None for 1. scopes: for `TileScores.scatter`."""

    score: Any
    slope: Any
    scopes: Scopes


class TileScores(TileGraph):
    """A graph of `cute_attn.mods.derivative`."""

    def __init__(self, scores: KeyGraph, head: Any, first_row: Any, flow: Flow) -> None:
        super().__init__(scores, head, first_row)
        self.flow = flow
        graph, inputs = scores.evaluator.graph, scores.evaluator.inputs
        # Whether there may be no number past the end: of a score of 0, or where a table is read that no row asks for.
        reads = any(node.op == "load_inside" and "q" in of for node, of in zip(graph.nodes, inputs, strict=True))
        self.may_be_none = "score" in inputs[graph.outputs[1]] or (scores.evaluator.is_tame and reads)
        self.scatters = [(i, kind_of(graph, i)) for i in graph.outputs if graph.nodes[i].action == "scatter"]
        self.sums = [[Float32(0.0), Float32(0.0)] for _ in self.scatters]

    def element(self, key: int, column: Scopes, score: Any) -> Element:
        """key: 0 or 1, which of the two. score: scaled."""
        e = self.evaluator
        scopes = self.scopes[key] | column | {ELEMENT: e.given(score=score)}
        new, slope = e.graph.outputs[:2]
        value = e.value(new, scopes)
        if self.may_be_none:
            value = smaller(value, Float32(FINITE))
        return Element(value, None if e.is_const(slope, 1.0) else e.value(slope, scopes), scopes)

    def by_score(self, element: Element, gradient: Any) -> Any:
        """The gradient of the old score; 0 where that of the new one is."""
        if element.slope is None:
            return gradient
        return chosen(gradient != Float32(0.0), gradient * element.slope, Float32(0.0))

    def scatter(self, key: int, element: Element, gradient: Any) -> None:
        """Adds what flows to captured tensors. gradient: of the new score; 0 outside the mask."""
        e = self.evaluator
        for place, (number, kind) in enumerate(self.scatters):
            node = e.graph.nodes[number]
            weight = node.operands[-1]
            if kind == "key" and e.scopes[weight] < COLUMN:  # the sum is weighed
                self.sums[place][key] = self.sums[place][key] + gradient
                continue
            share = self._weighed(gradient, weight, element.scopes)
            if kind == "key":
                self.sums[place][key] = self.sums[place][key] + share
            else:
                inside = node.op != node.action  # then elements outside the mask have places of their own, to add 0 to
                pointer = e.pointer(number, self.flow.targets[place], element.scopes)
                add_at(pointer, share, None if inside else gradient != Float32(0.0))

    def finish(self) -> None:
        """Adds the sums of the tile to those of its keys: a key of a head is one warp's alone, which has one order."""
        e, flow = self.evaluator, self.flow
        lane = cute.arch.lane_idx()
        for place, (number, kind) in enumerate(self.scatters):
            if kind != "key":
                continue
            weight = e.graph.nodes[number].operands[-1]
            target = flow.targets[place]
            for key in range(2):
                total = self.sums[place][key]
                for offset in (1, 2):
                    total = total + cute.arch.shuffle_sync_bfly(total, offset=offset)
                if e.scopes[weight] < COLUMN:
                    total = self._weighed(total, weight, self.scopes[key])
                at = [flow.batch, self.head, flow.part, flow.keys[key]]
                add_at(address(target, at), total, (lane % 4 == key) & (flow.keys[key] < flow.seqlen_k))

    def _weighed(self, gradient: Any, weight: int, scopes: Scopes) -> Any:
        """0 where the gradient is, whatever the weight: outside the mask it may be infinite."""
        e = self.evaluator
        if e.is_const(weight, 1.0):
            return gradient
        return chosen(gradient != Float32(0.0), gradient * e.value(weight, scopes), Float32(0.0))


@dsl_user_op
def add_at(target: Any, value: Any, condition: Any, *, loc: Any = None, ip: Any = None) -> None:
    """Adds to a float in global memory; condition: None, or where alone."""
    operands = [x.ir_value(loc=loc, ip=ip) for x in (target.toint(loc=loc, ip=ip), Float32(value))]
    text, constraints = "red.global.add.f32 [$0], $1;", "l,f"
    if condition is not None:
        operands.append(Boolean(condition).ir_value(loc=loc, ip=ip))
        text, constraints = f"@$2 {text}", "l,f,b"
    asm(None, operands, text, constraints, loc, ip, has_side_effects=True)
