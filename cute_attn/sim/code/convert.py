"""The cvt instructions that sm_90a has, as templates."""

from __future__ import annotations

from ..formats import WIDTH
from .ptx import Reg
from .template import KIND_WIDTH, Reader, Template, Typed

_INTEGER = ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64")
_FLOAT = ("f16", "bf16", "f32", "f64")
_PACKED = ("f16x2", "bf16x2", "e4m3x2", "e5m2x2")
_NUMPY = {"u": "uint", "s": "int", "f": "float"}
_ROUND = {"rzi": "np.trunc", "rni": "np.rint", "rmi": "np.floor", "rpi": "np.ceil"}


def build(r: Reader) -> Template | None:
    """The template of a cvt, None for other instructions."""
    if r.instruction.name != "cvt":
        return None
    types = [m for m in r.modifiers if m in (*_INTEGER, *_FLOAT, *_PACKED)]
    if len(types) != 2:
        raise r.fail("these types")
    to, source = types
    for used in types:
        r.modifiers.remove(used)
    r.count(3 if to in _PACKED and source == "f32" else 2)
    if "ftz" in r.modifiers and "f32" not in types:
        raise r.fail("modifier .ftz")
    if to in _PACKED:
        return _packed(r, to, source)
    if source in _PACKED:
        raise r.fail("this conversion")
    flush, saturated = r.flag("ftz"), r.flag("sat")
    if source in _INTEGER and to in _INTEGER:
        r.done()
        if saturated:
            raise r.fail("modifier .sat")
        return _integer(r, to, source)
    if source in _INTEGER:
        r.need("rn")
        r.done()
        kind = _register_type(r, 1, source)
        value = _narrow("{0}", source, kind)
        code = (
            f"bf16_bits({value}.astype(np.float32)).astype(np.uint16)"
            if to == "bf16"
            else f"{value}.astype(np.{_dtype(to)})"
        )
        return r.template(code, Typed(r.operands[0], to), [Typed(r.operands[1], kind)])
    value = {"bf16": "bf16_values({0})", "f16": "{0}.astype(np.float32)"}.get(source, "{0}")
    value = f"ftz({value})" if flush and source == "f32" else value
    if to in _INTEGER:
        rounding = r.need(*_ROUND)
        r.done()
        kind = _register_type(r, 0, to)
        code = f"to_integer({value}, '{rounding}', '{_dtype(to)}').astype(np.{_dtype(kind)})"
        return r.template(code, Typed(r.operands[0], kind), [Typed(r.operands[1], source)])
    shape = r.take(*_ROUND, "rn")
    relu = r.flag("relu")
    r.done("satfinite")
    if shape in _ROUND:
        value = f"{_ROUND[shape]}({value})"
    value = f"np.fmax({value}, np.float32(0))" if relu else value
    value = f"saturate({value})" if saturated else value
    code = (
        f"bf16_bits(np.asarray({value}, np.float32)).astype(np.uint16)"
        if to == "bf16"
        else f"np.asarray({value}).astype(np.{_dtype(to)})"
    )
    return r.template(code, Typed(r.operands[0], to), [Typed(r.operands[1], source)])


def _packed(r: Reader, to: str, source: str) -> Template:
    """Two numbers into one register; the first source becomes the high half."""
    r.need("rn")
    relu = r.flag("relu")
    if r.flag("satfinite") and to not in ("e4m3x2", "e5m2x2"):
        raise r.fail("modifier .satfinite")
    r.done()
    if source in ("e4m3x2", "e5m2x2") and to == "f16x2":
        return r.template(f"halves_of_{source[:4]}({{0}})", Typed(r.operands[0], to), [Typed(r.operands[1], "b16")])
    if source == "f16x2" and to in ("e4m3x2", "e5m2x2"):
        code = f"pack_{to[:4]}(f16_values({{0}} >> np.uint32(16)), f16_values({{0}} & np.uint32(0xFFFF)))"
        return r.template(code, Typed(r.operands[0], "b16"), [Typed(r.operands[1], "b32")])
    if source != "f32":
        raise r.fail("this conversion")
    values = ["np.fmax({0}, np.float32(0))", "np.fmax({1}, np.float32(0))"] if relu else ["{0}", "{1}"]
    helper = {"bf16x2": "pack_bf16", "f16x2": "pack_f16", "e4m3x2": "pack_e4m3", "e5m2x2": "pack_e5m2"}[to]
    width = "b16" if to in ("e4m3x2", "e5m2x2") else "b32"
    return r.template(f"{helper}({', '.join(values)})", Typed(r.operands[0], width), r.typed("f32", 1))


def _integer(r: Reader, to: str, source: str) -> Template:
    """Between integers: the source is cut to its type, then extended by its sign to the register it goes to."""
    kind, wide = _register_type(r, 1, source), _register_type(r, 0, to)
    value = _narrow("{0}", source, kind)
    code = value if WIDTH[to] == WIDTH[wide] else f"{value}.astype(np.{_dtype(to)})"
    return r.template(f"{code}.astype(np.{_dtype(wide)})", Typed(r.operands[0], wide), [Typed(r.operands[1], kind)])


def _register_type(r: Reader, index: int, kind: str) -> str:
    """The type of the whole register that holds a value of `kind`: registers may be wider."""
    operand = r.operands[index]
    if isinstance(operand, Reg):
        return kind[0] + str(KIND_WIDTH[operand.kind])
    return kind if WIDTH[kind] >= 16 else kind[0] + "16"


def _narrow(value: str, kind: str, register: str) -> str:
    return f"np.asarray({value})" if kind == register else f"np.asarray({value}).astype(np.{_dtype(kind)})"


def _dtype(kind: str) -> str:
    return _NUMPY[kind[0]] + kind[1:]
