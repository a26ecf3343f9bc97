"""One call: its kernel's loops, its work and a machine give its time, and what that time is spent on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .chip import makespan, makespan_in_turns
from .clock import clock
from .kernel import Code, Loop
from .machine import Machine
from .model import Play, play

__all__ = ["Call", "Prediction", "predict"]

_PASSES = 4  # from which what one more costs is taken


@dataclass(frozen=True)
class Call:
    """What a kernel is launched on.

    code: of the kernel with the products. warpgroups: its consumers. tiles_in_pass: of its loops.
    partial, full: tiles of each item, in the order in which items start. strided: how they are laid (`makespan`).
    loaded, sent: bytes of a tile from L2, and of dQ to L2. item_bytes: of an item's sums of dK and dV to L2.
    moved: bytes that go through memory in the kernel; besides: in other kernels before and after, of which there are
    `kernels` in all. flop: for TFLOP/s, of attended pairs only.
    sums: with turns, of each item, see `makespan_in_turns`.
    """

    code: Code
    warpgroups: int
    tiles_in_pass: int
    partial: np.ndarray
    full: np.ndarray
    strided: bool
    loaded: float
    flop: float
    moved: float
    sent: float = 0.0
    item_bytes: float = 0.0
    besides: float = 0.0
    kernels: int = 1
    sums: Sequence[np.ndarray] = field(default=())


@dataclass(frozen=True)
class Prediction:
    """seconds: of a call, of which `besides` in kernels before and after the main one. clock: Hz.

    shares: of the cycles of a full tile in which each resource is occupied. binds: the one that is occupied most, or
    "waiting" where none is for nine tenths. play: a few full tiles, from a standing start.
    """

    seconds: float
    besides: float
    clock: float
    tflops: float
    shares: dict[str, float]
    binds: str
    play: Play


def predict(call: Call, machine: Machine) -> Prediction:
    """The time of a call."""
    partial, full = (_pass(call, loop, machine) for loop in (call.code.partial, call.code.full))
    item = machine.item + call.item_bytes * machine.reduction / machine.l2 + max(0.0, full.fill)
    if len(call.sums):
        tiles = call.partial.sum() + call.full.sum()
        step = (call.partial.sum() * partial.tile + call.full.sum() * full.tile) / max(tiles, 1)
        cycles = makespan_in_turns(call.sums, float(step), item, machine.addition, machine.multiprocessors)
    else:
        items = item + call.partial * partial.tile + call.full * full.tile
        cycles = makespan(items, machine.multiprocessors, call.strided)
    tensor = call.warpgroups / call.tiles_in_pass * (
        call.partial.sum() * call.code.partial.tensor_cycles + call.full.sum() * call.code.full.tensor_cycles
    )
    share = float(tensor) / machine.multiprocessors / max(cycles, 1.0)
    memory = machine.hbm * machine.hbm_share
    hz = clock(machine, share, cycles / machine.boost_clock)
    besides = call.besides / memory + call.kernels * machine.launch
    seconds = max(cycles / hz, call.moved / memory) + besides
    typical = full if call.full.sum() * full.tile >= call.partial.sum() * partial.tile else partial
    shares = typical.shares | {"memory": call.moved / memory / seconds}
    most = max(shares, key=shares.__getitem__)
    return Prediction(
        seconds, besides, hz, call.flop / seconds / 1e12, shares, most if shares[most] > 0.9 else "waiting", typical.play
    )


@dataclass(frozen=True)
class _Pass:
    tile: float  # cycles of one more tile
    fill: float  # of the first, besides
    shares: dict[str, float]
    play: Play


def _pass(call: Call, loop: Loop, machine: Machine) -> _Pass:
    sends = sum(step.kind == "send" for step in loop.steps)
    sent = call.sent * call.tiles_in_pass / call.warpgroups / max(sends, 1)
    few, more = (play([loop] * passes, call.warpgroups, machine, sent) for passes in (_PASSES, 2 * _PASSES))
    played = (more.cycles - few.cycles) / _PASSES
    traffic = (call.loaded + machine.reduction * call.sent) * call.tiles_in_pass / machine.l2
    cycles = max(played, traffic)
    shares = {
        "tensor cores": loop.tensor_cycles * call.warpgroups,
        "shared memory": loop.shared_cycles * call.warpgroups,
        "issue slots": loop.total("slots") * call.warpgroups,
        "exponentials": loop.total("mufu") * call.warpgroups,
        "L2": traffic,
    }
    return _Pass(
        cycles / call.tiles_in_pass,
        few.cycles - _PASSES * played,
        {name: busy / cycles for name, busy in shares.items()},
        few,
    )
