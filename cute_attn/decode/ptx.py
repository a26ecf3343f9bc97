"""Single PTX instructions that the DSL does not offer."""

from typing import Any

from cutlass import Int32, Int64
from cutlass._mlir.dialects import llvm
from cutlass.cutlass_dsl import T, dsl_user_op

from cute_attn.sm90.ptx import asm

__all__ = ["copy_16_bytes", "fp8_to_fp16", "load_matrices", "permute_bytes", "subtract_fp16"]


@dsl_user_op
def copy_16_bytes(source: Int64, target: Int32, size: Int32, *, loc: Any = None, ip: Any = None) -> None:
    """Global to shared memory, asynchronously; of the 16 bytes `size` come from the source, the others are zero."""
    operands = [
        Int32(target).ir_value(loc=loc, ip=ip),
        Int64(source).ir_value(loc=loc, ip=ip),
        Int32(size).ir_value(loc=loc, ip=ip),
    ]
    asm(None, operands, "cp.async.cg.shared.global [$0], [$1], 16, $2;", "r,l,r", loc, ip, has_side_effects=True)


@dsl_user_op
def fp8_to_fp16(x: Int32, kind: str, upper: bool, *, loc: Any = None, ip: Any = None) -> Int32:
    """The upper or the lower two bytes, "e4m3" or "e5m2", as a pair of fp16."""
    text = f"{{ .reg .b16 l, h; mov.b32 {{l, h}}, $1; cvt.rn.f16x2.{kind}x2 $0, {'h' if upper else 'l'}; }}"
    return Int32(asm(T.i32(), [Int32(x).ir_value(loc=loc, ip=ip)], text, "=r,r", loc, ip, has_side_effects=True))


@dsl_user_op
def permute_bytes(x: Int32, y: Int32, selector: int, *, loc: Any = None, ip: Any = None) -> Int32:
    """Four of the eight bytes of x and y: nibble i of the selector says which is byte i."""
    operands = [Int32(v).ir_value(loc=loc, ip=ip) for v in (x, y)]
    return Int32(asm(T.i32(), operands, f"prmt.b32 $0, $1, $2, {selector};", "=r,r,r", loc, ip, has_side_effects=True))


@dsl_user_op
def subtract_fp16(x: Int32, y: Int32, *, loc: Any = None, ip: Any = None) -> Int32:
    """A pair of fp16 less another."""
    operands = [Int32(v).ir_value(loc=loc, ip=ip) for v in (x, y)]
    return Int32(asm(T.i32(), operands, "sub.rn.f16x2 $0, $1, $2;", "=r,r,r", loc, ip, has_side_effects=True))


@dsl_user_op
def load_matrices(address: Int32, *, loc: Any = None, ip: Any = None) -> list[Int32]:
    """Four 8 x 8 matrices of 16-bit elements, transposed; lane 8i + j gives the address of row j of matrix i."""
    text = "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {$0, $1, $2, $3}, [$4];"
    kind = llvm.StructType.get_literal([T.i32()] * 4)
    result = asm(kind, [Int32(address).ir_value(loc=loc, ip=ip)], text, "=r,=r,=r,=r,r", loc, ip, has_side_effects=True)
    return [Int32(llvm.extractvalue(T.i32(), result, [i], loc=loc, ip=ip)) for i in range(4)]
