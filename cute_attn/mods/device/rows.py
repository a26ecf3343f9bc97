"""A score_mod on the accumulator fragments of the forward."""

from dataclasses import dataclass
from typing import Any

import cutlass
import cutlass.cute as cute

from cute_attn.sm90.score import Where

from ..graph import Graph
from .evaluator import Evaluator, Values

__all__ = ["RowScores"]


@dataclass(frozen=True)
class RowScores:
    """On the two rows of a thread in an item, `row` and `row + 8`.

    rows: what the graph computes once for each. last_key: the last one that there is.
    """

    evaluator: Evaluator
    rows: list[Values]
    last_key: Any

    @classmethod
    def of(cls, graph: str, tensors: Any, scalars: Any, where: Where, seqlen_q: Any, seqlen_k: Any) -> "RowScores":
        """where: the first of the two rows. Rows past the end repeat the last one: nothing of them is stored."""
        evaluator = Evaluator(Graph.parse(graph), tensors, scalars)
        item = evaluator.of_item(where.batch, where.head)
        rows = [evaluator.of_row(item, cutlass.min(where.row + 8 * h, seqlen_q - 1)) for h in range(2)]
        return cls(evaluator, rows, seqlen_k - 1)

    def change(self, scores: cute.Tensor, first: Any, scale: Any) -> None:
        """scores = the score_mod of scale * scores. first: the column of the thread's first score."""
        for j in range(cute.size(scores) // 4):
            for q in range(2):
                column = self.evaluator.of_column(cutlass.min(first + (8 * j + q), self.last_key))
                for h in range(2):
                    k = 4 * j + 2 * h + q
                    scores[k] = self.evaluator.output(self.rows[h], column, scores[k] * scale)
