"""Single PTX instructions that the DSL does not offer, or offers with other semantics."""

from collections.abc import Callable
from typing import Any

import cutlass
from cutlass import Boolean, Float32, Int32, Int64, Uint32
from cutlass._mlir.dialects import llvm
from cutlass.cutlass_dsl import T, dsl_user_op

__all__ = [
    "add_vector",
    "asm",
    "bits_from",
    "exp2",
    "fma",
    "has_bit",
    "keep_before",
    "keep_where",
    "not_before",
    "opaque_zero",
    "pack",
    "permute_bytes",
    "rotate_left",
    "shift_left",
    "store_matrices",
    "tanh",
    "thread_here",
    "wide_address",
    "with_bit",
]


def asm(
    result: Any, operands: list[Any], text: str, constraints: str, loc: Any, ip: Any, has_side_effects: bool = False
) -> Any:
    """What inline PTX gives. has_side_effects: whether it stays where it is, though nobody reads the result."""
    return llvm.inline_asm(
        result,
        operands,
        text,
        constraints,
        has_side_effects=has_side_effects,
        is_align_stack=False,
        asm_dialect=llvm.AsmDialect.AD_ATT,
        loc=loc,
        ip=ip,
    )


@dsl_user_op
def shift_left(x: Uint32, n: Uint32, *, loc: Any = None, ip: Any = None) -> Uint32:
    """`x << n`, zero for n of 32 and more: PTX clamps where LLVM's shift is undefined."""
    operands = [Uint32(v).ir_value(loc=loc, ip=ip) for v in (x, n)]
    return Uint32(asm(T.i32(), operands, "shl.b32 $0, $1, $2;", "=r,r,r", loc, ip))


def bits_from(bit: Int32) -> Uint32:
    """The bits of a word from one on, which may lie on either side of it."""
    return shift_left(Uint32(0xFFFFFFFF), cutlass.max(bit, 0))


@dsl_user_op
def rotate_left(x: Uint32, n: Uint32, *, loc: Any = None, ip: Any = None) -> Uint32:
    """x with its bits moved up by n, those that leave it coming in below."""
    operands = [Uint32(v).ir_value(loc=loc, ip=ip) for v in (x, n)]
    return Uint32(asm(T.i32(), operands, "shf.l.wrap.b32 $0, $1, $1, $2;", "=r,r,r", loc, ip))


@dsl_user_op
def permute_bytes(low: Uint32, high: Uint32, which: Int32, *, loc: Any = None, ip: Any = None) -> Uint32:
    """Four of the bytes 0 to 3 of one word and 4 to 7 of the other: hexadecimal digit i of `which` names byte i."""
    operands = [value.ir_value(loc=loc, ip=ip) for value in (Uint32(low), Uint32(high), Int32(which))]
    return Uint32(asm(T.i32(), operands, "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", loc, ip))


@dsl_user_op
def not_before(x: Int32, *, loc: Any = None, ip: Any = None) -> Int32:
    """x, computed here: what depends on it is not hoisted out of a loop, to wait in registers that are short there."""
    operands = [Int32(x).ir_value(loc=loc, ip=ip)]
    return Int32(asm(T.i32(), operands, "mov.b32 $0, $1;", "=r,r", loc, ip, has_side_effects=True))


@dsl_user_op
def wide_address(pointer: Any, *, loc: Any = None, ip: Any = None) -> Int64:
    """An address in global memory, computed here, to wait in registers for where it is used."""
    operands = [pointer.toint(loc=loc, ip=ip).ir_value(loc=loc, ip=ip)]
    return Int64(asm(T.i64(), operands, "mov.b64 $0, $1;", "=l,l", loc, ip, has_side_effects=True))


@dsl_user_op
def thread_here(*, loc: Any = None, ip: Any = None) -> Int32:
    """The index of this thread in its CTA, read here: nothing that depends on it waits in registers from before."""
    return Int32(asm(T.i32(), [], "mov.u32 $0, %tid.x;", "=r", loc, ip, has_side_effects=True))


@dsl_user_op
def store_matrices(address: Int32, a: Int32, b: Int32, c: Int32, d: Int32, *, loc: Any = None, ip: Any = None) -> None:
    """Four 8 x 8 matrices of 16-bit elements to shared memory; lane 8i + j gives the address of row j of matrix i."""
    operands = [Int32(v).ir_value(loc=loc, ip=ip) for v in (address, a, b, c, d)]
    text = "stmatrix.sync.aligned.m8n8.x4.shared.b16 [$0], {$1, $2, $3, $4};"
    asm(None, operands, text, "r,r,r,r,r", loc, ip, has_side_effects=True)


@dsl_user_op
def add_vector(target: Int64, values: Any, *, loc: Any = None, ip: Any = None) -> None:
    """target += values: four fp32 in global memory, aligned to 16 bytes, each added atomically."""
    operands = [Int64(target).ir_value(loc=loc, ip=ip)]
    operands += [Float32(v).ir_value(loc=loc, ip=ip) for v in values]
    text = "red.relaxed.gpu.global.add.v4.f32 [$0], {$1, $2, $3, $4};"
    asm(None, operands, text, "l,f,f,f,f", loc, ip, has_side_effects=True)


@dsl_user_op
def pack(low: Float32, high: Float32, bf16: bool, *, loc: Any = None, ip: Any = None) -> Int32:
    """Two fp32 rounded to one register of bf16 or fp16."""
    operands = [Float32(v).ir_value(loc=loc, ip=ip) for v in (low, high)]
    text = f"cvt.rn.{'bf16x2' if bf16 else 'f16x2'}.f32 $0, $2, $1;"
    return Int32(asm(T.i32(), operands, text, "=r,f,f", loc, ip))


@dsl_user_op
def opaque_zero(*, loc: Any = None, ip: Any = None) -> Float32:
    """0.0 where it is asked for: a constant that the compiler neither knows nor moves."""
    return Float32(asm(T.f32(), [], "mov.f32 $0, 0f00000000;", "=f", loc, ip, has_side_effects=True))


@dsl_user_op
def keep_before(x: Float32, key: Int32, end: Int32, also: Any = None, *, loc: Any = None, ip: Any = None) -> Float32:
    """x if `key < end` and `also` holds, if given; else -inf.

    One comparison and one select: the compiler, left to itself, makes a select of each condition.
    """
    values = [Float32(x).ir_value(loc=loc, ip=ip), *(Int32(v).ir_value(loc=loc, ip=ip) for v in (key, end))]
    kinds, both = "=f,f,r,r", ""
    if also is not None:
        values.append(Boolean(also).ir_value(loc=loc, ip=ip))
        kinds, both = f"{kinds},b", "and.pred q, q, $4; "
    text = f"{{ .reg .pred q; setp.lt.s32 q, $2, $3; {both}selp.f32 $0, $1, 0fFF800000, q; }}"
    return Float32(asm(T.f32(), values, text, kinds, loc, ip))


@dsl_user_op
def keep_where(x: Float32, keep: Boolean, *, loc: Any = None, ip: Any = None) -> Float32:
    """x or -inf, with one select: the compiler, left to itself, makes one of each part of a condition."""
    operands = [Float32(x).ir_value(loc=loc, ip=ip), Boolean(keep).ir_value(loc=loc, ip=ip)]
    return Float32(asm(T.f32(), operands, "selp.f32 $0, $1, 0fFF800000, $2;", "=f,f,b", loc, ip))


@dsl_user_op
def with_bit(word: Uint32, bit: int, condition: Boolean, *, loc: Any = None, ip: Any = None) -> Uint32:
    """A word, in which a bit is set where a condition holds."""
    operands = [Uint32(word).ir_value(loc=loc, ip=ip), Boolean(condition).ir_value(loc=loc, ip=ip)]
    return Uint32(asm(T.i32(), operands, f"@$2 or.b32 $0, $0, {1 << bit};", "=r,0,b", loc, ip))


@dsl_user_op
def has_bit(word: Uint32, bit: int, *, loc: Any = None, ip: Any = None) -> Boolean:
    """Whether a bit of a word is set, with one instruction: the compiler, left to itself, may shift it first."""
    text = f"{{ .reg .b32 x; and.b32 x, $1, {1 << bit}; setp.ne.u32 $0, x, 0; }}"
    return Boolean(asm(T.bool(), [Uint32(word).ir_value(loc=loc, ip=ip)], text, "=b,r", loc, ip))


def _float_instruction(text: str, operands: int) -> Callable[..., Float32]:
    constraints = ",".join(["=f"] + ["f"] * operands)

    @dsl_user_op
    def instruction(*args: Float32, loc: Any = None, ip: Any = None) -> Float32:
        values = [Float32(v).ir_value(loc=loc, ip=ip) for v in args]
        return Float32(asm(T.f32(), values, text, constraints, loc, ip))

    return instruction


exp2 = _float_instruction("ex2.approx.ftz.f32 $0, $1;", 1)
tanh = _float_instruction("tanh.approx.f32 $0, $1;", 1)  # absolute error below 2^-10.9
fma = _float_instruction("fma.rn.f32 $0, $1, $2, $3;", 3)
