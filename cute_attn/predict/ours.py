"""Our own kernels as calls: their loops, what `fwd` and `bwd` walk on a mask, and in which order their items start."""

from __future__ import annotations

import numpy as np
import torch

from cute_attn.jit.obtain import obtain
from cute_attn.launch.order import in_turns
from cute_attn.launch.packing import positions, shared_by
from cute_attn.mask import IntervalMask, TileSchedule
from cute_attn.mask.tiles import RunTable
from cute_attn.spec.backward import BackwardSpec
from cute_attn.spec.forward import ForwardSpec
from cute_attn.spec.operation import Spec

from .call import Call
from .kernel import Code, read

__all__ = ["OPERATIONS", "call_of", "code_of"]

OPERATIONS = ("fwd", "bwd")
MOST_ITEMS, MOST_TURNS = 1 << 21, 1 << 24  # that are laid, or walked, in seconds


def code_of(spec: Spec) -> Code:
    """The loops of the kernel that a launch would run, found as that finds it: compiled if it is nowhere."""
    return read(obtain(spec).cubin)


def call_of(spec: Spec, code: Code, mask: IntervalMask, heads: tuple[int, int], batch: int = 1) -> Call:
    """A launch of a compiled spec. heads: of q and of k. batch: elements that share the mask.

    Raises ValueError for an operation that the model does not know, a mask with planes of its own, heads of q that
    those of k do not divide, and more items than are laid in seconds.
    """
    if not isinstance(spec, (ForwardSpec, BackwardSpec)):
        allowed = ", ".join(map(repr, OPERATIONS))
        raise ValueError(f"op must be one of {allowed}, got {spec.op!r}: the model knows no other")
    if mask.planes != 1:
        raise ValueError(f"mask must be shared by all heads and batch elements, got one of {mask.planes} planes")
    if heads[0] % heads[1]:
        raise ValueError(f"heads_q must be a multiple of heads_k, got {heads[0]} and {heads[1]}")
    shared = shared_by(getattr(spec, "packed_heads", 1), heads)
    schedule = mask.schedule((positions(spec.tile.m, shared), spec.tile.n))
    side, tiles = ("queries", schedule.q_tiles) if spec.op == "fwd" else ("keys", schedule.k_tiles)
    if (items := tiles * heads[0] // shared * batch) > MOST_ITEMS:
        raise ValueError(f"the call has {items} tiles of {side}, at most {MOST_ITEMS} are laid out")
    attended = float((mask.hi - mask.lo).sum()) * batch * heads[0]
    if isinstance(spec, ForwardSpec):
        return _forward(spec, code, schedule, heads, batch, attended, shared)
    return _backward(spec, code, schedule, heads, batch, attended)


def _forward(
    spec: ForwardSpec,
    code: Code,
    schedule: TileSchedule,
    heads: tuple[int, int],
    batch: int,
    attended: float,
    shared: int,
) -> Call:
    """Persistent CTAs; items are query tiles of a head, or of the heads that share them, heads fastest."""
    tile, depth = spec.tile, spec.head_dim + spec.head_dim_v
    columns = schedule.forward.columns
    groups = heads[0] // shared * batch
    partial, full = (_repeated(count, groups) for count in (columns.n_partial, columns.n_full))
    tile_cycles = tile.n * depth / 32  # of a warpgroup's 64 rows
    return Call(
        code,
        warpgroups=tile.consumers,
        tiles_in_pass=max(1, round(code.full.tensor_cycles / tile_cycles)),
        partial=partial,
        full=full,
        dealt=True,
        loaded=2.0 * tile.n * depth,
        flop=2.0 * attended * depth,
        moved=2.0 * batch * depth * (schedule.seqlen_q * heads[0] + schedule.seqlen_k * heads[1]),
    )


def _backward(
    spec: BackwardSpec, code: Code, schedule: TileSchedule, heads: tuple[int, int], batch: int, attended: float
) -> Call:
    """Items are key tiles of a key head, that walk all its query heads."""
    tile, d, dv = spec.tile, spec.head_dim, spec.head_dim_v
    group, q_rows = heads[0] // heads[1], batch * schedule.seqlen_q * heads[0]
    k_rows = batch * schedule.seqlen_k * heads[1]
    table = in_turns(schedule).table if spec.deterministic else schedule.backward
    columns = table.columns
    partial, full = (_repeated(count * group, heads[1] * batch) for count in (columns.n_partial, columns.n_full))
    if spec.deterministic and (turns := int(partial.sum() + full.sum())) > MOST_TURNS:
        raise ValueError(f"the call has {turns} tiles that take turns, at most {MOST_TURNS} are walked")
    return Call(
        code,
        warpgroups=2,
        tiles_in_pass=1,
        partial=partial,
        full=full,
        dealt=False,
        loaded=2.0 * tile.m * (d + dv),
        sent=4.0 * tile.m * d,
        flop=2.0 * attended * (3 * d + 2 * dv),
        moved=2.0 * (q_rows + 2 * k_rows) * (d + dv) + 4.0 * q_rows * d,
        # O and dO are read, the sum of dQ is cleared; it is read, and dQ written.
        besides=q_rows * (4.0 * dv + 4 * d + 6 * d),
        kernels=3,
        sums=_sums(table, schedule.q_tiles, group, heads[1] * batch) if spec.deterministic else (),
    )


def _repeated(counts: torch.Tensor, heads: int) -> np.ndarray:
    return np.repeat(counts.numpy().astype(np.int64), heads)


def _sums(table: RunTable, q_tiles: int, group: int, heads_k: int) -> list[np.ndarray]:
    """Full tiles, then partial ones, downwards, each of all query heads of a key head, as the kernel walks them."""
    runs, found = table.runs.tolist(), []
    for _, _, partial_begin, full_begin, end, *_ in table.items.tolist():
        tiles = [
            tile
            for begin, stop in ((full_begin, end), (partial_begin, full_begin))
            for first, last, *_ in reversed(runs[begin:stop])
            for tile in reversed(range(first, last))
        ]
        column = np.array(tiles, dtype=np.int64)[:, None]
        for head_k in range(heads_k):
            found.append((np.arange(head_k * group, (head_k + 1) * group) * q_tiles + column).ravel())
    return found
