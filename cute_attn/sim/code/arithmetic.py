"""Integer, floating-point, logic, comparison and move instructions as templates for the code generator."""

from __future__ import annotations

from collections.abc import Callable

from .ptx import Imm, Pair, Reg, Sym, Vec
from .template import KIND_WIDTH, Reader, Template, Typed, arguments_of, is_sink

INTEGERS = ("u16", "s16", "u32", "s32", "u64", "s64")
BITS = ("b16", "b32", "b64")
SPECIAL_LANE = {"tid.x": "tid_x", "tid.y": "tid_y", "tid.z": "tid_z", "laneid": "laneid", "warpid": "warpid"}
SPECIAL_LANE |= {f"lanemask_{c}": f"lanemask_{c}" for c in ("eq", "le", "lt", "ge", "gt")}
SPECIAL_CTA = {
    f"{name}.{axis}": f"{name}_{axis}"
    for name in ("ntid", "ctaid", "nctaid", "clusterid", "nclusterid", "cluster_ctaid", "cluster_nctaid")
    for axis in "xyz"
}
SPECIAL_CTA |= {
    name: name
    for name in (
        *("cluster_ctarank", "cluster_nctarank", "is_explicit_cluster", "smid", "nsmid", "gridid", "nwarpid"),
        *("dynamic_smem_size", "total_smem_size", "clock", "clock64", "clock_hi", "globaltimer", "globaltimer_lo"),
    )
}


def special_register(name: str) -> str | None:
    """The expression of a special register, or None."""
    plain = name.removeprefix("%")
    if plain in SPECIAL_LANE:
        return f"V.{SPECIAL_LANE[plain]}"
    if plain in SPECIAL_CTA:
        return f"c.special.{SPECIAL_CTA[plain]}"
    return None


def build(reader: Reader) -> Template | None:
    """The template of an arithmetic instruction, None if it is none."""
    handler = _HANDLERS.get(reader.instruction.name)
    return handler(reader) if handler else None


def _binary(integer: str | None, floating: str | None, packed: str | None = None) -> Callable[[Reader], Template]:
    def handler(r: Reader) -> Template:
        r.count(3)
        kind = r.need(*INTEGERS, *BITS, "f32", "f64", "f16", "bf16", "f16x2", "bf16x2", "pred")
        if kind in ("f16", "bf16", "f16x2", "bf16x2"):
            return _small(r, kind, packed)
        if kind in ("f32", "f64"):
            if floating is None:
                raise r.fail("floating point")
            nan = r.flag("NaN")
            if nan and packed not in ("min", "max"):
                raise r.fail("modifier .NaN")
            function = {"np.fmin": "np.minimum", "np.fmax": "np.maximum"}[floating] if nan else floating
            return _floating(r, function, kind)
        if integer is None or kind == "pred":
            raise r.fail("this type")
        if kind == "s32" and packed in ("min", "max") and r.flag("relu"):
            r.done()
            code = f"np.maximum({integer}({{0}}, {{1}}), np.int32(0))"
            return r.template(code, Typed(r.operands[0], kind), r.typed(kind, 1))
        r.done("lo" if integer == "np.multiply" else "")
        return r.template(integer, Typed(r.operands[0], kind), r.typed(kind, 1), ufunc=True)

    return handler


def _floating(r: Reader, function: str, kind: str, count: int = 2, *, ufunc: bool = True) -> Template:
    """A float32 or float64 operation with rounding to nearest and the usual .ftz and .sat."""
    flush, clamp = r.flag("ftz"), r.flag("sat")
    if clamp and r.instruction.name not in ("add", "sub", "mul", "fma", "mad"):
        raise r.fail("modifier .sat")
    r.take("rn", "approx", "full")
    r.done()
    arguments = [f"{{{i}}}" for i in range(count)]
    destination, sources = Typed(r.operands[0], kind), r.typed(kind, 1)
    if not (flush or clamp):
        code = function if ufunc else f"{function}({', '.join(arguments)})"
        return r.template(code, destination, sources, ufunc=ufunc)
    if flush:
        arguments = [f"ftz({a})" for a in arguments]
    code = f"{function}({', '.join(arguments)})"
    code = f"ftz({code})" if flush else code
    return r.template(f"saturate({code})" if clamp else code, destination, sources)


def _small(r: Reader, kind: str, function: str | None) -> Template:
    """f16, bf16 and their packed pairs."""
    if function is None:
        raise r.fail("this type")
    r.take("rn", "approx")
    r.take("ftz")
    if r.flag("NaN"):
        function += "_nan"
    if r.flag("relu"):
        function += "_relu"
    r.done()
    sources = r.typed(kind, 1)
    places = ", ".join(f"{{{i}}}" for i in range(len(sources)))
    helper = "packed_math" if kind.endswith("x2") else "half_math"
    return r.template(
        f"{helper}('{function}', '{kind.removesuffix('x2')}', {places})", Typed(r.operands[0], kind), sources
    )


def _fma(r: Reader) -> Template:
    r.count(4)
    kind = r.need("f32", "f16", "bf16", "f16x2", "bf16x2")
    if kind == "f32":
        return _floating(r, "fma_rz" if r.flag("rz") else "fma", kind, 3, ufunc=False)
    return _small(r, kind, "fma")


def _mul(r: Reader) -> Template:
    if r.flag("wide"):
        kind = r.need("u16", "s16", "u32", "s32")
        r.done()
        wide = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}[kind]
        code = f"np.multiply({{0}}, {{1}}, dtype=np.{_dtype(wide)})"
        return r.template(code, Typed(r.operands[0], wide), r.typed(kind, 1))
    if r.flag("hi"):
        kind = r.need("u16", "s16", "u32", "s32", "u64", "s64")
        r.done()
        return r.template(f"mul_hi_{kind[1:]}({{0}}, {{1}})", Typed(r.operands[0], kind), r.typed(kind, 1))
    return _binary("np.multiply", "np.multiply", "mul")(r)


def _mad(r: Reader) -> Template:
    r.count(4)
    if r.flag("wide"):
        kind = r.need("u16", "s16", "u32", "s32")
        r.done()
        wide = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}[kind]
        sources = r.typed([kind, kind, wide], 1)
        code = f"np.multiply({{0}}, {{1}}, dtype=np.{_dtype(wide)}) + {{2}}"
        return r.template(code, Typed(r.operands[0], wide), sources)
    if r.flag("hi"):
        kind = r.need("u32", "s32", "u64", "s64")
        r.done()
        return r.template(f"mul_hi_{kind[1:]}({{0}}, {{1}}) + {{2}}", Typed(r.operands[0], kind), r.typed(kind, 1))
    if r.flag("lo"):
        kind = r.need(*INTEGERS)
        r.done()
        return r.template("np.multiply({0}, {1}) + {2}", Typed(r.operands[0], kind), r.typed(kind, 1))
    return _fma(r)


def _division(function: str) -> Callable[[Reader], Template]:
    def handler(r: Reader) -> Template:
        kind = r.need(*INTEGERS, "f32", "f64")
        if kind in ("f32", "f64"):
            if function != "divide":
                raise r.fail("this type")
            return _floating(r, "np.divide", kind)
        r.done()
        return r.template(f"{function}({{0}}, {{1}})", Typed(r.operands[0], kind), r.typed(kind, 1))

    return handler


def _unary(floating: str, integer: str | None = None, small: str | None = None) -> Callable[[Reader], Template]:
    """neg, abs, sqrt, ...: one source."""

    def handler(r: Reader) -> Template:
        r.count(2)
        kind = r.need("s16", "s32", "s64", "f32", "f64", "f16", "bf16", "f16x2", "bf16x2")
        if kind.startswith("s"):
            if integer is None:
                raise r.fail("this type")
            r.done()
            is_ufunc = integer.startswith("np.")
            code = integer if is_ufunc else f"{integer}({{0}})"
            return r.template(code, Typed(r.operands[0], kind), r.typed(kind, 1), ufunc=is_ufunc)
        if kind in ("f32", "f64"):
            return _floating(r, floating, kind, 1, ufunc=floating.startswith("np."))
        return _small(r, kind, small)

    return handler


def _ex2(r: Reader) -> Template:
    kind = r.need("f32", "f16", "bf16", "f16x2", "bf16x2")
    if kind != "f32":
        return _small(r, kind, "ex2")
    flush = r.flag("ftz")
    r.take("approx")
    r.done()
    return r.template("ex2_ftz({0})" if flush else "np.exp2({0})", Typed(r.operands[0], kind), r.typed(kind, 1))


def _lg2(r: Reader) -> Template:
    kind, flush = r.need("f32"), r.flag("ftz")
    r.take("approx")
    r.done()
    return r.template("lg2_ftz({0})" if flush else "np.log2({0})", Typed(r.operands[0], kind), r.typed(kind, 1))


def _logic(function: str, predicate: str | None = None) -> Callable[[Reader], Template]:
    def handler(r: Reader) -> Template:
        kind = r.need(*BITS, "pred")
        r.done()
        name = predicate if kind == "pred" and predicate else function
        return r.template(name, Typed(r.operands[0], kind), r.typed(kind, 1), ufunc=True)

    return handler


def _shift(function: str) -> Callable[[Reader], Template]:
    def handler(r: Reader) -> Template:
        kind = r.need(*BITS, *INTEGERS)
        r.done()
        # NumPy shifts by the width or more give 0 or the sign, as PTX does; counts must have the value's own type
        code = f"{function}({{0}}, np.asarray({{1}}).astype(np.{_dtype(kind)}))" if kind[1:] != "32" else function
        count = {"s": "s32"}.get(kind[0], "u32")
        sources = r.typed([kind, count], 1)
        return r.template(code, Typed(r.operands[0], kind), sources, ufunc=kind[1:] == "32")

    return handler


def _funnel(r: Reader) -> Template:
    direction, mode = r.need("l", "r"), r.need("wrap", "clamp")
    r.need("b32")
    r.done()
    count = "({2} & np.uint32(31))" if mode == "wrap" else "np.minimum({2}, np.uint32(32))"
    helper = "funnel_left" if direction == "l" else "funnel_right"
    return r.template(f"{helper}({{0}}, {{1}}, {count})", Typed(r.operands[0], "b32"), r.typed("b32", 1))


def _bits(
    function: str, kinds: tuple[str, ...], result: str | None, extra: tuple[str, ...] = ()
) -> Callable[[Reader], Template]:
    """popc, clz, bfe, ...: a helper on one value and further 32-bit operands."""

    def handler(r: Reader) -> Template:
        kind = r.need(*kinds)
        r.done()
        r.count(1 + arguments_of(function))
        count = len(r.operands) - 1 - len(extra)
        sources = r.typed([*[kind] * count, *extra], 1)
        places = ", ".join(f"{{{i}}}" for i in range(len(sources)))
        return r.template(f"{function}({places})", Typed(r.operands[0], result or kind), sources)

    return handler


def _lop3(r: Reader) -> Template:
    r.need("b32")
    r.done()
    r.count(5)
    table = r.operands[4]
    if not isinstance(table, Imm):
        raise r.fail("a table that is no constant")
    sources = [Typed(o, "b32") for o in r.operands[1:4]]
    return r.template(f"lop3({{0}}, {{1}}, {{2}}, {table.bits})", Typed(r.operands[0], "b32"), sources)


_COMPARE = {"eq": "np.equal", "ne": "np.not_equal", "lt": "np.less", "le": "np.less_equal"}
_COMPARE |= {"gt": "np.greater", "ge": "np.greater_equal"}
_COMPARE_UNSIGNED = {"lo": "np.less", "ls": "np.less_equal", "hi": "np.greater", "hs": "np.greater_equal"}
_COMPARE_FLOAT = {**_COMPARE, "ne": "ordered_ne", "equ": "unordered_eq", "neu": "np.not_equal", "ltu": "unordered_lt"}
_COMPARE_FLOAT |= {"leu": "unordered_le", "gtu": "unordered_gt", "geu": "unordered_ge", "num": "both_numbers"}
_COMPARE_FLOAT |= {"nan": "either_nan"}


def _comparison(r: Reader) -> tuple[str, str]:
    kind = r.need(*INTEGERS, *BITS, "f32", "f64", "bf16", "f16")
    table = _COMPARE_FLOAT if kind in ("f32", "f64", "f16", "bf16") else {**_COMPARE, **_COMPARE_UNSIGNED}
    return kind, table[r.need(*table)]


def _setp(r: Reader) -> Template:
    kind, function = _comparison(r)
    combine = r.take("and", "or", "xor")
    if r.flag("ftz") and kind not in ("f32", "f16"):
        raise r.fail("modifier .ftz")
    r.done()
    first = r.operands[0]
    sources = r.typed([kind, kind] + (["pred"] if combine else []), 1)
    values = ["{0}", "{1}"]
    if kind == "bf16":  # f16 is what NumPy has for it
        values = [f"bf16_values({v})" for v in values]
    if not isinstance(first, Pair) and not combine and kind not in ("bf16", "f16") and function.startswith("np."):
        return r.template(function, Typed(first, "pred"), sources, ufunc=True)
    code = f"{function}({', '.join(values)})"
    word = {"and": "&", "or": "|", "xor": "^", None: ""}[combine]
    if not isinstance(first, Pair):
        return r.template(f"{code} {word} {{2}}" if combine else code, Typed(first, "pred"), sources)
    other = f"~({code})"
    if combine:
        code, other = f"{code} {word} {{2}}", f"{other} {word} {{2}}"
    pairs = [(o, e) for o, e in ((first.first, code), (first.second, other)) if not is_sink(o)]
    if not pairs:
        raise r.fail("no destination")
    expression = pairs[0][1] if len(pairs) == 1 else f"({code}, {other})"
    return r.template(expression, [Typed(o, "pred") for o, _ in pairs], sources)


def _selp(r: Reader) -> Template:
    kind = r.need(*INTEGERS, *BITS, "f32", "f64")
    r.done()
    return r.template("np.where({2}, {0}, {1})", Typed(r.operands[0], kind), r.typed([kind, kind, "pred"], 1))


def _mov(r: Reader) -> Template:
    kind = r.need(*INTEGERS, *BITS, "f32", "f64", "pred", "b128")
    r.done()
    r.count(2)
    to, source = r.operands
    if isinstance(to, Vec):
        return _unpack(r, kind, to, source)
    if isinstance(source, Vec):
        return _pack(r, kind, source)
    if isinstance(to, Reg) and isinstance(source, Sym):
        kind = {16: "b16", 32: "b32", 64: "b64"}[KIND_WIDTH[to.kind]]
    return r.template("{0}", Typed(to, kind), [Typed(source, kind)])


def _pack(r: Reader, kind: str, source: Vec) -> Template:
    parts = [
        Typed(o, {2: {"b32": "b16", "b64": "b32"}, 4: {"b64": "b16"}}[len(source.items)][_bits_of(kind)])
        for o in source.items
    ]
    wide = {"b32": "np.uint32", "b64": "np.uint64"}[_bits_of(kind)]
    step = {"b16": 16, "b32": 32}[parts[0].type]
    terms = [f"np.left_shift({{{i}}}, {wide}({step * i}), dtype={wide})" for i in range(1, len(parts))]
    return r.template(
        " | ".join([*terms, f"np.asarray({{0}}).astype({wide})"]), Typed(r.operands[0], _bits_of(kind)), parts
    )


def _unpack(r: Reader, kind: str, to: Vec, source: object) -> Template:
    part = {2: {"b32": "b16", "b64": "b32"}, 4: {"b64": "b16"}}[len(to.items)][_bits_of(kind)]
    step = {"b16": 16, "b32": 32}[part]
    code = [
        f"({{0}} >> np.uint{_bits_of(kind)[1:]}({step * i})).astype(np.{_dtype(part)})" for i in range(len(to.items))
    ]
    kept = [(Typed(o, part), c) for o, c in zip(to.items, code, strict=True) if not is_sink(o)]
    expression = kept[0][1] if len(kept) == 1 else f"({', '.join(c for _, c in kept)})"
    return r.template(expression, [t for t, _ in kept], [Typed(r.operands[1], _bits_of(kind))])


def _cvta(r: Reader) -> Template:
    to = r.flag("to")
    space = r.need("shared", "global", "local", "const", "param", "shared::cta", "shared::cluster")
    r.need("u64", "u32")
    r.done()
    r.count(2)
    function = {"shared": "shared", "local": "local", "param": "param"}.get(space.split("::")[0])
    source, destination = r.operands[1], r.operands[0]
    if function is None or function == "param":
        return r.template("{0}", Typed(destination, "u64"), [Typed(source, "u64")])
    code = f"c.{'from' if to else 'to'}_generic_{function}({{0}})"
    return r.template(code, Typed(destination, "u64"), [Typed(source, "u64")])


def _mapa(r: Reader) -> Template:
    kind = r.need("u32", "u64")
    r.need("shared::cluster")
    r.done()
    return r.template("c.mapa({0}, {1})", Typed(r.operands[0], kind), r.typed([kind, "u32"], 1))


def _copysign(r: Reader) -> Template:
    kind = r.need("f32", "f64")
    r.done()
    return r.template("np.copysign({1}, {0})", Typed(r.operands[0], kind), r.typed(kind, 1))


def _testp(r: Reader) -> Template:
    kind = r.need("f32", "f64")
    test = {"finite": "np.isfinite", "infinite": "np.isinf", "notanumber": "np.isnan"}[
        r.need("finite", "infinite", "notanumber")
    ]
    r.done()
    return r.template(test, Typed(r.operands[0], "pred"), r.typed(kind, 1), ufunc=True)


def _bits_of(kind: str) -> str:
    return "b" + kind[1:]


def _dtype(kind: str) -> str:
    return {"u": "uint", "s": "int", "b": "uint", "f": "float"}[kind[0]] + kind[1:]


_HANDLERS: dict[str, Callable[[Reader], Template]] = {
    "add": _binary("np.add", "np.add", "add"),
    "sub": _binary("np.subtract", "np.subtract", "sub"),
    "mul": _mul,
    "mad": _mad,
    "fma": _fma,
    "div": _division("divide"),
    "rem": _division("remainder"),
    "min": _binary("np.minimum", "np.fmin", "min"),
    "max": _binary("np.maximum", "np.fmax", "max"),
    "neg": _unary("negative", "negative", "neg"),
    "abs": _unary("np.abs", "np.abs", "abs"),
    "sqrt": _unary("np.sqrt"),
    "rsqrt": _unary("rsqrt"),
    "rcp": _unary("reciprocal"),
    "sin": _unary("np.sin"),
    "cos": _unary("np.cos"),
    "tanh": _unary("np.tanh", None, "tanh"),
    "ex2": _ex2,
    "lg2": _lg2,
    "and": _logic("np.bitwise_and"),
    "or": _logic("np.bitwise_or"),
    "xor": _logic("np.bitwise_xor"),
    "not": _logic("np.invert", "np.logical_not"),
    "shl": _shift("np.left_shift"),
    "shr": _shift("np.right_shift"),
    "shf": _funnel,
    "popc": _bits("popc", ("b32", "b64"), "u32"),
    "clz": _bits("clz", ("b32", "b64"), "u32"),
    "bfind": _bits("bfind", ("u32", "s32", "u64", "s64"), "u32"),
    "brev": _bits("brev", ("b32", "b64"), None),
    "bfe": _bits("bfe", ("u32", "s32", "u64", "s64"), None, ("u32", "u32")),
    "bfi": _bits("bfi", ("b32", "b64"), None, ("u32", "u32")),
    "prmt": _bits("permute_bytes", ("b32",), None),
    "lop3": _lop3,
    "setp": _setp,
    "selp": _selp,
    "mov": _mov,
    "cvta": _cvta,
    "mapa": _mapa,
    "copysign": _copysign,
    "testp": _testp,
}
