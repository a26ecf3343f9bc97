"""Single PTX instructions that the DSL does not offer."""

from typing import Any

from cutlass import Int32, Int64
from cutlass._mlir.dialects import llvm
from cutlass.cutlass_dsl import dsl_user_op

__all__ = ["copy_16_bytes"]


@dsl_user_op
def copy_16_bytes(source: Int64, target: Int32, size: Int32, *, loc: Any = None, ip: Any = None) -> None:
    """Global to shared memory, asynchronously; of the 16 bytes `size` come from the source, the others are zero."""
    operands = [
        Int32(target).ir_value(loc=loc, ip=ip),
        Int64(source).ir_value(loc=loc, ip=ip),
        Int32(size).ir_value(loc=loc, ip=ip),
    ]
    llvm.inline_asm(
        None,
        operands,
        "cp.async.cg.shared.global [$0], [$1], 16, $2;",
        "r,l,r",
        has_side_effects=True,
        is_align_stack=False,
        asm_dialect=llvm.AsmDialect.AD_ATT,
        loc=loc,
        ip=ip,
    )
