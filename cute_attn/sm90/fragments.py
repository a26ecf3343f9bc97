"""Accumulator fragments in registers."""

import cutlass.cute as cute
from cutlass import Int32, range_constexpr

from .ptx import pack

__all__ = ["pack_fragment"]


@cute.jit
def pack_fragment(values, packed, bf16):
    """fp32 registers rounded to pairs; accumulator and A fragment have one order, so no layout is involved."""
    packed = cute.recast_tensor(packed, Int32)
    for k in range_constexpr(cute.size(packed)):
        packed[k] = pack(values[2 * k], values[2 * k + 1], bf16)
