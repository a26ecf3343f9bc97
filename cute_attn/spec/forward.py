"""What the machine code of a forward depends on, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from .attention import AttentionSpec
from .tiles import TileConfig

__all__ = ["ForwardSpec", "Softmax"]

Softmax = Literal["stale", "exact"]


@dataclass(frozen=True)
class ForwardSpec(AttentionSpec):
    """The configuration of one forward; see AttentionSpec for its first fields.

    dtype: also of the output, without fp32_out.
    sink: whether a sink joins the softmax in the epilogue (per head or per row is a matter of strides).
    max_logits: whether the largest score of each head is returned; needs softmax="exact".
    softmax: "stale" keeps an old row maximum while it serves; "exact" looks for the maximum in every tile.
    fp32_out: whether the output is left in fp32, to be merged with that over other keys.
    tile: see TileConfig.
    """

    op: ClassVar[str] = "fwd"

    sink: bool = False
    max_logits: bool = False
    softmax: Softmax = "stale"
    fp32_out: bool = False
    tile: TileConfig = field(default_factory=TileConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_logits and self.softmax != "exact":
            raise ValueError(f"ForwardSpec.max_logits needs softmax='exact', got softmax={self.softmax!r}")
        if self.mask.predicate:
            raise ValueError("ForwardSpec.mask must have no predicate: there is no machine code for one")
        if self.softmax == "stale" and self.tile.consumers != 2:
            raise ValueError(
                "ForwardSpec.softmax='stale' keeps two register sets for P, which fit two consumer warpgroups "
                f"(tile.m = 128), got tile.m = {self.tile.m}"
            )

    def __str__(self) -> str:
        parts = [*self._begun(), *self._set("sink", "max_logits", "fp32_out"), self.softmax]
        return f"{', '.join(parts)}; {self.tile}"
