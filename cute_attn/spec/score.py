"""What machine code knows of the way from q.k to a probability."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .canonical import digest
from .checks import check_fields

__all__ = ["LN_2", "LOG2_E", "ScoreForm", "ScoreKind"]

ScoreKind = Literal["plain", "scaled", "softcap", "graph"]

LOG2_E, LN_2 = math.log2(math.e), math.log(2.0)
# Scales that the exponential alone can carry: beyond them, and for scale <= 0, scores are multiplied before masking.
PLAIN_SCALES = (1e-6, 1e6)
# Below every changed score, and finite, so that nothing ever computes inf - inf. Capped scores are tanh, at most 1, and
# what the exponential multiplies them with may be huge: the product has to stay finite.
NO_KEY = {"plain": -1.0e30, "scaled": -1.0e30, "softcap": -1.0e4, "graph": -1.0e30}


@dataclass(frozen=True)
class ScoreForm:
    """How scores are changed before they are masked; a probability is exp2(exp2_factor * changed - ...).

    kind: "plain" leaves them as q.k: the exponential carries the scale, which is positive in the forward; "scaled" is
        score_factor * q.k, for any finite scale; "softcap" is tanh(score_factor * q.k); "graph" is a traced function of
        score_factor * q.k and of where the score is.
    graph: the text of that function, see `cute_attn.mods.graph`; "" for the other kinds.

    The factors are run-time values, see `factors`. Device code is `cute_attn.sm90.score`.
    """

    kind: ScoreKind = "plain"
    graph: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.kind == "graph") != bool(self.graph):
            raise ValueError(f"ScoreForm.graph goes with kind='graph' and only with it, got kind={self.kind!r}")

    @classmethod
    def of(cls, softmax_scale: float, softcap: float) -> ScoreForm:
        """That of `softcap * tanh(softmax_scale * q.k / softcap)`, or of `softmax_scale * q.k` where softcap is 0."""
        if softcap > 0.0:
            return cls("softcap")
        return cls("plain" if PLAIN_SCALES[0] <= softmax_scale <= PLAIN_SCALES[1] else "scaled")

    def factors(self, softmax_scale: float, softcap: float) -> tuple[float, float]:
        """score_factor and exp2_factor; the latter contains log2(e)."""
        if self.kind == "softcap":
            return softmax_scale / softcap, softcap * LOG2_E
        return (1.0, softmax_scale * LOG2_E) if self.kind == "plain" else (softmax_scale, LOG2_E)

    @property
    def is_changed(self) -> bool:
        return self.kind != "plain"

    @property
    def no_key(self) -> float:
        """The largest score of a row without keys."""
        return NO_KEY[self.kind]

    def __str__(self) -> str:
        return f"score_mod {digest(self.graph)}" if self.graph else self.kind
