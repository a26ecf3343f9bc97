"""One call: its kernel's loops, its work and a machine give its time, and what that time is spent on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .chip import makespan, makespan_in_turns
from .clock import clock
from .kernel import Code, Loop, Step
from .machine import Machine
from .model import Play, play

__all__ = ["Call", "Prediction", "predict"]

BINDING = 0.8
AT_TILES = 0.5  # of a call, below which it is not what a tile costs that binds
_PASSES = 4  # from which what one more costs is taken


@dataclass(frozen=True)
class Call:
    """What a kernel is launched on.

    code: of the kernel with the products. warpgroups: its consumers. tiles_in_pass: of its loops.
    partial, full: tiles of each item, in the order in which items start. dealt: how they are laid (`makespan`).
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
    dealt: bool
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

    at_tiles: share of the call that the multiprocessors spend at tiles; the rest is launches, the way from one item to
    the next, turns, and multiprocessors that have no item left. shares: of the cycles of a tile, full if most are, in
    which each resource is occupied. binds: the one that is occupied most, or "waiting" where none is for BINDING of
    them or the call is less than AT_TILES at tiles. play: a few such tiles, from a standing start and with loads that
    are always there.
    """

    seconds: float
    besides: float
    clock: float
    tflops: float
    at_tiles: float
    shares: dict[str, float]
    binds: str
    play: Play


def predict(call: Call, machine: Machine) -> Prediction:
    """The time of a call."""
    partial, full = (_pass(call, loop, machine) for loop in (call.code.partial, call.code.full))
    item = machine.item + call.item_bytes / machine.l2 + max(0.0, full.fill)
    of_tiles = float(call.partial.sum() * partial.tile + call.full.sum() * full.tile)
    if len(call.sums):
        step = of_tiles / max(int(call.partial.sum() + call.full.sum()), 1)
        cycles = makespan_in_turns(call.sums, step + machine.ordered, item, machine.addition, machine.multiprocessors)
    else:
        items = item + call.partial * partial.tile + call.full * full.tile
        cycles = makespan(items, machine.multiprocessors, call.dealt)
    tensor = (
        call.warpgroups
        / call.tiles_in_pass
        * (call.partial.sum() * call.code.partial.tensor_cycles + call.full.sum() * call.code.full.tensor_cycles)
    )
    share = float(tensor) / machine.multiprocessors / max(cycles, 1.0)
    memory = machine.hbm * machine.hbm_share
    hz = clock(machine, share, cycles / machine.boost_clock)
    besides = call.besides / memory + call.kernels * machine.launch
    main = max(cycles / hz, call.moved / memory)
    seconds = main + besides
    typical = full if call.full.sum() * full.tile >= call.partial.sum() * partial.tile else partial
    shares = {name: busy * cycles / hz / main for name, busy in typical.shares.items()}
    shares["memory"] = call.moved / memory / main
    at_tiles = of_tiles / (machine.multiprocessors * hz * seconds)
    most = max(shares, key=shares.__getitem__)
    binding = shares[most] > BINDING and (most == "memory" or at_tiles >= AT_TILES)
    return Prediction(
        seconds,
        besides,
        hz,
        call.flop / seconds / 1e12,
        at_tiles,
        shares,
        most if binding else "waiting",
        typical.play,
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
    few, more = (
        play([*_first(loop), *[loop.steps] * passes, *_last(loop)], call.warpgroups, machine, sent)
        for passes in (_PASSES, 2 * _PASSES)
    )
    played = (more.cycles - few.cycles) / _PASSES
    traffic = (call.loaded + machine.reduction * call.sent) * call.tiles_in_pass / machine.l2
    cycles = (played**machine.blur + traffic**machine.blur) ** (1 / machine.blur)
    shares = {
        "tensor cores": loop.tensor_cycles * call.warpgroups,
        "shared memory": loop.shared_cycles * call.warpgroups,
        "issue slots": loop.total("slots") * call.warpgroups,
        "exponentials": loop.total("mufu") * call.warpgroups,
        "L2": traffic,
    }
    return _Pass(
        cycles / call.tiles_in_pass,
        few.cycles - _PASSES * played - (played / call.tiles_in_pass if _overlaps(loop) else 0.0),
        {name: busy / cycles for name, busy in shares.items()},
        few,
    )


def _overlaps(loop: Loop) -> bool:
    """Whether a pass of a forward: it begins the scores of a tile beside the output of the one before."""
    return "send" not in [step.kind for step in loop.steps]


def _first(loop: Loop) -> list[tuple[Step, ...]]:
    """The first tile of an item of the forward: scores and softmax, with nothing to multiply beside them."""
    if not _overlaps(loop):
        return []
    steps, products = [], 0
    for step in loop.steps:
        products += step.kind == "products"
        if products > 2:
            break
        if step.kind == "run" or (step.kind == "products" and products == 1):
            steps.append(step)
        elif step.kind == "wait":
            steps.append(Step("wait", (0,)))
    return [tuple(steps)]


def _last(loop: Loop) -> list[tuple[Step, ...]]:
    """The output of the last tile."""
    if not _overlaps(loop):
        return []
    products = [step for step in loop.steps if step.kind == "products"]
    return [(products[-1], Step("wait", (0,)))]
