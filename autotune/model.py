"""How long a candidate should take, from its tiles and its machine code. A model, not a measurement.

A tile costs `max(tensor, issue) + stall * min(tensor, issue)` cycles of a multiprocessor: `tensor` is what its products
take at the peak rate (a 64xNx16 product N / 2 cycles), `issue` the slots that its loop issues in each of the four
schedulers, and `stall` the part of the shorter one that is not hidden, which is assumed. Waits of a tile, and the
prologue and epilogue of an item of work, add fixed numbers of cycles, also assumed; the items are spread over the
multiprocessors without a gap.
"""

from __future__ import annotations

from cute_attn.spec.operation import operation
from cute_attn.spec.tiles import Tile, TileConfig

from .problem import Problem
from .profile import Loop, Profile

__all__ = ["ASSUMPTIONS", "CLOCK", "MODELLED_SMS", "UNKNOWN_SLOTS", "predict"]

MODELLED_SMS = 132  # where there is no GPU to ask
CLOCK = 1.755e9  # Hz, of the multiprocessors
STALL_PING_PONG, STALL = 0.15, 0.30
TILE_CYCLES, ITEM_CYCLES = 120, 2000
# Issue slots for each tensor cycle of code that has not been compiled or cannot be disassembled: full, partial tiles.
UNKNOWN_SLOTS = (0.35, 0.45)
ASSUMPTIONS = (
    f"{CLOCK / 1e9:.3f} GHz; {STALL_PING_PONG:.0%} of the shorter of tensor and issue cycles not hidden with "
    f"ping-pong, {STALL:.0%} without; {TILE_CYCLES} cycles of waiting a tile, {ITEM_CYCLES} for the prologue and "
    "epilogue of each query tile, in the backward each key tile"
)


def predict(problem: Problem, tile: Tile, profile: Profile | None = None, sms: int = MODELLED_SMS) -> float:
    """Seconds of one call, by the static model."""
    schedule = problem.intervals().schedule((tile.m, tile.n))
    row = operation(problem.op)
    items = row.table(schedule).columns
    partial, full = items.n_partial.double(), items.n_full.double()
    tensor = tile.m * tile.n * row.depth(problem.head_dim, problem.head_dim_v) / 2048
    slots_full, slots_partial = _slots(profile)
    stall = STALL_PING_PONG if isinstance(tile, TileConfig) and tile.ping_pong else STALL
    cycles = full * _tile_cycles(tensor, slots_full, stall) + partial * _tile_cycles(tensor, slots_partial, stall)
    items = cycles + ITEM_CYCLES
    heads = problem.heads_q * (problem.batch if problem.intervals().batch == 1 else 1)
    busiest = max(float(items.sum()) * heads / sms, float(items.max()) if len(items) else 0.0)
    return busiest / CLOCK


def _tile_cycles(tensor: float, slots: float, stall: float) -> float:
    issue = tensor * slots
    return max(tensor, issue) + stall * min(tensor, issue) + TILE_CYCLES


def _slots(profile: Profile | None) -> tuple[float, float]:
    """Issue slots for each tensor cycle in the leanest loop, which has no mask, and in the fullest."""
    loops = profile.loops if profile else ()
    ratios = sorted(_ratio(loop) for loop in loops)
    return (ratios[0], ratios[-1]) if ratios else UNKNOWN_SLOTS


def _ratio(loop: Loop) -> float:
    return loop.slots / loop.tensor_cycles
