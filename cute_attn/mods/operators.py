"""The operators of mods: what each, under its name in torch or as a method, writes on the tape."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ..kinds import is_number
from .ranges import WRAPPING
from .refused import refuse, unknown
from .tape import HANDLERS, Partial, Tape, Value

__all__: list[str] = []

Handler = Callable[..., Value]
COMMUTATIVE = ("add", "mul", "minimum", "maximum", "eq", "ne", "and", "or", "xor", "bit_and", "bit_or", "bit_xor")


def _register(names: str, handler: Handler) -> None:
    for name in names.split():
        HANDLERS[name] = handler


def _is_narrow(tape: Tape, *operands: Any) -> bool:
    """Whether torch would compute in 8 or 16 bits with these: bools and numbers are as narrow as what they meet."""
    values = [tape.value(x) for x in operands if isinstance(x, (Value, Partial, torch.Tensor))]
    narrow = [value.is_narrow for value in values if value.dtype_name != "bool"]
    return len(narrow) > 0 and all(narrow)


def _refuse_wrapping(tape: Tape, op: str, *operands: Any) -> None:
    if (op in WRAPPING or op == "bit_not") and _is_narrow(tape, *operands):
        raise refuse(
            tape.kind, f"uses {op} of integers of 8 or 16 bits alone", "they would wrap, cast one: x.to(torch.int32)"
        )


def _as_narrow(tape: Tape, x: Value, *operands: Any) -> Value:
    """The result of these, narrow if they are: an integer of 8 or 16 bits stays one until it is cast."""
    if x.dtype_name != "i32" or not _is_narrow(tape, *operands):
        return x
    return Value(tape, x.node, x.dtype_name, True)


def _binary(tape: Tape, op: str, x: Any, y: Any, dtype: str, result: str | None = None) -> Value:
    if dtype == "i32":
        _refuse_wrapping(tape, op, x, y)
    a, b = tape.together((x, y), dtype)
    first, second = Value(tape, a, dtype), Value(tape, b, dtype)
    if op in ("mul", "div") and tape.constant_of(second) == 1:
        return first
    if op == "mul" and tape.constant_of(first) == 1:
        return second
    if op in COMMUTATIVE and a > b:
        a, b = b, a
    return _as_narrow(tape, tape.add(op, (a, b), result or dtype), x, y)


def _unary(tape: Tape, op: str, x: Value) -> Value:
    return tape.add(op, (x.node,), x.dtype_name)


def _float(tape: Tape, x: Any) -> Value:
    return tape.converted(tape.value(x, "f32"), "f32")


def _constant(tape: Tape, x: float) -> Value:
    return tape.constant(x, "f32")


# ---------------------------------------------------------------- arithmetic


def _add(tape: Tape, x: Any, other: Any, *, alpha: Any = 1) -> Value:
    dtype = tape.common((x, other))
    if alpha != 1:
        other = _mul(tape, tape.converted(tape.value(other, dtype), dtype), alpha)
        dtype = tape.common((x, other))
    return _binary(tape, "or" if dtype == "bool" else "add", x, other, dtype)


def _sub(tape: Tape, x: Any, other: Any, *, alpha: Any = 1) -> Value:
    dtype = tape.common((x, other))
    if alpha != 1:
        other = _mul(tape, tape.converted(tape.value(other, dtype), dtype), alpha)
        dtype = tape.common((x, other))
    if dtype == "bool":
        raise refuse(tape.kind, "subtracts bools", "x & ~y, or x ^ y")
    return _binary(tape, "sub", x, other, dtype)


def _rsub(tape: Tape, x: Any, other: Any, *, alpha: Any = 1) -> Value:
    return _sub(tape, other, x, alpha=alpha)


def _mul(tape: Tape, x: Any, other: Any) -> Value:
    dtype = tape.common((x, other))
    return _binary(tape, "and" if dtype == "bool" else "mul", x, other, dtype)


def _div(tape: Tape, x: Any, other: Any, *, rounding_mode: str | None = None) -> Value:
    if rounding_mode == "floor":
        return _floor_divide(tape, x, other)
    if rounding_mode == "trunc":
        return _whole(tape, "trunc_divide", x, other)
    return _binary(tape, "div", x, other, "f32")


def _whole(tape: Tape, op: str, x: Any, other: Any) -> Value:
    dtype = tape.common((x, other))
    return _binary(tape, op, x, other, "i64" if dtype == "bool" else dtype)


def _floor_divide(tape: Tape, x: Any, other: Any) -> Value:
    return _whole(tape, "floor_divide", x, other)


def _remainder(tape: Tape, x: Any, other: Any) -> Value:
    return _whole(tape, "remainder", x, other)


def _fmod(tape: Tape, x: Any, other: Any) -> Value:
    return _whole(tape, "fmod", x, other)


def _pow(tape: Tape, x: Any, exponent: Any) -> Value:
    if is_number(exponent):
        base = tape.value(x)
        if isinstance(exponent, float) or base.dtype_name == "bool":
            base = tape.converted(base, "f32" if isinstance(exponent, float) else "i64")
        if exponent == 1:
            return base
        if exponent == 2:
            return _mul(tape, base, base)
        if exponent == 3:
            return _mul(tape, _mul(tape, base, base), base)
        if exponent == 0.5:
            return _unary(tape, "sqrt", base)
        if exponent == -0.5:
            return _unary(tape, "rsqrt", base)
        if exponent < 0 and base.dtype_name != "f32":
            raise refuse(tape.kind, "raises an integer to a negative power", "cast it: x.float() ** n")
    return _whole(tape, "pow", x, exponent)


def _swapped(handler: Handler) -> Handler:
    def swapped(tape: Tape, x: Any, other: Any) -> Value:
        return handler(tape, other, x)

    return swapped


_register("add __add__ __radd__", _add)
_register("sub subtract __sub__", _sub)
_register("rsub __rsub__", _rsub)
_register("mul multiply __mul__ __rmul__", _mul)
_register("div divide true_divide __truediv__ __div__", _div)
_register("__rtruediv__ __rdiv__", _swapped(_div))
_register("floor_divide __floordiv__", _floor_divide)
_register("__rfloordiv__", _swapped(_floor_divide))
_register("remainder __mod__", _remainder)
_register("__rmod__", _swapped(_remainder))
_register("fmod", _fmod)
_register("pow __pow__", _pow)
_register("__rpow__", _swapped(_pow))


# ---------------------------------------------------------------- comparisons and bits


def _comparison(op: str, swaps: bool) -> Handler:
    def compare(tape: Tape, x: Any, other: Any) -> Value:
        if other is None:
            raise refuse(tape.kind, "compares a score or an index with None", "it is a number, never None")
        dtype = tape.common((x, other))
        if dtype == "bool":
            dtype = "i32"
        return _binary(tape, op, other, x, dtype, "bool") if swaps else _binary(tape, op, x, other, dtype, "bool")

    return compare


for _names, _op, _swaps in (
    ("eq __eq__", "eq", False),
    ("ne not_equal __ne__", "ne", False),
    ("lt less __lt__", "lt", False),
    ("le less_equal __le__", "le", False),
    ("gt greater __gt__", "lt", True),
    ("ge greater_equal __ge__", "le", True),
):
    _register(_names, _comparison(_op, _swaps))


def _logical(op: str) -> Handler:
    def logical(tape: Tape, x: Any, other: Any) -> Value:
        return _binary(tape, op, x, other, "bool")

    return logical


def _bits(op: str) -> Handler:
    def bits(tape: Tape, x: Any, other: Any) -> Value:
        dtype = tape.common((x, other))
        if dtype == "f32":
            raise refuse(tape.kind, f"uses a bitwise {op} of floats", "compare first, or x.to(torch.int32)")
        return _binary(tape, op if dtype == "bool" else f"bit_{op}", x, other, dtype)

    return bits


for _op in ("and", "or", "xor"):
    _register(f"logical_{_op}", _logical(_op))
    _register(f"bitwise_{_op} __{_op}__ __r{_op}__", _bits(_op))


def _logical_not(tape: Tape, x: Any) -> Value:
    return _unary(tape, "not", tape.converted(tape.value(x), "bool"))


def _invert(tape: Tape, x: Any) -> Value:
    x = tape.value(x)
    if x.dtype_name == "f32":
        raise refuse(tape.kind, "uses ~ of a float", "compare first")
    _refuse_wrapping(tape, "bit_not", x)
    return _unary(tape, "not" if x.dtype_name == "bool" else "bit_not", x)


def _shift(op: str) -> Handler:
    def shift(tape: Tape, x: Any, other: Any) -> Value:
        dtype = tape.common((x, other))
        if dtype == "f32":
            raise refuse(tape.kind, "shifts floats", "multiply by a power of two")
        return _binary(tape, op, x, other, "i64" if dtype == "bool" else dtype)

    return shift


_register("logical_not", _logical_not)
_register("bitwise_not __invert__", _invert)
_register("bitwise_left_shift __lshift__", _shift("shift_left"))
_register("bitwise_right_shift __rshift__", _shift("shift_right"))
_register("__rlshift__", _swapped(_shift("shift_left")))
_register("__rrshift__", _swapped(_shift("shift_right")))


# ---------------------------------------------------------------- choosing


def _where(tape: Tape, condition: Any, x: Any = None, other: Any = None) -> Value:
    if x is None or other is None:
        raise refuse(tape.kind, "uses where with one argument", "torch.where(condition, x, y)")
    chosen = tape.value(condition)
    if chosen.dtype_name != "bool" and isinstance(x, Value) and x.dtype_name == "bool":
        chosen, x = x, chosen  # tensor.where(condition, other)
    if chosen.dtype_name != "bool":
        raise refuse(tape.kind, "uses where with a condition that is no bool", "compare, as in x != 0")
    dtype = tape.common((x, other))
    found = tape.add("where", (chosen.node, *tape.together((x, other), dtype)), dtype)
    return _as_narrow(tape, found, x, other)


def _masked_fill(tape: Tape, x: Any, mask: Any, value: Any) -> Value:
    x = tape.value(x)
    dtype = x.dtype_name  # as torch, which casts what fills
    filled = tape.converted(tape.value(value, None if isinstance(value, float) else dtype), dtype)
    return _as_narrow(tape, _where(tape, mask, filled, x), x)


def _extremum(op: str) -> Handler:
    def extremum(tape: Tape, x: Any, other: Any = None) -> Value:
        if other is None:
            raise unknown(tape.kind, "amax" if op == "maximum" else "amin")
        dtype = tape.common((x, other))
        if dtype == "bool":
            return _binary(tape, "or" if op == "maximum" else "and", x, other, dtype)
        return _binary(tape, op, x, other, dtype)

    return extremum


_minimum, _maximum = _extremum("minimum"), _extremum("maximum")


def _clamp(tape: Tape, x: Any, min: Any = None, max: Any = None) -> Value:
    if min is None and max is None:
        raise refuse(tape.kind, "uses clamp without bounds", "give min or max")
    dtype = tape.common([value for value in (x, min, max) if value is not None])
    found = tape.converted(tape.value(x, dtype), dtype)
    if dtype == "f32":  # the derivative at a bound is 1, that of maximum is a half
        if min is not None:
            found = _where(tape, HANDLERS["lt"](tape, found, min), min, found)
        return found if max is None else _where(tape, HANDLERS["gt"](tape, found, max), max, found)
    if min is not None:
        found = _maximum(tape, found, min)
    return found if max is None else _minimum(tape, found, max)


def _clamp_min(tape: Tape, x: Any, min: Any) -> Value:
    return _clamp(tape, x, min=min)


def _clamp_max(tape: Tape, x: Any, max: Any) -> Value:
    return _clamp(tape, x, max=max)


_register("where", _where)
_register("masked_fill", _masked_fill)
_register("minimum min", _minimum)
_register("maximum max", _maximum)
_register("clamp clip", _clamp)
_register("clamp_min", _clamp_min)
_register("clamp_max", _clamp_max)


# ---------------------------------------------------------------- functions of one value


def _of_float(op: str) -> Handler:
    def function(tape: Tape, x: Any) -> Value:
        return _unary(tape, op, _float(tape, x))

    return function


for _op in ("exp", "exp2", "expm1", "log", "log2", "log1p", "sqrt", "rsqrt", "tanh", "sigmoid", "erf", "sin", "cos"):
    _register(_op, _of_float(_op))
_register("expit special_expit", HANDLERS["sigmoid"])


def _kept(op: str) -> Handler:
    def function(tape: Tape, x: Any) -> Value:
        x = tape.value(x)
        if x.dtype_name == "bool":
            raise refuse(tape.kind, f"uses {op} of a bool", "cast it: x.to(torch.int32)")
        _refuse_wrapping(tape, op, x)
        return _as_narrow(tape, _unary(tape, op, x), x)

    return function


def _rounding(op: str) -> Handler:
    def function(tape: Tape, x: Any) -> Value:
        x = tape.value(x)
        return _unary(tape, op, x) if x.dtype_name == "f32" else x

    return function


_register("neg negative __neg__", _kept("neg"))
_register("abs absolute __abs__", _kept("abs"))
_register("sign sgn", _kept("sign"))
_register("floor __floor__", _rounding("floor"))
_register("ceil __ceil__", _rounding("ceil"))
_register("trunc fix __trunc__", _rounding("trunc"))


def _round(tape: Tape, x: Any, *, decimals: int = 0) -> Value:
    if decimals:
        raise refuse(tape.kind, "rounds to decimals", "torch.round(x * 100) / 100")
    return _rounding("round")(tape, x)


def _round_python(tape: Tape, x: Any, decimals: int | None = None) -> Value:
    return _round(tape, x, decimals=decimals or 0)


def _positive(tape: Tape, x: Any) -> Value:
    return tape.value(x)


def _reciprocal(tape: Tape, x: Any) -> Value:
    return _div(tape, _constant(tape, 1.0), x)


def _square(tape: Tape, x: Any) -> Value:
    return _mul(tape, x, x)


def _isnan(tape: Tape, x: Any) -> Value:
    x = tape.value(x)
    return _binary(tape, "ne", x, x, x.dtype_name, "bool")


def _isinf(tape: Tape, x: Any) -> Value:
    x = _unary(tape, "abs", _float(tape, x))
    return _binary(tape, "eq", x, _constant(tape, math.inf), "f32", "bool")


def _relu(tape: Tape, x: Any, inplace: bool = False) -> Value:
    _not_in_place(tape, "relu", inplace)
    x = tape.value(x)
    zero = tape.constant(0, x.dtype_name)
    return _where(tape, HANDLERS["le"](tape, x, zero), zero, x)


def _silu(tape: Tape, x: Any, inplace: bool = False) -> Value:
    _not_in_place(tape, "silu", inplace)
    x = _float(tape, x)
    return _mul(tape, x, _unary(tape, "sigmoid", x))


def _gelu(tape: Tape, x: Any, *, approximate: str = "none") -> Value:
    x = _float(tape, x)
    half = _mul(tape, x, _constant(tape, 0.5))
    if approximate == "tanh":
        cube = _mul(tape, _mul(tape, _mul(tape, x, x), x), _constant(tape, 0.044715))
        inner = _mul(tape, _add(tape, x, cube), _constant(tape, math.sqrt(2 / math.pi)))
        return _mul(tape, half, _add(tape, _unary(tape, "tanh", inner), _constant(tape, 1.0)))
    if approximate != "none":
        raise refuse(tape.kind, f"uses gelu with approximate={approximate!r}", "'none' and 'tanh' are allowed")
    error = _unary(tape, "erf", _mul(tape, x, _constant(tape, math.sqrt(0.5))))
    return _mul(tape, half, _add(tape, error, _constant(tape, 1.0)))


def _softplus(tape: Tape, x: Any, beta: Any = 1, threshold: Any = None) -> Value:
    x = _float(tape, x)
    scaled = _mul(tape, x, _float(tape, beta))
    # the exponential must not overflow where the other branch is taken: its derivative there would be NaN
    is_large = HANDLERS["gt"](tape, scaled, _constant(tape, 20.0) if threshold is None else threshold)
    bounded = _where(tape, is_large, _constant(tape, 0.0), scaled)
    soft = _div(tape, _unary(tape, "log1p", _unary(tape, "exp", bounded)), _float(tape, beta))
    return _where(tape, is_large, x, soft)


def _not_in_place(tape: Tape, name: str, inplace: bool) -> None:
    if inplace:
        raise refuse(tape.kind, f"uses {name} in place", "inplace=False")


_register("round", _round)
_register("__round__", _round_python)
_register("positive __pos__", _positive)
_register("reciprocal", _reciprocal)
_register("square", _square)
_register("isnan", _isnan)
_register("isinf", _isinf)
_register("relu", _relu)
_register("silu", _silu)
_register("gelu", _gelu)
_register("softplus", _softplus)


# ---------------------------------------------------------------- casts and new numbers

ROUNDED = {torch.bfloat16: "round_bf16", torch.float16: "round_fp16"}
TARGETS = {
    torch.float32: "f32",
    torch.float64: "f32",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "bool",
}


def _cast(tape: Tape, x: Any, dtype: torch.dtype) -> Value:
    x = tape.value(x)
    if x.is_narrow:
        x = Value(tape, x.node, x.dtype_name)
    if dtype in ROUNDED:
        return _unary(tape, ROUNDED[dtype], _float(tape, x))
    if dtype not in TARGETS:
        raise refuse(
            tape.kind,
            f"casts to {dtype}",
            "bool, int32, int64, float32, float64, bfloat16 and float16 are allowed",
        )
    return tape.converted(x, TARGETS[dtype])


def _to(tape: Tape, x: Any, *args: Any, dtype: Any = None, **rest: Any) -> Value:
    """`x.to(...)` in all its forms; a device changes nothing."""
    for target in args:
        if isinstance(target, (torch.Tensor, Value)):
            return _type_as(tape, x, target)
        if isinstance(target, torch.dtype):
            dtype = target
    return tape.value(x) if dtype is None else _cast(tape, x, dtype)


def _type_as(tape: Tape, x: Any, other: Any) -> Value:
    if tape.value(other).is_narrow:
        raise refuse(tape.kind, "casts to 8 or 16 bits", "cast to int32: x.to(torch.int32)")
    return _cast(tape, x, other.dtype)


def _cast_to(dtype: torch.dtype) -> Handler:
    def cast(tape: Tape, x: Any) -> Value:
        return _cast(tape, x, dtype)

    return cast


_register("to type", _to)
_register("type_as", _type_as)
for _name, _dtype in (
    ("float", torch.float32),
    ("double", torch.float64),
    ("half", torch.float16),
    ("bfloat16", torch.bfloat16),
    ("int", torch.int32),
    ("long", torch.int64),
    ("bool", torch.bool),
):
    _register(_name, _cast_to(_dtype))


def _same(tape: Tape, x: Any, *_: Any, **__: Any) -> Value:
    return tape.value(x)


_register("clone contiguous", _same)


def _new(tape: Tape, like: Any, number: Any, size: Any, dtype: torch.dtype | None) -> Value:
    if size is not None and tuple(size) != ():
        raise refuse(tape.kind, f"makes a tensor of shape {tuple(size)}", "only (), one number, is allowed")
    made = tape.value(number, tape.value(like).dtype_name)
    return tape.converted(made, tape.value(like).dtype_name) if dtype is None else _cast(tape, made, dtype)


def _filled(number: float) -> Handler:
    def new(tape: Tape, x: Any, *size: Any, dtype: torch.dtype | None = None, **rest: Any) -> Value:
        return _new(tape, x, number, size[0] if len(size) == 1 and not isinstance(size[0], int) else size, dtype)

    return new


def _full(tape: Tape, x: Any, size: Any, fill_value: Any, *, dtype: torch.dtype | None = None, **rest: Any) -> Value:
    return _new(tape, x, fill_value, size, dtype)


def _full_like(tape: Tape, x: Any, fill_value: Any, *, dtype: torch.dtype | None = None, **rest: Any) -> Value:
    return _new(tape, x, fill_value, None, dtype)


def _new_tensor(tape: Tape, x: Any, data: Any, *, dtype: torch.dtype | None = None, **rest: Any) -> Value:
    made = tape.value(data)
    return made if dtype is None else _cast(tape, made, dtype)


_register("new_zeros zeros_like", _filled(0))
_register("new_ones ones_like", _filled(1))
_register("new_full", _full)
_register("full_like", _full_like)
_register("new_tensor", _new_tensor)


# ---------------------------------------------------------------- as methods of values


def _method(name: str) -> Callable[..., Any]:
    handler = HANDLERS[name]

    def method(self: Value | Partial, *args: Any, **kwargs: Any) -> Any:
        return handler(self.tape, self, *args, **kwargs)

    method.__name__ = name
    return method


for _name in HANDLERS:
    if _name != "where":
        setattr(Value, _name, _method(_name))
        setattr(Partial, _name, _method(_name))  # each says which indices are missing


def _where_of_value(self: Value, condition: Any, other: Any) -> Value:
    return _where(self.tape, condition, self, other)


Value.where = _where_of_value  # type: ignore[attr-defined]


def _in_place(name: str) -> Callable[..., Any]:
    def method(self: Value, other: Any) -> Any:
        raise unknown(self.tape.kind, name)

    return method


for _op in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift"):
    setattr(Value, f"__i{_op}__", _in_place(f"__i{_op}__"))
