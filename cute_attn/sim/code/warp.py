"""Instructions among the lanes of a warp (shfl, vote, match, redux, elect): their templates and what they compute."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .ptx import Pair
from .template import Reader, Template, Typed, is_sink

FULL = 0xFFFFFFFF
_EVERYONE = np.ones((1, 32), bool)


def build(r: Reader) -> Template | None:
    """The template of a warp-wide instruction, None if it is none."""
    handler = {"shfl": _shfl, "vote": _vote, "match": _match, "redux": _redux, "elect": _elect}.get(r.instruction.name)
    handler = handler or {"activemask": _activemask}.get(r.instruction.name)
    return handler(r) if handler else None


def _mask(r: Reader) -> Typed:
    """The last operand, the lanes that take part."""
    return Typed(r.operands[-1], "u32")


def _shfl(r: Reader) -> Template:
    r.need("sync")
    mode = r.need("idx", "up", "down", "bfly")
    r.need("b32")
    r.done()
    r.count(5)
    first = r.operands[0]
    value = [Typed(r.operands[1], "b32"), Typed(r.operands[2], "u32"), Typed(r.operands[3], "u32"), _mask(r)]
    call = f"shuffle(c, g, V, {{site}}, '{mode}', {{0}}, {{1}}, {{2}}, {{3}})"
    if isinstance(first, Pair):
        if is_sink(first.second):
            return r.template(f"{call}[0]", Typed(first.first, "b32"), value)
        return r.template(call, [Typed(first.first, "b32"), Typed(first.second, "pred")], value)
    return r.template(f"{call}[0]", Typed(first, "b32"), value)


def _vote(r: Reader) -> Template:
    r.need("sync")
    mode = r.need("all", "any", "uni", "ballot")
    kind = r.need("pred", "b32")
    r.done()
    r.count(3)
    sources = [Typed(r.operands[1], "pred"), _mask(r)]
    call = f"vote(c, g, V, {{site}}, '{mode}', {{0}}, {{1}})"
    return r.template(call, Typed(r.operands[0], kind), sources)


def _match(r: Reader) -> Template:
    mode = r.need("any", "all")
    r.need("sync")
    kind = r.need("b32", "b64")
    r.done()
    r.count(3)
    sources = [Typed(r.operands[1], kind), _mask(r)]
    call = f"match(c, g, V, {{site}}, '{mode}', {{0}}, {{1}})"
    first = r.operands[0]
    if isinstance(first, Pair):
        return r.template(call, [Typed(first.first, "b32"), Typed(first.second, "pred")], sources, single=True)
    return r.template(f"{call}[0]", Typed(first, "b32"), sources, single=True)


def _redux(r: Reader) -> Template:
    r.need("sync")
    operation, kind = r.need("add", "min", "max", "and", "or", "xor"), r.need("u32", "s32", "b32")
    r.done()
    r.count(3)
    sources = [Typed(r.operands[1], kind), _mask(r)]
    return r.template(
        f"reduce_warp(c, g, V, {{site}}, '{operation}', {{0}}, {{1}})", Typed(r.operands[0], kind), sources
    )


def _elect(r: Reader) -> Template:
    r.need("sync")
    r.done()
    r.count(2)
    pair = r.operands[0]
    if not isinstance(pair, Pair):
        raise r.fail("a single destination")
    call = "elect(c, g, V, {site}, {0})"
    kept = [Typed(o, t) for o, t in ((pair.first, "b32"), (pair.second, "pred")) if not is_sink(o)]
    if not kept:
        raise r.fail("no destination")
    if len(kept) == 1:
        call += "[1]" if is_sink(pair.first) else "[0]"
    return r.template(call, kept, [_mask(r)])


def _activemask(r: Reader) -> Template:
    r.need("b32")
    r.done()
    r.count(1)
    return r.template("active(V)", Typed(r.operands[0], "b32"), [])


# What they compute. V holds the lanes here: V.lane (0..31), V.warp, V.whole (all lanes of every warp are here).


def _rows(V, x: np.ndarray) -> np.ndarray:
    """[..., lanes here] as [..., warps, 32]; lanes that are elsewhere hold zeros."""
    if x.shape[-1] != V.count:
        x = np.broadcast_to(x, (*x.shape[:-1], V.count))
    if V.whole:
        return np.ascontiguousarray(x).reshape(*x.shape[:-1], -1, 32)
    full = np.zeros((*x.shape[:-1], V.warps, 32), x.dtype)
    full[..., V.slot, V.lane] = x
    return full


def _back(V, rows: np.ndarray) -> np.ndarray:
    """The inverse of _rows."""
    return rows.reshape(*rows.shape[:-2], -1) if V.whole else rows[..., V.slot, V.lane]


def _check(c, g, V, site, mask: np.ndarray) -> np.ndarray:
    """[..., warps, 32] of who takes part; the lanes named must be here, unless they left the kernel."""
    if mask.size == 1 and V.whole and int(mask.flat[0]) == FULL:
        return _EVERYONE
    named = _rows(V, mask)[..., :1] * 0 + _rows(V, mask).max(axis=-1, keepdims=True)
    taking = (named >> np.arange(32, dtype=np.uint32) & np.uint32(1)).astype(bool)
    here = _rows(V, np.ones(V.count, bool))
    absent = taking & ~here & c.alive(g)
    if absent.any():
        c.diverged(site, g, absent)
    return taking & here


@lru_cache(maxsize=256)
def _sources(mode: str, b: int, bounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Which lane each of 32 reads from, and whether that lane is in range."""
    return _sources_of(mode, np.full(32, b), np.full(32, bounds))


def _sources_of(mode: str, b: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lane = np.arange(32)
    b, segment, clamp = b & 31, bounds >> 8 & 31, bounds & 31
    least, most = lane & segment, (lane & segment) | (clamp & ~segment)
    source = {"idx": least | (b & ~segment), "up": lane - b, "down": lane + b, "bfly": lane ^ b}[mode]
    valid = source >= most if mode == "up" else source <= most
    return np.where(valid, source, lane), valid


def shuffle(c, g, V, site, mode: str, value, b, bounds, mask) -> tuple[np.ndarray, np.ndarray]:
    """shfl.sync: the value of another lane and whether that lane is in range."""
    taking = _check(c, g, V, site, mask)
    rows = _rows(V, value)
    if b.size == 1 and bounds.size == 1:
        source, valid = _sources(mode, int(b.flat[0]), int(bounds.flat[0]))
        taken, present = rows[..., source], taking[..., source]
    else:
        source, valid = _sources_of(mode, _rows(V, b).astype(np.int64), _rows(V, bounds).astype(np.int64))
        shape = np.broadcast_shapes(rows.shape, source.shape)
        rows, source = np.broadcast_to(rows, shape), np.broadcast_to(source, shape)
        taken = np.take_along_axis(rows, source, axis=-1)
        present = np.take_along_axis(np.broadcast_to(taking, shape), source, axis=-1)
    if not present.all() and not (present | ~taking).all():
        c.inactive_source(site, g)
    return _back(V, taken), _back(V, np.broadcast_to(valid, taken.shape))


def vote(c, g, V, site, mode: str, value, mask) -> np.ndarray:
    """vote.sync: all, any, uni give a predicate, ballot a word."""
    taking = _check(c, g, V, site, mask)
    rows = _rows(V, value)
    if mode == "ballot":
        word = ((rows & taking).astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(axis=-1).astype(np.uint32)
        return _back(V, np.repeat(word[..., None], 32, axis=-1))
    some = (rows & taking).any(axis=-1)
    every = (rows | ~taking).all(axis=-1)
    result = {"any": some, "all": every, "uni": every | ~some}[mode]
    return _back(V, np.repeat(result[..., None], 32, axis=-1))


def match(c, g, V, site, mode: str, value, mask) -> tuple[np.ndarray, np.ndarray]:
    """match.sync: the lanes that hold the same value; for `all`, that word only if every lane does, and whether so."""
    taking = _check(c, g, V, site, mask)
    rows = _rows(V, value)
    same = (rows[..., :, None] == rows[..., None, :]) & np.broadcast_to(taking, rows.shape)[..., None, :]
    word = (same.astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(axis=-1).astype(np.uint32)
    if mode == "any":
        return _back(V, word), _back(V, word != 0)
    every = (same | ~np.broadcast_to(taking, rows.shape)[..., None, :]).all(axis=-1)
    return _back(V, np.where(every, word, np.uint32(0))), _back(V, every)


def reduce_warp(c, g, V, site, operation: str, value, mask) -> np.ndarray:
    """redux.sync over the lanes that take part."""
    taking = _check(c, g, V, site, mask)
    rows = _rows(V, value)
    ufunc = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or}
    function = ufunc.get(operation, np.bitwise_xor)
    neutral = {"min": np.iinfo(rows.dtype).max, "max": np.iinfo(rows.dtype).min, "and": ~rows.dtype.type(0)}
    kept = np.where(taking, rows, rows.dtype.type(neutral.get(operation, 0)))
    result = function.reduce(kept, axis=-1, dtype=rows.dtype)
    return _back(V, np.repeat(result[..., None], 32, axis=-1))


def elect(c, g, V, site, mask) -> tuple[np.ndarray, np.ndarray]:
    """elect.sync: the lowest lane that takes part, and whether this lane is it."""
    taking = _check(c, g, V, site, mask)
    leader = taking.argmax(axis=-1)[..., None]
    if leader.shape[-2:] == (1, 1) and V.whole:
        return np.full(1, leader.flat[0], np.uint32), V.lane == leader.flat[0]
    shape = (*leader.shape[:-2], V.warps, 32)
    chosen = np.broadcast_to(leader == np.arange(32), shape)
    return _back(V, np.broadcast_to(leader, shape).astype(np.uint32)), _back(V, chosen)


def active(V) -> np.ndarray:
    """The lanes that run together now, as a word."""
    rows = _rows(V, np.ones(V.count, bool))
    word = (rows.astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(axis=-1).astype(np.uint32)
    return _back(V, np.repeat(word[..., None], 32, axis=-1))


__all__ = ["active", "build", "elect", "match", "reduce_warp", "shuffle", "vote"]
