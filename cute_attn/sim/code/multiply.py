"""One wgmma.mma_async as the PTX has it, before the rows of its registers are known."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..state.matrices import MmaTile
from .ptx import Reg


@dataclass(frozen=True)
class Multiply:
    """Shape, types and registers. Equal ones that differ in the registers of A alone add to one accumulator alike."""

    n: int
    k: int
    types: tuple[str, str]  # of A and B
    majors: tuple[int, int]  # 0: K-major, 1: M- or N-major
    sign: int
    accumulator: tuple[Reg, ...]
    fragment: tuple[Reg, ...]  # of A; empty if A is in shared memory

    @property
    def kind(self) -> tuple[object, ...]:
        """Equal for those that add to the same accumulator in the same way."""
        return (self.n, self.k, self.types, self.majors, self.sign, self.accumulator, bool(self.fragment))

    def tile(self, row_of: Callable[[Reg], int], locks: Mapping[Reg, int], chain: int) -> MmaTile:
        """The same in terms of rows; `locks` has the bit of each register, `chain` is equal for those of a kind."""
        return MmaTile(
            self.n,
            self.k,
            self.types,
            self.majors,
            self.sign,
            tuple(map(row_of, self.accumulator)),
            tuple(map(row_of, self.fragment)),
            functools.reduce(operator.or_, (locks[r] for r in self.accumulator), 0),
            functools.reduce(operator.or_, (locks[r] for r in self.fragment), 0),
            chain,
        )
