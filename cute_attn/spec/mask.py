"""What machine code knows of a mask."""

from __future__ import annotations

from dataclasses import dataclass

from .canonical import digest
from .checks import check_fields

__all__ = ["MaskForm"]


@dataclass(frozen=True)
class MaskForm:
    """What the partial tiles are tested for: one form serves intervals of any number, with any bounds.

    is_bounded: whether rows have intervals of their own; otherwise they attend every key, and only the end of the keys
        is tested.
    predicate: the text of a graph, see `cute_attn.mods.graph`, that thins the intervals: of their pairs those are
        attended where it holds. "" for none.
    has_certain: whether some intervals are marked, all of whose pairs are attended whatever the predicate says.

    Raises TypeError or ValueError for a combination that no kernel serves.
    """

    is_bounded: bool = False
    predicate: str = ""
    has_certain: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.has_certain and not (self.predicate and self.is_bounded):
            raise ValueError(
                "MaskForm.has_certain marks intervals where a predicate is not asked, and needs one and is_bounded, "
                f"got is_bounded={self.is_bounded}, {'a' if self.predicate else 'no'} predicate"
            )

    def __str__(self) -> str:
        thinned = f" thinned by {digest(self.predicate)}" if self.predicate else ""
        return f"{'intervals' if self.is_bounded else 'all keys'}{thinned}{' unless certain' * self.has_certain}"
