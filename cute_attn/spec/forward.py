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
    piece: keys that one TMA box brings of a page, where K and V lie in a cache; 0 where they are tensors of their own.
        The bounds of rows, one layer, never fall from row to row.
    tile: see TileConfig.
    """

    op: ClassVar[str] = "fwd"

    sink: bool = False
    max_logits: bool = False
    softmax: Softmax = "stale"
    fp32_out: bool = False
    piece: int = 0
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
        if self.piece and (self.piece < 8 or self.piece % 8 or self.tile.n % self.piece):
            raise ValueError(
                f"ForwardSpec.piece must be 0 or a multiple of 8 that divides tile.n, {self.tile.n}, got {self.piece}"
            )
        if self.piece and (self.mask.layers != 1 or not self.mask.has_upper or self.score.graph):
            raise ValueError(
                "ForwardSpec.piece needs a mask of one layer with upper bounds, and a score without a graph, got "
                f"{self.mask} and {self.score}"
            )

    def __str__(self) -> str:
        paged = [f"pieces of {self.piece}"] * bool(self.piece)
        parts = [*self._begun(), *self._set("sink", "max_logits", "fp32_out"), *paged, self.softmax]
        return f"{', '.join(parts)}; {self.tile}"
