"""A graph evaluated while a kernel is traced, each node where its value changes least often.

What depends on the batch element, the head and run-time numbers alone is computed once an item, what depends on the row
once an item and row; the rest with the elements of a tile.
"""

from typing import Any

import cutlass
from cutlass import Float32

from ..graph import COLUMN, ELEMENT, ITEM, ROW, Graph
from .operations import VALUES, chosen, computed, constant

__all__ = ["Evaluator", "Values"]

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
        if node.op == "load":
            return self._loaded(int(node.args[0]), node.dtype, operands)
        of = [self.graph.nodes[i] for i in node.operands]
        constants = [float(n.args[0]) if n.op == "const" else None for n in of]
        return computed(node, [n.dtype for n in of], operands, constants)

    def _loaded(self, number: int, kind: str, indices: list[Any]) -> Any:
        """An element of a captured tensor."""
        tensor = self.tensors[number]
        place = self._place(number, indices)
        x = tensor[tuple(place) if place else 0]
        return x != tensor.element_type(0) if kind == "bool" else x.to(VALUES[kind])

    def _place(self, number: int, indices: list[Any]) -> list[Any]:
        """Where in a captured tensor indices point. Negative ones wrap; one that lies outside becomes that of the
        nearest element, since elements outside the mask may index anywhere."""
        place = []
        for index, size in zip(indices, self.tensors[number].shape, strict=False):
            kind_of_index = type(index)
            end, zero, one = (kind_of_index(n) for n in (size, 0, 1))
            index = chosen(index < zero, index + end, index)
            index = chosen(index < zero, zero, chosen(index < end, index, end - one))
            place.append(index.to(cutlass.Int32))
        return place
