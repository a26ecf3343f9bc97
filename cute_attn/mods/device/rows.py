"""A score_mod and a predicate on the accumulator fragments of the forward."""

from dataclasses import dataclass
from typing import Any, TypeVar

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Uint32

from cute_attn.sm90.mask import WORD, RowBounds, bit_of
from cute_attn.sm90.score import Where

from ..graph import Graph
from .elements import ElementEvaluator, Moved
from .evaluator import Values

__all__ = ["RowPredicate", "RowScores"]

AnyRows = TypeVar("AnyRows", bound="_Rows")


@dataclass(frozen=True)
class _Rows:
    """A graph on the two rows of a thread in an item, `row` and `row + 8`.

    rows: what the graph computes once for each. ends: the keys that there are.
    """

    evaluator: ElementEvaluator
    rows: list[Values]
    ends: RowBounds

    @classmethod
    def of(
        cls: type[AnyRows], graph: str, tensors: Any, scalars: Any, where: Where, seqlen_q: Any, ends: RowBounds
    ) -> AnyRows:
        """where: the first of the two rows. Rows past the end repeat the last one: nothing of them is stored."""
        evaluator = ElementEvaluator(Graph.parse(graph), tensors, scalars)
        item = evaluator.of_item(where.batch, where.head)
        rows = [evaluator.of_row(item, cutlass.min(where.row + 8 * h, seqlen_q - 1)) for h in range(2)]
        return cls(evaluator, rows, ends)

    def columns(self, place: Any, n: int, is_inside: bool) -> list[Values]:
        """What both rows share of each of the thread's columns in the n of a tile at a Place, in their order.

        is_inside: whether all of them are columns of keys.
        """
        first = place.first + self.ends.first_column
        found = []
        bits = None if is_inside else self.ends.bits(place.first)
        for offset in (8 * j + q for j in range(n // 8) for q in range(2)):
            guard = None if bits is None else Boolean(bits[0, offset // WORD] & (Uint32(1) << bit_of(offset)))
            found.append(self.evaluator.of_column(Moved(first, offset), guard))
        return found


class RowScores(_Rows):
    """A score_mod."""

    def change(self, scores: cute.Tensor, place: Any, scale: Any, is_inside: bool) -> None:
        """scores = the score_mod of scale * scores, in the tile at a Place. is_inside: as in `columns`."""
        for c, column in enumerate(self.columns(place, cute.size(scores) * 2, is_inside)):
            for h in range(2):
                k = 4 * (c // 2) + 2 * h + c % 2
                scores[k] = self.evaluator.output(self.rows[h], column, (scores[k], scale))


class RowPredicate(_Rows):
    """What thins a mask."""

    def holds(self, h: int, column: Values, also: Boolean) -> Boolean:
        """Whether it, and `also`, hold in row h, at one of `columns`."""
        return self.evaluator.holds(self.rows[h], column, also)
