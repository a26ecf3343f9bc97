"""Which keys of a cache the last rows of a sequence attend: those in a window around their own position."""

from dataclasses import dataclass
from typing import Any

import cutlass
from cutlass import Int32

__all__ = ["Reach"]


@dataclass(frozen=True)
class Reach:
    """Of one sequence.

    length: its keys. rows: the last of its positions, more than it has keys at times.
    left, right: keys on either side of a row's position, as `launch/decode.py` limits them: no sum overflows.
    """

    length: Int32
    rows: Int32
    left: Int32
    right: Int32

    @classmethod
    def of(cls, length: Any, capacity: Any, rows: Any, left: Int32, right: Int32) -> "Reach":
        """length: as the cache has it, of any value."""
        return cls(cutlass.max(cutlass.min(length, capacity), 0), rows, left, right)

    @property
    def position(self) -> Int32:
        """Of row 0, negative where there are more rows than keys."""
        return self.length - self.rows

    def around(self, position: Any) -> tuple[Int32, Int32]:
        """The keys [lo, hi) of the row at a position, none of which falls with it; hi <= 0 where it attends none."""
        return cutlass.max(position - self.left, 0), cutlass.min(position + self.right + 1, self.length)
