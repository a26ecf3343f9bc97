"""Which tiles are worth compiling: a guess from the tile alone, before there is machine code that a model could read.

A tile costs `max(tensor, issue) + stall * min(tensor, issue)` cycles of a multiprocessor: `tensor` is what its products
take at the peak rate (a 64xNx16 product N / 2 cycles), `issue` the slots that its loop issues in each of the four
schedulers, and `stall` the part of the shorter one that is not hidden. Waits of a tile, and the prologue and epilogue
of an item of work, add fixed numbers of cycles. Slots, stalls and these numbers are assumed; the items are spread over
the multiprocessors without a gap. What is compiled is ranked by `predicted.py`, not by this.
"""

from __future__ import annotations

from cute_attn.predict.machine import H200
from cute_attn.spec.operation import operation
from cute_attn.spec.tiles import Tile, TileConfig

from .problem import Problem

__all__ = ["MODELLED_SMS", "guess"]

MODELLED_SMS = H200.multiprocessors  # where there is no GPU to ask
STALL_PING_PONG, STALL = 0.15, 0.30
TILE_CYCLES, ITEM_CYCLES = 120, 2000
SLOTS_FULL, SLOTS_PARTIAL = 0.35, 0.45  # issue slots for each tensor cycle


def guess(problem: Problem, tile: Tile, sms: int = MODELLED_SMS) -> float:
    """Cycles of one call."""
    schedule = problem.intervals().schedule((tile.m, tile.n))
    row = operation(problem.op)
    items = row.table(schedule).columns
    partial, full = items.n_partial.double(), items.n_full.double()
    tensor = tile.m * tile.n * row.depth(problem.head_dim, problem.head_dim_v) / 2048
    stall = STALL_PING_PONG if isinstance(tile, TileConfig) and tile.ping_pong else STALL
    cycles = full * _tile_cycles(tensor, SLOTS_FULL, stall) + partial * _tile_cycles(tensor, SLOTS_PARTIAL, stall)
    items = cycles + ITEM_CYCLES
    heads = problem.heads_q * (problem.batch if problem.intervals().batch == 1 else 1)
    return max(float(items.sum()) * heads / sms, float(items.max()) if len(items) else 0.0)


def _tile_cycles(tensor: float, slots: float, stall: float) -> float:
    issue = tensor * slots
    return max(tensor, issue) + stall * min(tensor, issue) + TILE_CYCLES
