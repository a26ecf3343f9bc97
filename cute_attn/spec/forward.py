"""What the machine code of a forward depends on, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from . import canonical as text_of
from .tiles import TileConfig

__all__ = ["HEAD_DIMS", "ForwardSpec", "Layers", "Score", "Softmax"]

Dtype = Literal["bf16", "fp16"]
Layers = Literal[0, 1, 2, "many"]
Score = Literal["plain", "scaled", "softcap"]
Softmax = Literal["stale", "exact"]

# The (head_dim, head_dim_v) that kernels are built for; other sizes run in the next larger pair, zero-filled by TMA.
HEAD_DIMS = ((64, 64), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256))


@dataclass(frozen=True)
class ForwardSpec:
    """The configuration of one forward: equal specs have equal machine code, and no run-time value is in it.

    dtype: of q, k, v and, without fp32_out, the output.
    head_dim, head_dim_v: one of HEAD_DIMS.
    layers: intervals of a row; 0 for a dense mask (only the end of the keys is tested), "many" for three and more.
    has_lower, has_upper: whether a partial tile needs the test `lo <= key`, `key < hi`.
    score: "plain" leaves the scale to the exponential and needs it positive; "scaled" multiplies the scores first, for
        any finite scale; "softcap" is `softcap * tanh(scale * q.k / softcap)`.
    sink: whether a sink joins the softmax in the epilogue (per head or per row is a matter of strides).
    max_logits: whether the largest score of each head is returned; needs softmax="exact".
    softmax: "stale" keeps an old row maximum while it serves; "exact" looks for the maximum in every tile.
    fp32_out: whether the output is left in fp32, to be merged with that over other keys.
    tile: see TileConfig.

    Raises TypeError or ValueError for a combination that no kernel serves.
    """

    dtype: Dtype = "bf16"
    head_dim: int = 128
    head_dim_v: int = 128
    layers: Layers = 0
    has_lower: bool = False
    has_upper: bool = True
    score: Score = "plain"
    sink: bool = False
    max_logits: bool = False
    softmax: Softmax = "stale"
    fp32_out: bool = False
    tile: TileConfig = field(default_factory=TileConfig)

    @property
    def op(self) -> Literal["fwd"]:
        return "fwd"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("dtype", get_args(Dtype)),
            ("layers", get_args(Layers)),
            ("score", get_args(Score)),
            ("softmax", get_args(Softmax)),
        ):
            value = getattr(self, name)
            if not any(value == a and type(value) is type(a) for a in allowed):
                raise ValueError(f"ForwardSpec.{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
        for name in ("has_lower", "has_upper", "sink", "max_logits", "fp32_out"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"ForwardSpec.{name} must be a bool, got {getattr(self, name)!r}")
        if not isinstance(self.tile, TileConfig):
            raise TypeError(f"ForwardSpec.tile must be a TileConfig, got {self.tile!r}")
        if (self.head_dim, self.head_dim_v) not in HEAD_DIMS:
            raise ValueError(
                f"ForwardSpec.head_dim and head_dim_v must be one of {', '.join(map(str, HEAD_DIMS))}, "
                f"got ({self.head_dim}, {self.head_dim_v})"
            )
        self._check_mask()
        self._check_softmax()

    def _check_mask(self) -> None:
        bounds = f"got has_lower={self.has_lower}, has_upper={self.has_upper}"
        if self.layers == 0 and (self.has_lower or not self.has_upper):
            raise ValueError(f"ForwardSpec with layers=0 tests the end of the keys and nothing else, {bounds}")
        if self.layers == 1 and not (self.has_lower or self.has_upper):
            raise ValueError(f"ForwardSpec with layers=1 needs a bound to test, {bounds}; a mask without is layers=0")
        if self.layers in (2, "many") and not (self.has_lower and self.has_upper):
            raise ValueError(f"ForwardSpec with layers={self.layers!r} tests both bounds, {bounds}")

    def _check_softmax(self) -> None:
        if self.max_logits and self.softmax != "exact":
            raise ValueError(f"ForwardSpec.max_logits needs softmax='exact', got softmax={self.softmax!r}")
        if self.softmax == "stale" and self.tile.consumers != 2:
            raise ValueError(
                "ForwardSpec.softmax='stale' keeps two register sets for P, which fit two consumer warpgroups "
                f"(tile.m = 128), got tile.m = {self.tile.m}"
            )

    def canonical(self) -> str:
        """JSON with sorted keys: equal for equal specs, in every process."""
        return text_of.canonical(self)

    @classmethod
    def from_canonical(cls, text: str) -> ForwardSpec:
        """The inverse of `canonical`. Raises ValueError or TypeError for anything that is not a spec."""
        return text_of.parse(cls, "fwd", text)

    def __str__(self) -> str:
        dims = f"{self.head_dim}" if self.head_dim == self.head_dim_v else f"{self.head_dim}/{self.head_dim_v}"
        bounds = "".join(s for s, on in (("lower", self.has_lower), ("+", self.has_lower and self.has_upper)) if on)
        bounds += "upper" if self.has_upper else ""
        extras: list[str] = [self.score] * (self.score != "plain")
        extras += [name for name in ("sink", "max_logits", "fp32_out") if getattr(self, name)]
        parts = [f"{self.op} {self.dtype} head_dim {dims}", f"layers {self.layers} ({bounds})", *extras, self.softmax]
        return f"{', '.join(parts)}; {self.tile}"
