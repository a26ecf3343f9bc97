"""What the machine code of a backward depends on, and nothing else."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from .spec import HEAD_DIMS, Dtype, Layers

__all__ = ["BackwardScore", "BackwardSpec", "BackwardTile"]

BackwardScore = Literal["plain", "softcap"]


@dataclass(frozen=True)
class BackwardTile:
    """How a backward kernel cuts its problem; its two consumer warpgroups share a tile.

    m: query rows of a tile, 64: more would need too many registers beside dK and dV.
    n: keys of a tile: 128, of which each warpgroup takes half, or 64, each taking half of the queries and of the dims.
    q_stages, do_stages: depths of the rings of Q and of dO tiles.
    dq_chunks: in how many pieces the dQ of a tile goes through shared memory.

    Raises TypeError or ValueError for anything else.
    """

    n: int = 128
    q_stages: int = 2
    do_stages: int = 2
    dq_chunks: int = 1

    @property
    def m(self) -> int:
        return 64

    def __post_init__(self) -> None:
        for name, allowed in (
            ("n", (64, 128)),
            ("q_stages", (2, 4)),
            ("do_stages", (1, 2, 4)),
            ("dq_chunks", (1, 2, 4)),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"BackwardTile.{name} must be an int, got {value!r}")
            if value not in allowed:
                raise ValueError(f"BackwardTile.{name} must be one of {', '.join(map(str, allowed))}, got {value}")

    def __str__(self) -> str:
        chunks = f", dQ in {self.dq_chunks} pieces" if self.dq_chunks > 1 else ""
        return f"{self.m}x{self.n}, stages {self.q_stages} + {self.do_stages}{chunks}"


@dataclass(frozen=True)
class BackwardSpec:
    """The configuration of one backward: preprocess, main kernel and postprocess. Equal specs have equal machine code.

    dtype: of q, k, v, the output and, without fp32_gradients, the gradients.
    head_dim, head_dim_v, layers, has_lower, has_upper: as in KernelSpec.
    score: "softcap" if scores are `softcap * tanh(scale * q.k / softcap)`; "plain" takes any finite scale.
    dq, dk, dv: which gradients are computed; at least one.
    dlse: whether the log-sum-exp has a gradient.
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
    deterministic: bool = False
    fp32_gradients: bool = False
    tile: BackwardTile = BackwardTile()

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
        for name in ("has_lower", "has_upper", "dq", "dk", "dv", "dlse", "deterministic", "fp32_gradients"):
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
        return json.dumps({"op": self.op, **asdict(self)}, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_canonical(cls, text: str) -> BackwardSpec:
        """The inverse of `canonical`. Raises ValueError or TypeError for anything that is not a backward's spec."""
        fields: dict[str, Any] = json.loads(text)
        if not isinstance(fields, dict) or fields.pop("op", None) != "bwd" or not isinstance(fields.get("tile"), dict):
            raise ValueError(f"not a backward's spec: {text!r}")
        return cls(**{**fields, "tile": BackwardTile(**fields["tile"])})

    def __str__(self) -> str:
        dims = f"{self.head_dim}" if self.head_dim == self.head_dim_v else f"{self.head_dim}/{self.head_dim_v}"
        bounds = "+".join(["lower"] * self.has_lower + ["upper"] * self.has_upper)
        gradients = " ".join(["dq"] * self.dq + ["dk"] * self.dk + ["dv"] * self.dv)
        extras: list[str] = [self.score] * (self.score != "plain")
        extras += [name for name in ("dlse", "deterministic", "fp32_gradients") if getattr(self, name)]
        parts = [f"bwd {self.dtype} head_dim {dims}", f"layers {self.layers} ({bounds})", gradients, *extras]
        return f"{', '.join(parts)}; {self.tile}"
