"""What the machine code of attention over a cache depends on, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from . import canonical as text_of
from .attention import ELEMENT_BYTES, Dtype
from .checks import check_fields
from .score import ScoreForm

__all__ = ["DECODE_HEAD_DIMS", "GATHER", "PIECES", "DecodeSpec", "DecodeTile"]

Cache = Literal["same", "int8", "e4m3", "e5m2"]

# The (head_dim, head_dim_v) that kernels are built for: whole blocks of 64 dims, which are rows of a product.
DECODE_HEAD_DIMS = ((64, 64), (128, 128), (192, 128), (192, 192), (256, 256))
GATHER = 0  # the piece of a cache whose keys are gathered one by one
PIECES = (GATHER, 16, 32, 64)


@dataclass(frozen=True)
class DecodeTile:
    """How a decode kernel cuts its problem: one consumer warpgroup, keys as rows of its products.

    rows: pairs of a new token and a query head that a CTA holds, columns of its products.
    stages: depth of the rings of K and of V tiles.

    Raises TypeError or ValueError for anything else.
    """

    rows: int = 8
    stages: int = 2

    @property
    def m(self) -> int:
        return self.rows

    @property
    def n(self) -> int:
        """Keys, one row of the tensor core's products each; more would leave fewer CTAs on a multiprocessor."""
        return 64

    def __post_init__(self) -> None:
        check_fields(self)
        for name, allowed in (("rows", (8, 16, 32, 64)), ("stages", (2, 4))):
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"DecodeTile.{name} must be one of {', '.join(map(str, allowed))}, got {value}")

    def __str__(self) -> str:
        return f"{self.m}x{self.n}, {self.stages} stages"


@dataclass(frozen=True)
class DecodeSpec:
    """The configuration of one decode kernel: equal specs have equal machine code, and no run-time value is in it.

    dtype: of q and of the output. cache: of K and V, "same" as q.
    head_dim, head_dim_v: one of DECODE_HEAD_DIMS.
    piece: keys that one TMA box brings, a divisor of the page size; GATHER for any page size.
    score: see ScoreForm; 8-bit caches scale or cap.
    tree: whether a mask tells which of the new tokens attend which. sink: whether a sink joins the softmax.
    split: whether the keys of a sequence are divided among CTAs, whose results a second kernel merges.
    token_scales: whether each token of an 8-bit cache has scales of its own, else each head of a sequence has.
    tile: see DecodeTile.

    Raises TypeError or ValueError for a combination that no kernel serves.
    """

    op: ClassVar[str] = "decode"

    dtype: Dtype = "bf16"
    cache: Cache = "same"
    head_dim: int = 128
    head_dim_v: int = 128
    piece: int = 64
    score: ScoreForm = field(default_factory=ScoreForm)
    tree: bool = False
    sink: bool = False
    split: bool = False
    token_scales: bool = False
    tile: DecodeTile = field(default_factory=DecodeTile)

    @property
    def eight(self) -> bool:
        """Whether the cache has 8 bits a number."""
        return self.cache != "same"

    @property
    def cache_bytes(self) -> int:
        """Of an element of K and V."""
        return 1 if self.eight else ELEMENT_BYTES[self.dtype]

    def __post_init__(self) -> None:
        check_fields(self)
        if self.piece not in PIECES:
            raise ValueError(f"DecodeSpec.piece must be one of {', '.join(map(str, PIECES))}, got {self.piece}")
        dims = (self.head_dim, self.head_dim_v)
        if dims not in DECODE_HEAD_DIMS:
            allowed_dims = ", ".join(map(str, DECODE_HEAD_DIMS))
            raise ValueError(f"DecodeSpec.head_dim and head_dim_v must be one of {allowed_dims}, got {dims}")
        if self.eight and not self.score.is_changed:
            raise ValueError("DecodeSpec with an 8-bit cache has a score of kind 'scaled' or 'softcap', got 'plain'")
        if self.token_scales and not self.eight:
            raise ValueError("DecodeSpec.token_scales needs an 8-bit cache, got cache='same'")

    def canonical(self) -> str:
        """JSON with sorted keys: equal for equal specs, in every process."""
        return text_of.canonical(self)

    @classmethod
    def from_canonical(cls, text: str) -> DecodeSpec:
        """The inverse of `canonical`. Raises ValueError or TypeError for anything that is not a spec."""
        return text_of.parse(cls, "decode", text)

    def __str__(self) -> str:
        dims = f"{self.head_dim}" if self.head_dim == self.head_dim_v else f"{self.head_dim}/{self.head_dim_v}"
        source = f"pieces of {self.piece}" if self.piece else "gathered"
        extras = [f"{self.cache} cache"] * self.eight + [str(self.score)] * self.score.is_changed
        extras += [name for name in ("tree", "sink", "split", "token_scales") if getattr(self, name)]
        return f"{', '.join([f'decode {self.dtype} head_dim {dims}', source, *extras])}; {self.tile}"
