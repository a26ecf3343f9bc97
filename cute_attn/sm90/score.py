"""What is done to scores before they are masked: the device half of `cute_attn.spec.score.ScoreForm`."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from cutlass import Float32

from cute_attn.spec.score import ScoreForm

from .ptx import fma, tanh

__all__ = ["Score", "Where"]


class Where(NamedTuple):
    """Which score: that of a query row of a query head with a key, its column, in a batch element."""

    batch: Any
    head: Any
    row: Any
    column: Any

    def moved(self, rows: int, columns: int) -> "Where":
        return self._replace(row=self.row + rows, column=self.column + columns)


@dataclass(frozen=True)
class Score:
    """factor: score_factor of `ScoreForm.factors`."""

    form: ScoreForm
    factor: Float32

    def changed(self, score: Float32, where: Where) -> Float32:
        """Of q.k what the exponential takes."""
        if self.form.kind == "plain":
            return score
        score = score * self.factor
        return tanh(score) if self.form.kind == "softcap" else score

    def derivative(self, changed: Float32, where: Where) -> Float32 | None:
        """By how much a changed score grows with one that only the softmax scale multiplies; None for 1."""
        return fma(-changed, changed, Float32(1.0)) if self.form.kind == "softcap" else None
