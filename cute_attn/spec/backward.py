"""What the machine code of a backward depends on, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from . import canonical as text_of
from .forward import HEAD_DIMS, Dtype, Layers
from .tiles import BackwardTile

__all__ = ["BackwardScore", "BackwardSpec"]

BackwardScore = Literal["plain", "softcap"]


@dataclass(frozen=True)
class BackwardSpec:
    """The configuration of one backward: preprocess, main kernel and postprocess. Equal specs have equal machine code.

    dtype: of q, k, v, the output and, without fp32_gradients, the gradients.
    head_dim, head_dim_v, layers, has_lower, has_upper: as in ForwardSpec.
    score: "softcap" if scores are `softcap * tanh(scale * q.k / softcap)`; "plain" takes any finite scale.
    dq, dk, dv: which gradients are computed; at least one.
    dlse: whether the log-sum-exp has a gradient.
    planes_by_head: whether query heads that share a key head have masks, and so runs of tiles, of their own.
    deterministic: whether the sums of dQ have a fixed order.
    fp32_gradients: whether dq, dk and dv are left in fp32, to be added to what other keys and queries contribute.
    tile: see BackwardTile.

    Raises TypeError or ValueError for a combination that no kernel serves.
    """

    dtype: Dtype = "bf16"
    head_dim: int = 128
    head_dim_v: int = 128
    layers: Layers = 0
    has_lower: bool = False
    has_upper: bool = True
    score: BackwardScore = "plain"
    dq: bool = True
    dk: bool = True
    dv: bool = True
    dlse: bool = False
    planes_by_head: bool = False
    deterministic: bool = False
    fp32_gradients: bool = False
    tile: BackwardTile = field(default_factory=BackwardTile)

    @property
    def op(self) -> Literal["bwd"]:
        return "bwd"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("dtype", get_args(Dtype)),
            ("layers", get_args(Layers)),
            ("score", get_args(BackwardScore)),
        ):
            value = getattr(self, name)
            if not any(value == a and type(value) is type(a) for a in allowed):
                raise ValueError(f"BackwardSpec.{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
        for name in (
            "has_lower",
            "has_upper",
            "dq",
            "dk",
            "dv",
            "dlse",
            "planes_by_head",
            "deterministic",
            "fp32_gradients",
        ):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"BackwardSpec.{name} must be a bool, got {getattr(self, name)!r}")
        if not isinstance(self.tile, BackwardTile):
            raise TypeError(f"BackwardSpec.tile must be a BackwardTile, got {self.tile!r}")
        if (self.head_dim, self.head_dim_v) not in HEAD_DIMS:
            raise ValueError(
                f"BackwardSpec.head_dim and head_dim_v must be one of {', '.join(map(str, HEAD_DIMS))}, "
                f"got ({self.head_dim}, {self.head_dim_v})"
            )
        if not (self.dq or self.dk or self.dv):
            raise ValueError("BackwardSpec with dq, dk and dv all False computes nothing")
        if self.deterministic and not self.dq:
            raise ValueError(
                "BackwardSpec.deterministic orders the sums of dQ, got dq=False: dK and dV have one order anyway"
            )
        self._check_mask()

    def _check_mask(self) -> None:
        bounds = f"got has_lower={self.has_lower}, has_upper={self.has_upper}"
        if self.layers == 0 and (self.has_lower or not self.has_upper):
            raise ValueError(f"BackwardSpec with layers=0 tests the end of the keys and nothing else, {bounds}")
        if self.layers == 1 and not (self.has_lower or self.has_upper):
            raise ValueError(f"BackwardSpec with layers=1 needs a bound to test, {bounds}; a mask without is layers=0")
        if self.layers in (2, "many") and not (self.has_lower and self.has_upper):
            raise ValueError(f"BackwardSpec with layers={self.layers!r} tests both bounds, {bounds}")
        if self.score == "softcap" and self.layers in (1, 2):
            raise ValueError(
                f"BackwardSpec with score='softcap' has no registers for the bounds of layers={self.layers}; "
                "layers='many' reads them layer by layer"
            )

    def canonical(self) -> str:
        """JSON with sorted keys: equal for equal specs, in every process, and unlike that of any forward."""
        return text_of.canonical(self)

    @classmethod
    def from_canonical(cls, text: str) -> BackwardSpec:
        """The inverse of `canonical`. Raises ValueError or TypeError for anything that is not a backward's spec."""
        return text_of.parse(cls, "bwd", text)

    def __str__(self) -> str:
        dims = f"{self.head_dim}" if self.head_dim == self.head_dim_v else f"{self.head_dim}/{self.head_dim_v}"
        bounds = "+".join(["lower"] * self.has_lower + ["upper"] * self.has_upper)
        gradients = " ".join(["dq"] * self.dq + ["dk"] * self.dk + ["dv"] * self.dv)
        extras: list[str] = [self.score] * (self.score != "plain")
        extras += [
            name for name in ("dlse", "planes_by_head", "deterministic", "fp32_gradients") if getattr(self, name)
        ]
        parts = [f"bwd {self.dtype} head_dim {dims}", f"layers {self.layers} ({bounds})", gradients, *extras]
        return f"{', '.join(parts)}; {self.tile}"
