"""A score_mod and a predicate on the accumulator fragments of the forward."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import cutlass
import cutlass.cute as cute
from cutlass import Boolean

from cute_attn.sm90.score import Where

from ..graph import Graph
from .elements import ElementEvaluator, Moved, plain
from .evaluator import Values

__all__ = ["RowPredicate", "RowScores"]

AnyRows = TypeVar("AnyRows", bound="_Rows")


@dataclass(frozen=True)
class _Rows:
    """A graph on the two rows of a thread in an item, `row` and `row + 8`.

    rows: what the graph computes once for each. last_key: the last one that there is; None if the graph may be asked of
    any.
    """

    evaluator: ElementEvaluator
    rows: list[Values]
    last_key: Any

    @classmethod
    def of(
        cls: type[AnyRows], graph: str, tensors: Any, scalars: Any, where: Where, seqlen_q: Any, seqlen_k: Any
    ) -> AnyRows:
        """where: the first of the two rows. Rows past the end repeat the last one: nothing of them is stored."""
        evaluator = ElementEvaluator(Graph.parse(graph), tensors, scalars)
        nodes, inputs = evaluator.graph.nodes, evaluator.graph.inputs()
        reads_keys = any(node.op == "load_inside" and "kv" in of for node, of in zip(nodes, inputs, strict=True))
        item = evaluator.of_item(where.batch, where.head)
        rows = [evaluator.of_row(item, cutlass.min(where.row + 8 * h, seqlen_q - 1)) for h in range(2)]
        return cls(evaluator, rows, seqlen_k - 1 if reads_keys else None)

    def columns(self, first: Any, n: int, is_inside: bool) -> Iterator[Values]:
        """What both rows share of each of the thread's columns in a tile of n, in their order.

        first: the first of them. is_inside: whether all columns of the tile are those of keys; else those past the end
        repeat the last one, where that makes a difference: whatever they are is masked.
        """
        as_they_are = is_inside or self.last_key is None
        for j in range(n // 8):
            for q in range(2):
                at = Moved(first, 8 * j + q)
                yield self.evaluator.of_column(at if as_they_are else cutlass.min(plain(at), self.last_key))


class RowScores(_Rows):
    """A score_mod."""

    def change(self, scores: cute.Tensor, first: Any, scale: Any, is_inside: bool) -> None:
        """scores = the score_mod of scale * scores. first, is_inside: as in `columns`."""
        for c, column in enumerate(self.columns(first, cute.size(scores) * 2, is_inside)):
            for h in range(2):
                k = 4 * (c // 2) + 2 * h + c % 2
                scores[k] = self.evaluator.output(self.rows[h], column, (scores[k], scale))


class RowPredicate(_Rows):
    """What thins a mask."""

    def holds(self, h: int, column: Values, also: Boolean) -> Boolean:
        """Whether it, and `also`, hold in row h, at one of `columns`."""
        return self.evaluator.holds(self.rows[h], column, also)
