"""Loads, stores, atomics and matrix loads as templates; the work is done by methods of the CTA."""

from __future__ import annotations

from ..formats import WIDTH
from ..state.flags import SCOPES
from .ptx import Mem, Operand, Reg, Sym, Vec
from .template import KIND_WIDTH, Reader, Template, Typed, is_sink

_IGNORED: tuple[str, ...] = (
    *("weak", "relaxed", "acquire", "release", "acq_rel", "volatile", "mmio", "cta", "cluster", "gpu", "sys"),
    *("ca", "cg", "cs", "cv", "lu", "wb", "wt", "nc", "unified", "L2::cache_hint", "L2::64B", "L2::128B", "L2::256B"),
    *(f"{cache}::evict_{kind}" for cache in ("L1", "L2") for kind in ("normal", "first", "last", "unchanged")),
    "L1::no_allocate",
)
_SPACES = ("param", "global", "shared", "local", "const", "shared::cta", "shared::cluster", "param::entry")
_TYPES = ("b8", "u8", "s8", "b16", "u16", "s16", "b32", "u32", "s32", "f32", "b64", "u64", "s64", "f64", "f16", "bf16")
_ATOMIC_TYPES = (*_TYPES, "f16x2", "bf16x2")
_OPERATIONS = ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")


def build(r: Reader) -> Template | None:
    """The template of a memory instruction, None if it is none."""
    handler = {"ld": _load, "ldu": _load, "st": _store, "atom": _atomic, "red": _atomic}.get(r.instruction.name)
    handler = handler or {"ldmatrix": _ldmatrix, "stmatrix": _stmatrix}.get(r.instruction.name)
    return handler(r) if handler else None


def is_polled(r: Reader) -> bool:
    """Loads and atomics that other CTAs' progress may change: a loop over one of these is a spin."""
    name, modifiers = r.instruction.name, r.modifiers
    return name == "atom" or (name == "ld" and any(m in modifiers for m in ("acquire", "relaxed", "volatile", "mmio")))


def is_published(r: Reader) -> bool:
    """Stores and atomics that are made for others to poll."""
    told = not {"release", "acq_rel", "volatile", "mmio"}.isdisjoint(r.modifiers)
    return told and r.instruction.name in ("st", "red", "atom")


def _strength(r: Reader) -> str:
    """What an access says of its order, as an argument of a call; atomic operations are relaxed, others weak."""
    order = next((m for m in r.modifiers if m in ("relaxed", "acquire", "release", "acq_rel")), None)
    scope = next((m for m in r.modifiers if m in SCOPES), None)
    if not {"volatile", "mmio"}.isdisjoint(r.modifiers):
        order, scope = "relaxed", "sys"
    if order is None and r.instruction.name in ("ld", "ldu", "st"):
        return "None"
    return f"Strength({order or 'relaxed'!r}, {SCOPES[scope or 'gpu']})"


def address(r: Reader, operand: Operand) -> tuple[Typed, int]:
    """Base (as unsigned) and byte offset of a memory operand."""
    if not isinstance(operand, Mem):
        raise r.fail(f"{operand} is no address")
    if isinstance(operand.base, Reg):
        return Typed(operand.base, f"u{KIND_WIDTH[operand.base.kind]}"), operand.offset
    return Typed(operand.base, "u64"), operand.offset


def _space(r: Reader) -> str:
    space = r.take(*_SPACES) or "generic"
    return {"shared::cta": "shared", "shared::cluster": "cluster", "const": "global", "param::entry": "param"}.get(
        space, space
    )


def _items(operand: Operand) -> tuple[Operand, ...]:
    return operand.items if isinstance(operand, Vec) else (operand,)


def _transfer(r: Reader, operand: int, what: str) -> tuple[str, str, tuple[Operand, ...]]:
    """Of a load or a store: space, type, and the registers of an operand, as many as the instruction names."""
    space, kind = _space(r), r.need(*_TYPES)
    vector = r.take("v2", "v4", "v8")
    r.done(*_IGNORED)
    r.count(2 + r.hints)
    items = _items(r.operands[operand])
    if len(items) != int(vector[1:] if vector else 1):
        raise r.fail(f"{len(items)} {what}")
    return space, kind, items


def _numpy(kind: str) -> str:
    """NumPy's code of a memory type; floating-point numbers travel as bits."""
    return ("i" if kind[0] == "s" else "u") + str(max(WIDTH[kind] // 8, 1))


def _load(r: Reader) -> Template:
    strength = _strength(r)
    space, kind, items = _transfer(r, 0, "destinations")
    base, offset = address(r, r.operands[1])
    named = space == "param" and isinstance(base.operand, Sym)
    if named:
        assert isinstance(base.operand, Sym)
        what = f"'{base.operand.name}', {offset}, '{_numpy(kind)}', {len(items)}"
        call = f"load_store.load_parameter(c, {{site}}, g, {what})"
    else:
        what = f"'{space}', {{0}}, {{offset}}, '{_numpy(kind)}', {len(items)}"
        call = f"load_store.load(c, {{site}}, g, {what}, {{where}}, {strength})"
    widths = [KIND_WIDTH[o.kind] if isinstance(o, Reg) else WIDTH[kind] for o in items]
    if any(w > WIDTH[kind] for w in widths):
        wide = f"np.uint{widths[0]}"
        call = f"[x.astype({wide}) for x in {call}]" if len(items) > 1 else f"{call}.astype({wide})"
    kept = [(i, Typed(o, f"b{w}")) for i, (o, w) in enumerate(zip(items, widths, strict=True)) if not is_sink(o)]
    if not kept:
        raise r.fail("no destination")
    if len(kept) < len(items):
        call = f"[{call}[i] for i in {[i for i, _ in kept]}]" + ("[0]" if len(kept) == 1 else "")
    template = r.template(call, [t for _, t in kept], [] if named else [base], ordered=not named, extra=(space, kind))
    template.offsets = offset
    return template


def _store(r: Reader) -> Template:
    strength = _strength(r)
    space, kind, items = _transfer(r, 1, "sources")
    base, offset = address(r, r.operands[0])
    values = [Typed(o, f"b{KIND_WIDTH[o.kind] if isinstance(o, Reg) else max(WIDTH[kind], 16)}") for o in items]
    places = "".join(f"{{{i + 1}}}, " for i in range(len(values)))
    what = f"'{space}', {{0}}, {{offset}}, 'u{WIDTH[kind] // 8}', ({places})"
    call = f"load_store.store(c, {{site}}, g, {what}, {{where}}, {strength})"
    template = r.template(call, [], [base, *values], ordered=True, extra=(space, kind))
    template.offsets, template.statement = offset, True
    return template


def _atomic(r: Reader) -> Template:
    returns, strength = r.instruction.name == "atom", _strength(r)
    space, operation, kind = _space(r), r.need(*_OPERATIONS), r.need(*_ATOMIC_TYPES)
    vector = r.take("v2", "v4", "v8")
    r.done(*_IGNORED, "noftz")
    if kind.startswith("b") and operation in ("add", "min", "max", "inc", "dec") and not kind.startswith("bf"):
        raise r.fail("a bit type")
    destination = _items(r.operands[0]) if returns else ()
    base, offset = address(r, r.operands[int(returns)])
    groups = [_items(o) for o in r.operands[int(returns) + 1 :]]
    groups = groups[: len(groups) - r.hints]
    wanted, each = 2 if operation == "cas" else 1, int(vector[1:]) if vector else 1
    if len(groups) != wanted or any(len(items) != each for items in groups):
        raise r.fail(f"{len(groups)} values")
    if returns and len(destination) != each:
        raise r.fail(f"{len(destination)} destinations")
    values = [Typed(o, f"b{WIDTH[kind]}") for items in groups for o in items]
    places = "".join(f"{{{i + 1}}}, " for i in range(len(values)))
    what = f"'{space}', '{operation}', '{kind}'"
    call = f"atomics.atomic(c, {{site}}, g, {what}, {{0}}, {{offset}}, ({places}), {returns}, {{where}}, {strength})"
    kept = [Typed(o, f"b{WIDTH[kind]}") for o in destination if not is_sink(o)]
    if len(kept) < len(destination) and len(destination) > 1:
        raise r.fail("a vector with sinks")
    template = r.template(call, kept, [base, *values], ordered=True, single=True)
    template.offsets, template.statement = offset, not kept
    return template


def _matrix(r: Reader) -> tuple[int, bool]:
    r.need("sync")
    r.need("aligned")
    r.need("m8n8")
    count = int(r.need("x1", "x2", "x4")[1:])
    transposed = r.flag("trans")
    r.need("shared", "shared::cta")
    r.need("b16")
    r.done()
    r.count(2)
    return count, transposed


def _ldmatrix(r: Reader) -> Template:
    count, transposed = _matrix(r)
    base, offset = address(r, r.operands[1])
    call = f"load_store.ldmatrix(c, {{site}}, g, {{0}}, {{offset}}, {count}, {transposed})"
    kept = [Typed(o, "b32") for o in _items(r.operands[0])]
    if len(kept) != count:
        raise r.fail(f"{len(kept)} destinations")
    template = r.template(call, kept, [base], ordered=True, extra=(str(count),))
    template.offsets = offset
    return template


def _stmatrix(r: Reader) -> Template:
    count, transposed = _matrix(r)
    base, offset = address(r, r.operands[0])
    values = [Typed(o, "b32") for o in _items(r.operands[1])]
    if len(values) != count:
        raise r.fail(f"{len(values)} sources")
    places = "".join(f"{{{i + 1}}}, " for i in range(len(values)))
    call = f"load_store.stmatrix(c, {{site}}, g, {{0}}, {{offset}}, ({places}), {transposed})"
    template = r.template(call, [], [base, *values], ordered=True, extra=(str(count),))
    template.offsets, template.statement = offset, True
    return template
