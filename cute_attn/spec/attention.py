"""What the machine code of every attention kernel depends on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeVar

from . import canonical as text_of
from .checks import check_fields
from .mask import MaskForm
from .score import ScoreForm

__all__ = ["HEAD_DIMS", "AttentionSpec", "Dtype"]

Dtype = Literal["bf16", "fp16"]
AnySpec = TypeVar("AnySpec", bound="AttentionSpec")

# The (head_dim, head_dim_v) that kernels are built for; other sizes run in the next larger pair, zero-filled by TMA.
HEAD_DIMS = ((64, 64), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256))
ELEMENT_BYTES = {"bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class AttentionSpec:
    """Equal specs have equal machine code, and no run-time value is in them.

    dtype: of q, k and v.
    head_dim, head_dim_v: one of HEAD_DIMS.
    mask, score: see MaskForm and ScoreForm.

    Raises TypeError or ValueError for a combination that no kernel serves.
    """

    op: ClassVar[str]

    dtype: Dtype = "bf16"
    head_dim: int = 128
    head_dim_v: int = 128
    mask: MaskForm = field(default_factory=MaskForm)
    score: ScoreForm = field(default_factory=ScoreForm)

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.head_dim, self.head_dim_v) not in HEAD_DIMS:
            raise ValueError(
                f"{type(self).__name__}.head_dim and head_dim_v must be one of {', '.join(map(str, HEAD_DIMS))}, "
                f"got ({self.head_dim}, {self.head_dim_v})"
            )

    @property
    def element_bytes(self) -> int:
        """Of q, k and v."""
        return ELEMENT_BYTES[self.dtype]

    def canonical(self) -> str:
        """JSON with sorted keys: equal for equal specs, in every process, and unlike that of any other operation."""
        return text_of.canonical(self)

    @classmethod
    def from_canonical(cls: type[AnySpec], text: str) -> AnySpec:
        """The inverse of `canonical`. Raises ValueError or TypeError for anything that is no spec of this operation."""
        return text_of.parse(cls, cls.op, text)

    def _begun(self) -> list[str]:
        """The text of a spec as far as all specs have it."""
        dims = f"{self.head_dim}" if self.head_dim == self.head_dim_v else f"{self.head_dim}/{self.head_dim_v}"
        return [f"{self.op} {self.dtype} head_dim {dims}", str(self.mask)]

    def _set(self, *names: str) -> list[str]:
        """What scores are, if not plain, and those of the names that are true."""
        changed = [str(self.score)] * self.score.is_changed
        return changed + [name for name in names if getattr(self, name)]
