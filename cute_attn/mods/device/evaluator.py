"""A graph evaluated while a kernel is traced, each node where its value changes least often.

What depends on the batch element, the head and run-time numbers alone is computed once an item, what depends on the row
once an item and row; the rest with the elements of a tile.
"""

from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

from ..graph import COLUMN, ELEMENT, ITEM, ROW, Graph, Node
from .operations import VALUES, chosen, computed, constant, read

__all__ = ["Evaluator", "Values", "address"]

Values = dict[int, Any]  # of nodes, by their numbers


class Evaluator:
    """tensors, scalars: what the function captured, as the graph has it."""

    def __init__(self, graph: Graph, tensors: Any, scalars: Any) -> None:
        self.graph, self.tensors, self.scalars = graph, tensors, scalars
        self.stages = graph.stages()
        read_at: list[set[int]] = [set() for _ in graph.nodes]
        for number, node in enumerate(graph.nodes):
            for i in node.operands:
                read_at[i].add(self.stages[number])
        for i in graph.outputs:
            read_at[i].add(ELEMENT)
        # What later stages read of each stage, and nothing else, is kept through the loops.
        self.kept = {
            stage: [i for i, at in enumerate(self.stages) if at == stage and max(read_at[i], default=stage) > stage]
            for stage in (ITEM, ROW)
        }

    def of_item(self, batch: Any, head: Any) -> Values:
        return self._kept(ITEM, {"b": batch, "h": head}, {})

    def of_row(self, item: Values, row: Any) -> Values:
        """item: of `of_item`, which the result has in it."""
        return item | self._kept(ROW, {"q": row}, item)

    def of_column(self, column: Any) -> Values:
        """A place for what the elements of a column share."""
        return {i: column for i, node in enumerate(self.graph.nodes) if node.op == "kv"}

    def output(self, row: Values, column: Values, score: Float32) -> Any:
        """The output at an element."""
        element = {i: score for i, node in enumerate(self.graph.nodes) if node.op == "score"}
        return self._value(self.graph.outputs[0], row, column, element)

    def _kept(self, stage: int, inputs: dict[str, Any], known: Values) -> Values:
        found = {i: inputs[node.op] for i, node in enumerate(self.graph.nodes) if node.op in inputs}
        return {i: self._value(i, known, found, found) for i in self.kept[stage] if self.graph.nodes[i].op != "const"}

    def _value(self, number: int, known: Values, column: Values, element: Values) -> Any:
        """Of a node. known: of earlier stages; what is computed is noted with those of its own."""
        node = self.graph.nodes[number]
        if node.op == "const":
            return constant(node)
        for values in (known, column, element):
            if number in values:
                return values[number]
        operands = [self._value(i, known, column, element) for i in node.operands]
        own = column if self.stages[number] == COLUMN else element
        own[number] = self._computed(number, operands)
        return own[number]

    def _computed(self, number: int, operands: list[Any]) -> Any:
        node = self.graph.nodes[number]
        if node.op == "scalar":
            return VALUES[node.dtype](self.scalars[int(node.args[0])])
        if node.action == "load":
            return self._loaded(node, operands)
        return computed(node, [self.graph.nodes[i].dtype for i in node.operands], operands)

    def _loaded(self, node: Node, indices: list[Any]) -> Any:
        """An element of a captured tensor."""
        number = int(node.args[0])
        return read(address(self.tensors[number], self.place(node, indices)), self.graph.tensors[number][0])

    def place(self, node: Node, indices: list[Any]) -> list[Any]:
        """Where in a captured tensor the indices of a load or a scatter point. Without a mark that all lie inside,
        negative ones wrap, and one that lies outside becomes that of the nearest element, since elements outside the
        mask may index anywhere."""
        if node.op != node.action:
            return [index.to(Int32) for index in indices]
        found = []
        for index, size in zip(indices, self.tensors[int(node.args[0])].shape, strict=False):
            kind = type(index)
            end, zero = kind(size), kind(0)
            index = chosen(index < zero, index + end, index)
            found.append(cutlass.max(cutlass.min(index, end - kind(1)), zero).to(Int32))
        return found


def address(tensor: Any, place: list[Any]) -> Any:
    """Of an element of a tensor whose last stride is 1; what elements share of it is computed once for them."""
    if not place:
        return tensor.iterator
    *outer, last = place
    return tensor.iterator + cute.crd2idx((*outer, 0), tensor.layout) + last
