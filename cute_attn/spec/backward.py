"""What the machine code of a backward depends on, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from .attention import AttentionSpec
from .score import ScoreForm
from .tiles import BackwardTile

__all__ = ["BackwardSpec", "backward_score"]


@dataclass(frozen=True)
class BackwardSpec(AttentionSpec):
    """The configuration of one backward: preprocess, main kernel and postprocess; see AttentionSpec for its first
    fields.

    dtype: also of the output and, without fp32_gradients, the gradients.
    score: such as `backward_score` gives. A graph is one of `cute_attn.mods.derivative`: beside the new score and
        its derivative it says what flows to captured tensors.
    dq, dk, dv: which gradients are computed; at least one, where there are no captured tensors.
    dlse: whether the log-sum-exp has a gradient.
    planes_by_head: whether query heads that share a key head have masks, and so runs of tiles, of their own.
    deterministic: whether the sums of dQ have a fixed order.
    fp32_gradients: whether dq, dk and dv are left in fp32, to be added to what other keys and queries contribute.
    tile: see BackwardTile.
    """

    op: ClassVar[str] = "bwd"

    dq: bool = True
    dk: bool = True
    dv: bool = True
    dlse: bool = False
    planes_by_head: bool = False
    deterministic: bool = False
    fp32_gradients: bool = False
    tile: BackwardTile = field(default_factory=BackwardTile)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.dq or self.dk or self.dv or self.score.graph):
            raise ValueError("BackwardSpec with dq, dk and dv all False computes nothing")
        if self.deterministic and not self.dq:
            raise ValueError(
                "BackwardSpec.deterministic orders the sums of dQ, got dq=False: dK and dV have one order anyway"
            )
        if backward_score(self.score) != self.score:
            raise ValueError(
                f"BackwardSpec.score must be plain, softcap or a graph, got {self.score}: its plain exponential "
                "takes any scale"
            )

    def __str__(self) -> str:
        gradients = " ".join(["dq"] * self.dq + ["dk"] * self.dk + ["dv"] * self.dv)
        extras = self._set("dlse", "planes_by_head", "deterministic", "fp32_gradients")
        return f"{', '.join([*self._begun(), gradients, *extras])}; {self.tile}"


def backward_score(score: ScoreForm) -> ScoreForm:
    """The form in which a backward computes the scores that a forward has in this one."""
    # Its shift is no maximum, so that the exponential may carry any finite scale.
    return ScoreForm("plain") if score.kind == "scaled" else score
