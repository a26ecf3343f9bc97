"""What each operation of a graph is in machine code: DSL values in, a DSL value out.

Floats are fp32, as the hardware approximates them: exponentials, logarithms, roots and quotients to a few units in the
last place, tanh to 2^-11, sin, cos and erf to 2^-20. Whole quotients and remainders are exact, as PyTorch's are.
"""

import math
from collections.abc import Callable
from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Float32, Int32, Int64
from cutlass._mlir.dialects import llvm
from cutlass.cutlass_dsl import T, dsl_user_op, select_

from cute_attn.sm90.ptx import asm, exp2, fma, tanh

from ..graph import Node

__all__ = ["STORED", "VALUES", "chosen", "compared", "computed", "constant", "read", "read_at", "smaller"]

VALUES: dict[str, Any] = {"f32": Float32, "i32": Int32, "i64": Int64, "bool": Boolean}
STORED: dict[str, Any] = {
    "f64": cutlass.Float64,
    "f32": Float32,
    "bf16": cutlass.BFloat16,
    "fp16": cutlass.Float16,
    "i64": Int64,
    "i32": Int32,
    "i16": cutlass.Int16,
    "i8": cutlass.Int8,
    "u8": cutlass.Uint8,
    "bool": cutlass.Uint8,
}
LOG2_E, LN_2 = math.log2(math.e), math.log(2.0)


def _instruction(text: str, operands: int, result: str = "f") -> Callable[..., Any]:
    """A PTX instruction of floats; its result is a float or, "r", an Int32."""

    @dsl_user_op
    def instruction(*args: Any, loc: Any = None, ip: Any = None) -> Any:
        values = [Float32(v).ir_value(loc=loc, ip=ip) for v in args]
        found = llvm.inline_asm(
            T.f32() if result == "f" else T.i32(),
            values,
            text,
            ",".join([f"={result}"] + ["f"] * operands),
            has_side_effects=False,
            is_align_stack=False,
            asm_dialect=llvm.AsmDialect.AD_ATT,
            loc=loc,
            ip=ip,
        )
        return Float32(found) if result == "f" else Int32(found)

    return instruction


_log2 = _instruction("lg2.approx.f32 $0, $1;", 1)
_reciprocal = _instruction("rcp.approx.f32 $0, $1;", 1)
_quotient = _instruction("div.full.f32 $0, $1, $2;", 2)
_exact_quotient = _instruction("div.rn.f32 $0, $1, $2;", 2)
_sqrt = _instruction("sqrt.approx.f32 $0, $1;", 1)
_rsqrt = _instruction("rsqrt.approx.f32 $0, $1;", 1)
_minimum = _instruction("min.NaN.f32 $0, $1, $2;", 2)
smaller = _instruction("min.f32 $0, $1, $2;", 2)  # of a number and NaN, the number
_maximum = _instruction("max.NaN.f32 $0, $1, $2;", 2)
_abs = _instruction("abs.f32 $0, $1;", 1)
_floor = _instruction("cvt.rmi.f32.f32 $0, $1;", 1)
_ceil = _instruction("cvt.rpi.f32.f32 $0, $1;", 1)
_round = _instruction("cvt.rni.f32.f32 $0, $1;", 1)
_trunc = _instruction("cvt.rzi.f32.f32 $0, $1;", 1)
_truncated = _instruction("cvt.rzi.s32.f32 $0, $1;", 1, "r")
_sine = _instruction("sin.approx.f32 $0, $1;", 1)
_cosine = _instruction("cos.approx.f32 $0, $1;", 1)


def chosen(condition: Any, x: Any, y: Any) -> Any:
    """x or y, values of one type, without a branch."""
    return type(x)(select_(condition, x, y))


# dtype of a captured tensor -> how an element is read as a value: PTX, result and its constraint. Such reads keep their
# order
_READ: dict[str, tuple[str, Any, str]] = {
    "f64": ("{ .reg .f64 x; ld.global.f64 x, [$1]; cvt.rn.f32.f64 $0, x; }", Float32, "f"),
    "f32": ("ld.global.f32 $0, [$1];", Float32, "f"),
    "bf16": ("{ .reg .b32 x; ld.global.u16 x, [$1]; shl.b32 x, x, 16; mov.b32 $0, x; }", Float32, "f"),
    "fp16": ("{ .reg .b16 x; ld.global.b16 x, [$1]; cvt.f32.f16 $0, x; }", Float32, "f"),
    "i64": ("ld.global.u64 $0, [$1];", Int64, "l"),
    "i32": ("ld.global.u32 $0, [$1];", Int32, "r"),
    "i16": ("ld.global.s16 $0, [$1];", Int32, "r"),
    "i8": ("ld.global.s8 $0, [$1];", Int32, "r"),
    "u8": ("ld.global.u8 $0, [$1];", Int32, "r"),
    "bool": ("ld.global.u8 $0, [$1];", Int32, "r"),
}


@dsl_user_op
def read(pointer: Any, stored: str, *, loc: Any = None, ip: Any = None) -> Any:
    """An element of a captured tensor of a dtype, as a value."""
    text, kind, constraint = _READ[stored]
    result = {"f": T.f32, "l": T.i64, "r": T.i32}[constraint]()
    found = kind(
        asm(result, [pointer.toint(loc=loc, ip=ip).ir_value(loc=loc, ip=ip)], text, f"={constraint},l", loc, ip)
    )
    return found != kind(0) if stored == "bool" else found


@dsl_user_op
def read_at(pointer: Any, offset: int, stored: str, *, loc: Any = None, ip: Any = None) -> Any:
    """The same, so many elements behind a pointer."""
    text, kind, constraint = _READ[stored]
    text = text.replace("[$1]", f"[$1+{offset * STORED[stored].width // 8}]")
    result = {"f": T.f32, "l": T.i64, "r": T.i32}[constraint]()
    operands = [pointer.toint(loc=loc, ip=ip).ir_value(loc=loc, ip=ip)]
    found = kind(asm(result, operands, text, f"={constraint},l", loc, ip))
    return found != kind(0) if stored == "bool" else found


_COMPARED = {"eq": ("eq", "eq"), "ne": ("ne", "neu"), "lt": ("lt", "lt"), "le": ("le", "le")}  # of i32, of f32


@dsl_user_op
def compared(op: str, x: Any, y: Any, also: Any, *, loc: Any = None, ip: Any = None) -> Boolean:
    """`x op y and also` of Int32 or Float32 values, in one instruction."""
    is_float = isinstance(x, Float32)
    operands = [v.ir_value(loc=loc, ip=ip) for v in (x, y, also)]
    text = f"setp.{_COMPARED[op][is_float]}.and.{'f32' if is_float else 's32'} $0, $1, $2, $3;"
    return Boolean(asm(T.bool(), operands, text, "=b,f,f,b" if is_float else "=b,r,r,b", loc, ip))


def _exp(x: Any) -> Any:
    return exp2(x * LOG2_E)


def _sigmoid(x: Any) -> Any:
    return _reciprocal(Float32(1.0) + exp2(x * -LOG2_E))


def _within_a_turn(x: Any) -> Any:
    """x less whole turns, where the hardware's sine and cosine are exact enough."""
    turns = _round(x * (0.5 / math.pi))
    return fma(turns, Float32(-1.7484556e-7 * -1.0), fma(turns, Float32(-6.2831855), x))


def _erf(x: Any) -> Any:
    """By the approximation 7.1.26 of Abramowitz and Stegun, to 1.5e-7."""
    size = _abs(x)
    t = _reciprocal(fma(size, Float32(0.3275911), Float32(1.0)))
    sum_ = Float32(1.061405429)
    for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        sum_ = fma(sum_, t, Float32(factor))
    found = fma(-(sum_ * t), exp2(size * size * -LOG2_E), Float32(1.0))
    return chosen(x < 0.0, -found, found)


def _sign(x: Any, kind: str) -> Any:
    number = VALUES[kind]
    return chosen(x > number(0), number(1), chosen(x < number(0), number(-1), x))


def _is_beyond(rest: Any, y: Any) -> Any:
    """Whether what a division by y towards 0 leaves is none of a division towards -inf."""
    zero = type(rest)(0)
    return (rest != zero) & ((rest < zero) ^ (y < zero))


def _floor_divide(x: Any, y: Any) -> Any:
    quotient = _trunc_divide(x, y)
    rest = x - quotient * y
    number = type(quotient)
    return quotient - chosen(_is_beyond(rest, y), number(1), number(0))


def _remainder(x: Any, y: Any) -> Any:
    rest = x - _trunc_divide(x, y) * y
    return rest + chosen(_is_beyond(rest, y), y, type(rest)(0))


def _float_remainder(x: Any, y: Any) -> Any:
    rest = cute.math.rem(x, y)
    return chosen(_is_beyond(rest, y), rest + y, rest)


def _float_floor_divide(x: Any, y: Any) -> Any:
    """By PyTorch's formula: what is left over is taken away first, so that the quotient is close to a whole number."""
    rest, quotient = cute.math.rem(x, y), _exact_quotient(x, y)
    steps = _exact_quotient(x - rest, y) - chosen(_is_beyond(rest, y), Float32(1.0), Float32(0.0))
    whole = _floor(steps)
    whole = chosen(steps - whole > 0.5, whole + 1.0, whole)
    whole = chosen(steps == 0.0, quotient * 0.0, whole)  # a zero with its sign
    return chosen(y == 0.0, quotient, whole)


def _trunc_divide(x: Any, y: Any) -> Any:
    """Where y is 0, which is nobody's business outside the mask, anything but undefined."""
    return _signed_quotient(x, chosen(y == type(y)(0), type(y)(1), y))


@dsl_user_op
def _signed_quotient(x: Any, y: Any, *, loc: Any = None, ip: Any = None) -> Any:
    kind = type(x)
    values = [v.ir_value(loc=loc, ip=ip) for v in (x, y)]
    return kind(llvm.sdiv(*values, loc=loc, ip=ip))


_FLOATS: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": _quotient,
    "floor_divide": _float_floor_divide,
    "remainder": _float_remainder,
    "trunc_divide": lambda x, y: _trunc(_exact_quotient(x, y)),
    "fmod": cute.math.rem,
    "pow": lambda x, y: _power(x, y),
    "minimum": _minimum,
    "maximum": _maximum,
    "neg": lambda x: -x,
    "abs": _abs,
    "sign": lambda x: _sign(x, "f32"),
    "exp": _exp,
    "exp2": exp2,
    "expm1": lambda x: _exp(x) - 1.0,
    "log": lambda x: _log2(x) * LN_2,
    "log2": _log2,
    "log1p": lambda x: _log2(x + 1.0) * LN_2,
    "sqrt": _sqrt,
    "rsqrt": _rsqrt,
    "tanh": tanh,
    "sigmoid": _sigmoid,
    "erf": _erf,
    "sin": lambda x: _sine(_within_a_turn(x)),
    "cos": lambda x: _cosine(_within_a_turn(x)),
    "floor": _floor,
    "ceil": _ceil,
    "round": _round,
    "trunc": _trunc,
    "round_bf16": lambda x: x.to(cutlass.BFloat16).to(Float32),
    "round_fp16": lambda x: x.to(cutlass.Float16).to(Float32),
}
_INTEGERS: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "floor_divide": _floor_divide,
    "remainder": _remainder,
    "trunc_divide": _trunc_divide,
    "fmod": lambda x, y: x - _trunc_divide(x, y) * y,
    "pow": lambda x, y: _whole_power(x, y),
    "minimum": lambda x, y: chosen(x < y, x, y),
    "maximum": lambda x, y: chosen(x < y, y, x),
    "neg": lambda x: -x,
    "abs": lambda x: chosen(x < type(x)(0), -x, x),
    "bit_and": lambda x, y: x & y,
    "bit_or": lambda x, y: x | y,
    "bit_xor": lambda x, y: x ^ y,
    "bit_not": lambda x: x ^ type(x)(-1),
    "shift_left": lambda x, y: x << y,
    "shift_right": lambda x, y: x >> y,
}
_TESTS: dict[str, Callable[..., Any]] = {
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "and": lambda x, y: x & y,
    "or": lambda x, y: x | y,
    "xor": lambda x, y: x ^ y,
    "not": lambda x: x ^ Boolean(True),
}


def constant(node: Node) -> Any:
    """The value of a const node."""
    (x,) = node.args
    return VALUES[node.dtype](float(x) if node.dtype == "f32" else int(x))


def computed(node: Node, kinds: list[str], values: list[Any]) -> Any:
    """A node from its operands: their dtypes and values."""
    op, kind = node.op, node.dtype
    if op == "convert":
        return _converted(values[0], kinds[0], kind)
    if op == "where":
        return chosen(values[0], values[1], values[2])
    if op in _TESTS:
        return _TESTS[op](*values)
    if op == "sign":
        return _sign(values[0], kind)
    return (_FLOATS if kind == "f32" else _INTEGERS)[op](*values)


def _power(x: Any, y: Any) -> Any:
    """x ** y of floats; NaN for a negative x and a y that is not whole."""
    size, whole, odd = exp2(_log2(_abs(x)) * y), _floor(y) == y, _floor(y * 0.5) * 2.0 != y
    of_negative = chosen(whole, chosen(odd, -size, size), Float32(math.nan))
    return chosen(y == 0.0, Float32(1.0), chosen(x < 0.0, of_negative, size))


def _whole_power(x: Any, exponent: Any) -> Any:
    """x ** exponent of integers, which wrap. As in PyTorch 1 over a power is 0, but of 1 and -1."""
    one, zero = type(x)(1), type(x)(0)
    found = _squared_and_multiplied(x, chosen(exponent < zero, -exponent, exponent), one)
    return chosen((exponent < zero) & (x != one) & (x != type(x)(-1)), zero, found)


@cute.jit
def _squared_and_multiplied(x: Any, exponent: Any, found: Any) -> Any:
    """found * x ** exponent, in as many rounds as the exponent has bits: it is known at run time alone."""
    while exponent > 0:
        found = found * chosen(exponent & 1 == 1, x, type(x)(1))
        x = x * x
        exponent = exponent >> 1
    return found


def _converted(x: Any, old: str, new: str) -> Any:
    if old == new:
        return x
    number = VALUES[new]
    if new == "bool":
        return x != VALUES[old](0)
    if old == "bool":
        return chosen(x, number(1), number(0))
    if old == "f32":
        return _truncated(x) if new == "i32" else x.to(Int64)
    return x.to(number)
