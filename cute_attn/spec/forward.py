"""What the machine code of a forward depends on, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from .attention import AttentionSpec
from .tiles import TileConfig

__all__ = ["PACKED_HEADS", "ForwardSpec", "Softmax"]

Softmax = Literal["stale", "exact"]
PACKED_HEADS = (1, 2, 4, 8, 16, 32, 64)  # up to the rows of a warpgroup


@dataclass(frozen=True)
class ForwardSpec(AttentionSpec):
    """The configuration of one forward; see AttentionSpec for its first fields.

    dtype: also of the output, without fp32_out.
    sink: whether a sink joins the softmax in the epilogue (per head or per row is a matter of strides).
    max_logits, max_scores: whether the largest score of each head, of each row is returned; needs softmax="exact".
    softmax: "stale" keeps an old row maximum while it serves; "exact" looks for the maximum in every tile.
    fp32_out: whether the output is left in fp32, to be merged with that over other keys.
    piece: keys that one TMA box brings of a page, where K and V lie in a cache, of which lengths and a window say what
        rows attend; 0 where they are tensors of their own.
    window: of pieces, whether rows do not reach back to key 0.
    packed_heads: query heads of a key head, rounded up to a power of two, whose rows share tiles; with the stale
        softmax, rounded output and neither pages nor graphs. 1 where a tile has rows of one head.
    tile: see TileConfig.
    """

    op: ClassVar[str] = "fwd"

    sink: bool = False
    max_logits: bool = False
    max_scores: bool = False
    softmax: Softmax = "stale"
    fp32_out: bool = False
    piece: int = 0
    window: bool = False
    packed_heads: int = 1
    tile: TileConfig = field(default_factory=TileConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_logits", "max_scores"):
            if getattr(self, name) and self.softmax != "exact":
                raise ValueError(f"ForwardSpec.{name} needs softmax='exact', got softmax={self.softmax!r}")
        if self.softmax == "stale" and self.tile.consumers != 2:
            raise ValueError(
                "ForwardSpec.softmax='stale' keeps two register sets for P, which fit two consumer warpgroups "
                f"(tile.m = 128), got tile.m = {self.tile.m}"
            )
        if self.piece and (self.piece < 8 or self.piece % 8 or self.tile.n % self.piece):
            raise ValueError(
                f"ForwardSpec.piece must be 0 or a multiple of 8 that divides tile.n, {self.tile.n}, got {self.piece}"
            )
        graphs = self.score.graph or self.mask.predicate
        if self.piece and (not self.mask.is_bounded or graphs):
            raise ValueError(
                "ForwardSpec.piece needs a mask of intervals, which a cache's lengths say, and no graphs, got "
                f"{self.mask} and {self.score}"
            )
        if self.window and not self.piece:
            raise ValueError("ForwardSpec.window is of pieces, whose rows have no other bounds, got piece=0")
        if self.packed_heads not in PACKED_HEADS:
            allowed = ", ".join(map(str, PACKED_HEADS))
            raise ValueError(f"ForwardSpec.packed_heads must be one of {allowed}, got {self.packed_heads}")
        if self.packed_heads > 1 and (self.softmax != "stale" or self.fp32_out or self.piece or graphs):
            raise ValueError(
                "ForwardSpec.packed_heads needs softmax='stale', no fp32_out, no piece and no graphs, got "
                f"softmax={self.softmax!r}, fp32_out={self.fp32_out}, piece={self.piece}, {self.mask} and {self.score}"
            )

    def __str__(self) -> str:
        paged = [f"pieces of {self.piece}"] * bool(self.piece) + ["window"] * self.window
        packed = [f"{self.packed_heads} heads a tile"] * (self.packed_heads > 1)
        named = self._set("sink", "max_logits", "max_scores", "fp32_out")
        parts = [*self._begun(), *named, *paged, *packed, self.softmax]
        return f"{', '.join(parts)}; {self.tile}"
