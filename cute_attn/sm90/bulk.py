"""Bulk copies of contiguous bytes between global and shared memory, without a TMA map.

One thread issues them. Addresses and sizes are multiples of 16 bytes.
"""

from typing import Any

import cutlass.cute as cute
from cutlass import Int32
from cutlass.cutlass_dsl import dsl_user_op

from .ptx import asm

__all__ = ["load_bulk", "reduce_add_bulk"]


@dsl_user_op
def load_bulk(
    source: cute.Pointer,
    target: cute.Pointer,
    n_bytes: int | Int32,
    barrier: cute.Pointer,
    *,
    loc: Any = None,
    ip: Any = None,
) -> None:
    """Global to shared memory; the bytes count as transactions of an mbarrier."""
    operands = [
        target.toint(loc=loc, ip=ip).ir_value(loc=loc, ip=ip),
        source.toint(loc=loc, ip=ip).ir_value(loc=loc, ip=ip),
        Int32(n_bytes).ir_value(loc=loc, ip=ip),
        barrier.toint(loc=loc, ip=ip).ir_value(loc=loc, ip=ip),
    ]
    text = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [$0], [$1], $2, [$3];"
    asm(None, operands, text, "r,l,r,r", loc, ip, has_side_effects=True)


@dsl_user_op
def reduce_add_bulk(
    source: cute.Pointer, target: cute.Pointer, n_bytes: int | Int32, *, loc: Any = None, ip: Any = None
) -> None:
    """target += source, fp32, from shared to global memory, as part of the thread's next bulk group."""
    operands = [
        target.toint(loc=loc, ip=ip).ir_value(loc=loc, ip=ip),
        source.toint(loc=loc, ip=ip).ir_value(loc=loc, ip=ip),
        Int32(n_bytes).ir_value(loc=loc, ip=ip),
    ]
    text = "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [$0], [$1], $2;"
    asm(None, operands, text, "l,r,r", loc, ip, has_side_effects=True)
