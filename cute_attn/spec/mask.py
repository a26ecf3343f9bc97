"""What machine code knows of a mask."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

from .checks import check_fields

__all__ = ["Layers", "MaskForm"]

Layers = Literal[0, 1, 2, "many"]


@dataclass(frozen=True)
class MaskForm:
    """Which bounds of a row's intervals the partial tiles are tested against.

    layers: intervals of a row; 0 if rows attend every key, so that only the end of the keys is tested; "many" for three
        and more, of which a tile reads those that meet it.
    has_lower, has_upper: whether `lo <= key`, `key < hi` are tested.

    Raises TypeError or ValueError for a combination that no kernel serves.
    """

    layers: Layers = 0
    has_lower: bool = False
    has_upper: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        bounds = f"got has_lower={self.has_lower}, has_upper={self.has_upper}"
        if self.layers == 0 and (self.has_lower or not self.has_upper):
            raise ValueError(f"MaskForm with layers=0 tests the end of the keys and nothing else, {bounds}")
        if self.layers == 1 and not (self.has_lower or self.has_upper):
            raise ValueError(f"MaskForm with layers=1 needs a bound to test, {bounds}; a mask without is layers=0")
        if self.layers in (2, "many") and not (self.has_lower and self.has_upper):
            raise ValueError(f"MaskForm with layers={self.layers!r} tests both bounds, {bounds}")

    @classmethod
    @functools.cache
    def of(cls, layers: int, has_lower: bool, has_upper: bool) -> MaskForm:
        """That of a mask with so many intervals a row.

        has_lower, has_upper: whether some of them begin behind the first key, end before the last.
        """
        if layers == 0 or not (has_lower or has_upper):
            return cls()
        if layers == 1:
            return cls(1, has_lower, has_upper)
        return cls(2 if layers == 2 else "many", True, True)

    @property
    def is_bounded(self) -> bool:
        """Whether rows have bounds of their own."""
        return self.layers != 0

    @property
    def is_many(self) -> bool:
        """Whether bounds are read layer by layer."""
        return self.layers == "many"

    @property
    def fixed_layers(self) -> int:
        """How many layers every tile is tested against; 0 if bounds are read layer by layer or not at all."""
        return self.layers if isinstance(self.layers, int) else 0

    def __str__(self) -> str:
        bounds = "+".join(["lower"] * self.has_lower + ["upper"] * self.has_upper)
        return f"layers {self.layers} ({bounds})"
