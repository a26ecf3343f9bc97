"""Bulk copies of contiguous bytes between global and shared memory, without a TMA map.

One thread issues them. Addresses and sizes are multiples of 16 bytes.
"""

from typing import Any

import cutlass.cute as cute
from cutlass import Int32
from cutlass._mlir.dialects import llvm
from cutlass.cutlass_dsl import dsl_user_op

__all__ = ["load_bulk", "reduce_add_bulk"]


def _asm(operands: list[Any], text: str, constraints: str, loc: Any, ip: Any) -> None:
    llvm.inline_asm(
        None,
        operands,
        text,
        constraints,
        has_side_effects=True,
        is_align_stack=False,
        asm_dialect=llvm.AsmDialect.AD_ATT,
        loc=loc,
        ip=ip,
    )


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
    _asm(operands, text, "r,l,r,r", loc, ip)


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
    _asm(operands, "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [$0], [$1], $2;", "l,r,r", loc, ip)
