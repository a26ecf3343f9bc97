"""A graph evaluated element by element, where columns lie at known numbers behind a thread's first.

Such a number stays apart in sums, and becomes part of an instruction; so does the factor of a score.
"""

from typing import Any, NamedTuple

from cutlass import Float32, Int32

from cute_attn.sm90.ptx import fma

from ..graph import ELEMENT, ROW, Node
from .evaluator import Evaluator, Values, address
from .operations import VALUES, compared, read_at

__all__ = ["ElementEvaluator", "Moved", "plain"]


class Moved(NamedTuple):
    """base + offset * slope; slope None for 1. base, slope: the same for all elements of a row. offset: a Python
    number."""

    base: Any
    offset: int
    slope: Any = None


class Scaled(NamedTuple):
    """x * factor. factor: the same for all elements of a row."""

    x: Float32
    factor: Float32


class ElementEvaluator(Evaluator):
    """See Evaluator; a column may be Moved."""

    def output(self, row: Values, column: Values, score: Any) -> Any:
        """The output at an element. score: what a score_mod is given, as the product of two."""
        return plain(super().output(row, column, Scaled(*score)))

    def holds(self, row: Values, column: Values, also: Any) -> Any:
        """Whether the output of a predicate, and `also`, hold at an element."""
        return self._all_of(self.graph.outputs[0], row, column, {}, also)

    def _all_of(self, number: int, known: Values, column: Values, element: Values, also: Any) -> Any:
        """A conjunction taken apart: a comparison more is one instruction more."""
        node = self.graph.nodes[number]
        if self.stages[number] == ELEMENT and node.op == "and":
            for i in node.operands:
                also = self._all_of(i, known, column, element, also)
            return also
        if self.stages[number] == ELEMENT and node.op in ("eq", "ne", "lt", "le"):
            x, y = (plain(self._value(i, known, column, element)) for i in node.operands)
            if isinstance(x, (Int32, Float32)):
                return compared(node.op, x, y, also)
        return self._value(number, known, column, element) & also

    def _computed(self, number: int, operands: list[Any]) -> Any:
        node = self.graph.nodes[number]
        if node.action == "load":
            return self._loaded(node, operands)
        apart = _kept_apart(node.op, node.dtype, operands, [self.stages[i] <= ROW for i in node.operands])
        return super()._computed(number, [plain(x) for x in operands]) if apart is None else apart

    def _loaded(self, node: Node, indices: list[Any]) -> Any:
        """An element of a captured tensor."""
        if node.op == node.action or not indices:
            return super()._loaded(node, [plain(x) for x in indices])
        tensor = int(node.args[0])
        *outer, last = indices
        base, offset = (last.base, last.offset) if isinstance(last, Moved) else (last, 0)
        pointer = address(self.tensors[tensor], self.place(node, [*(plain(x) for x in outer), base]))
        return read_at(pointer, offset, self.graph.tensors[tensor][0])


def plain(x: Any) -> Any:
    """A value as one number."""
    if isinstance(x, Scaled):
        return x.x * x.factor
    if isinstance(x, Moved):
        offset = type(x.base)(x.offset)
        return x.base + offset if x.slope is None else fma(x.slope, offset, x.base)
    return x


def _kept_apart(op: str, kind: str, operands: list[Any], is_of_row: list[bool]) -> Any:
    """What keeps a known number, or the factor of a score, apart; None where nothing does."""
    is_moved, is_scaled = ([isinstance(x, c) for x in operands] for c in (Moved, Scaled))
    if not any(is_moved + is_scaled):
        return None
    x, y = operands[0], operands[-1]
    if op == "neg":
        return Scaled(x.x, -x.factor) if is_scaled[0] else _times(x, None)
    if op == "convert" and is_moved[0]:
        if kind == "f32" and not isinstance(x.base, Float32):
            return Moved(Float32(x.base), x.offset)
        return Moved(x.base.to(VALUES[kind]), x.offset) if kind == "i64" else None
    if op in ("add", "sub") and kind != "f32":
        a, b = (x if isinstance(x, Moved) else Moved(x, 0) for x in (x, y))
        if op == "add":
            return Moved(a.base + b.base, a.offset + b.offset)
        return Moved(a.base - b.base, a.offset - b.offset)
    if kind == "f32" and op == "mul":
        for one, other, of_row in ((x, y, is_of_row[1]), (y, x, is_of_row[0])):
            if of_row and isinstance(one, Scaled):
                return Scaled(one.x, one.factor * other)
            if of_row and isinstance(one, Moved):
                return _times(one, other)
    if kind == "f32" and op in ("add", "sub"):
        if is_scaled[0]:
            return fma(x.x, x.factor, plain(y) if op == "add" else -plain(y))
        if is_scaled[1]:
            return fma(y.x, y.factor if op == "add" else -y.factor, plain(x))
    return None


def _times(x: Moved, factor: Any) -> Moved:
    """A moved number times a factor, None for -1."""
    if factor is None:
        if not isinstance(x.base, Float32):
            return Moved(-x.base, -x.offset)
        factor = Float32(-1.0)
    return Moved(x.base * factor, x.offset, factor if x.slope is None else x.slope * factor)
