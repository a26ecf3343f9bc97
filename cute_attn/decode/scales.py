"""The scales of tokens of 8-bit caches: fetched ahead, since they lie behind a page of the table."""

from dataclasses import dataclass

import cutlass.cute as cute
from cutlass import Float32, Int32, range_constexpr

from .arguments import Tensors
from .work import Work

__all__ = ["EXPONENT", "LARGEST", "ONE", "SMALLEST", "TokenScales", "inverse_bits"]

SMALLEST = 1 << 23  # the bits of the smallest power of two in fp32
LARGEST = 253 << 23  # and of the largest whose inverse is one too
ONE = 127 << 23
EXPONENT = 0x7F800000


def inverse_bits(bits: Int32) -> Int32:
    """The bits of one over a power of two."""
    return (254 << 23) - bits


@dataclass(frozen=True)
class TokenScales:
    """The scales of a thread's two keys of a tile, `first_key` of it and 8 further on.

    Pages are looked up two tiles ahead, scales one: nobody waits for two loads in a row.
    """

    keys: int  # of a tile
    first_key: Int32
    pages: cute.Tensor
    k_next: cute.Tensor
    v_next: cute.Tensor
    k: cute.Tensor
    v: cute.Tensor

    @classmethod
    def make(cls, keys: int, first_key: Int32) -> "TokenScales":
        scales = [cute.make_rmem_tensor(2, Float32) for _ in range(4)]
        return cls(keys, first_key, cute.make_rmem_tensor(2, Int32), *scales)

    def start(self, tensors: Tensors, work: Work) -> None:
        self.look_up(tensors, work, work.first)
        self.fetch(tensors, work, work.first)
        self.look_up(tensors, work, work.first + 1)

    @cute.jit
    def advance(self, tensors: Tensors, work: Work, tile: Int32):
        """k and v become those of `tile`."""
        for h in range_constexpr(2):
            self.k[h] = self.k_next[h]
            self.v[h] = self.v_next[h]
        self.fetch(tensors, work, tile + 1)
        self.look_up(tensors, work, tile + 2)

    @cute.jit
    def look_up(self, tensors: Tensors, work: Work, tile: Int32):
        for h in range_constexpr(2):
            token = tile * self.keys + self.first_key + 8 * h
            self.pages[h] = Int32(-1)
            if token >= work.lo and token < work.length:
                self.pages[h] = tensors.table[work.batch, token // tensors.k.shape[1]]

    @cute.jit
    def fetch(self, tensors: Tensors, work: Work, tile: Int32):
        for h in range_constexpr(2):
            page, within = self.pages[h], (tile * self.keys + self.first_key + 8 * h) % tensors.k.shape[1]
            self.k_next[h] = 0.0
            self.v_next[h] = 0.0
            if page >= 0 and page < tensors.k.shape[0]:
                self.k_next[h] = tensors.k_scales[page, within, work.head]
                self.v_next[h] = tensors.v_scales[page, within, work.head]
