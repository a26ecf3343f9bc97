"""Where tiles of keys, and of values, come from."""

from dataclasses import dataclass
from typing import Any

import cutlass.cute as cute

from .tiles import partition

__all__ = ["KeyTiles"]


@dataclass(frozen=True)
class KeyTiles:
    """The tiles of K, or of V, of one key head, which lie one behind another in a tensor.

    source, target: as one TMA copy sees them: (elements, tile), and (elements, slot) or (elements).
    n_bytes: that a copy brings.
    """

    atom: cute.CopyAtom
    source: cute.Tensor
    target: cute.Tensor
    n_bytes: int

    @classmethod
    def of(cls, atom: cute.CopyAtom, tensor: cute.Tensor, batch: Any, head: Any, shared: cute.Tensor) -> "KeyTiles":
        """tensor: (seq, dim, head, batch), as `load_atom` has made it. shared: (rows, dim[, slots])."""
        rows, dim = cute.size(shared, mode=[0]), cute.size(shared, mode=[1])
        target, source = partition(
            atom, shared, cute.local_tile(tensor[None, None, head, batch], (rows, dim), (None, 0))
        )
        return cls(atom, source, target, rows * dim * shared.element_type.width // 8)

    def load(self, tile: Any, barrier: cute.Pointer, slot: Any = None) -> None:
        """By one warp; lands in a slot if there are several."""
        target = self.target if slot is None else self.target[None, slot]
        cute.copy(self.atom, self.source[None, tile], target, tma_bar_ptr=barrier)
