"""What machine code knows of a mask."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

from .canonical import digest
from .checks import check_fields

__all__ = ["Layers", "MaskForm"]

Layers = Literal[0, 1, 2, "many"]


@dataclass(frozen=True)
class MaskForm:
    """Which bounds of a row's intervals the partial tiles are tested against.

    layers: intervals of a row; 0 if rows attend every key, so that only the end of the keys is tested; "many" for three
        and more, of which a tile reads those that meet it.
    has_lower, has_upper: whether `lo <= key`, `key < hi` are tested.
    predicate: the text of a graph, see `cute_attn.mods.graph`, that thins the intervals: of their pairs those are
        attended where it holds. "" for none.
    has_certain: whether some intervals are marked, all of whose pairs are attended whatever the predicate says; layers
        is then "many".

    Raises TypeError or ValueError for a combination that no kernel serves.
    """

    layers: Layers = 0
    has_lower: bool = False
    has_upper: bool = True
    predicate: str = ""
    has_certain: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        bounds = f"got has_lower={self.has_lower}, has_upper={self.has_upper}"
        if self.layers == 0 and (self.has_lower or not self.has_upper):
            raise ValueError(f"MaskForm with layers=0 tests the end of the keys and nothing else, {bounds}")
        if self.layers == 1 and not (self.has_lower or self.has_upper):
            raise ValueError(f"MaskForm with layers=1 needs a bound to test, {bounds}; a mask without is layers=0")
        if self.layers in (2, "many") and not (self.has_lower and self.has_upper):
            raise ValueError(f"MaskForm with layers={self.layers!r} tests both bounds, {bounds}")
        if self.has_certain and not (self.predicate and self.layers == "many"):
            raise ValueError(
                "MaskForm.has_certain marks intervals where a predicate is not asked, and needs one and layers='many', "
                f"got layers={self.layers!r}, {'a' if self.predicate else 'no'} predicate"
            )

    @classmethod
    @functools.cache
    def of(
        cls, layers: int, has_lower: bool, has_upper: bool, predicate: str = "", has_certain: bool = False
    ) -> MaskForm:
        """That of a mask with so many intervals a row.

        has_lower, has_upper: whether some of them begin behind the first key, end before the last.
        """
        if has_certain:
            return cls("many", True, True, predicate, True)
        if layers == 0 or not (has_lower or has_upper):
            return cls(predicate=predicate)
        if layers == 1:
            return cls(1, has_lower, has_upper, predicate)
        return cls(2 if layers == 2 else "many", True, True, predicate)

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
        thinned = f" thinned by {digest(self.predicate)}" if self.predicate else ""
        return f"layers {self.layers} ({bounds}){thinned}{' unless certain' * self.has_certain}"
