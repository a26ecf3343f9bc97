"""What warps do to synchronise: the steps of each, in its own order, noted while a launch runs.

Times and data are left out: a step says what a warp did to a barrier or a counter, not when, nor who had come before.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..formats import WIDTH
from .global_memory import GlobalMemory

INIT, ARRIVE, EXPECT, COPY, WAIT, LOOK = "init", "arrive", "expect", "copy", "wait", "look"  # of mbarriers
MEET, PASS = "meet", "pass"  # of named and cluster barriers, and of warpgroups that multiply
ADD, UNTIL, CHANGE = "add", "until", "change"  # of counters in global memory
COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")
}


class Thing(NamedTuple):
    """A barrier or a counter. place: the CTA (of a cluster the first one), or the name of a buffer."""

    kind: str  # "mbarrier", "barrier", "cluster barrier", "products" (of a warpgroup) or "counter"
    place: Any
    number: int = 0  # an address, a number, an offset

    def __str__(self) -> str:
        if self.kind == "counter":
            return f"counter {self.place}+{self.number}"
        if self.kind == "products":
            return f"products of warpgroup {self.number} of CTA {self.place}"
        number = {"mbarrier": f" {self.number:#x}", "barrier": f" {self.number}"}.get(self.kind, "")
        return f"{self.kind}{number} of CTA {self.place}"


class Step(NamedTuple):
    """One step of a warp.

    number, extra: of init the arrivals that a phase takes; of arrive the arrivals and the bytes to expect first; of
    expect the bytes; of copy the bytes and the arrivals that come when it is done; of wait and look the parity; of
    meet the threads and how many must meet (0: all that live); of add the number; of until the number, and how the
    counter must compare with it.
    """

    what: str
    thing: Thing
    number: int = 0
    extra: Any = 0
    line: int = 0

    @property
    def effect(self) -> tuple[Any, ...]:
        """All but where in the text it stands."""
        return self[:4]


class Warp(NamedTuple):
    """Who takes steps."""

    cta: tuple[int, int, int]
    number: int

    def __str__(self) -> str:
        return f"warp {self.number} of CTA {self.cta}"


class Recorder:
    """The steps of a launch."""

    def __init__(self, cluster: tuple[int, int, int], threads: int) -> None:
        self.cluster, self.threads = cluster, threads
        self.steps: dict[Warp, list[Step]] = {}
        self.counters: dict[Thing, int] = {}  # what is in them now
        self.begins: dict[Thing, int] = {}  # what was in them at the beginning
        self.refused: list[str] = []  # what the steps do not tell
        self.finished = False  # whether the launch came to its end
        self.memory: list[np.ndarray] = []  # the buffers as they were

    def begin(self, memory: GlobalMemory) -> None:
        """The launch begins."""
        self.memory = [buffer.data.copy() for buffer in memory.buffers]

    def start(self, c: Any) -> None:
        """A CTA starts."""
        for warp in range(-(-self.threads // 32)):
            self.steps[Warp(c.index, warp)] = []

    def refuse(self, what: str) -> None:
        if what not in self.refused:
            self.refused.append(what)

    def note(self, c: Any, g: Any, site: Any, what: str, thing: Thing, count: int = 0, extra: Any = 0) -> None:
        """Every warp of the group takes a step."""
        line = _line(c, site)
        for warp in g.warps:
            self.steps[Warp(c.index, warp)].append(Step(what, thing, count, extra, line))

    def multiply(self, c: Any, g: Any, site: Any) -> None:
        """The warps of a warpgroup issue a product: none goes on until all have come."""
        thing = Thing("products", c.index, g.wg.index)
        self.note(c, g, site, MEET, thing, 32, 32 * g.lanes.warps)
        self.note(c, g, site, PASS, thing)

    def take(self, c: Any, warp: int, site: Any, what: str, thing: Thing, count: int, extra: int = 0) -> None:
        """One warp takes a step."""
        self.steps[Warp(c.index, warp)].append(Step(what, thing, count, extra, _line(c, site)))

    def waits(self, c: Any, g: Any, site: Any, what: str, offsets: np.ndarray, parities: np.ndarray) -> None:
        """Lanes pass mbarriers of their CTA: their warp passes each of them."""
        passed = zip(g.lanes.warp.tolist(), offsets.tolist(), parities.tolist(), strict=True)
        for warp, offset, parity in dict.fromkeys(passed):
            self.take(c, 4 * g.wg.index + warp, site, what, Thing("mbarrier", c.index, offset), parity)

    def by_lanes(
        self, c: Any, g: Any, site: Any, what: str, thing: Thing, here: np.ndarray, counts: np.ndarray, extra: bool
    ) -> None:
        """Lanes take steps, which are one of their warp; extra: whether the counts are bytes and the lanes arrivals."""
        line = _line(c, site)
        for number, warp in zip(g.lanes.warp_numbers, g.warps, strict=True):
            own = here & (g.lanes.warp == number)
            if own.any():
                total, lanes = int(counts[own].sum()), int(np.count_nonzero(own))
                step = Step(what, thing, lanes, total, line) if extra else Step(what, thing, total, 0, line)
                self.steps[Warp(c.index, warp)].append(step)

    # ------------------------------------------------------------------ counters in global memory

    def counter(self, c: Any, address: int, size: int) -> Thing | None:
        """The counter at a global address, None if there is no memory."""
        memory = c.world.memory
        index = memory.find(address, address + size)
        if index is None:
            return None
        buffer = memory.buffers[index]
        thing = Thing("counter", buffer.name, address - buffer.address)
        if thing not in self.counters:
            raw = self.memory[index][thing.number : thing.number + size].tobytes()
            self.counters[thing] = self.begins[thing] = int.from_bytes(raw, "little", signed=True)
        return thing

    def atomic(
        self, c: Any, g: Any, site: Any, operation: str, kind: str, address: np.ndarray, values: Any, where: Any
    ) -> None:
        """Before an atomic operation on global memory: only sums of integers can be counters."""
        if kind[0] not in "usb" or kind.startswith("bf"):
            return
        lanes = np.broadcast_to(address, g.lanes.count)
        numbers = np.broadcast_to(values[0], lanes.shape)
        active = np.broadcast_to(True if where is None else where, lanes.shape)
        bits = WIDTH[kind]
        for number, warp in zip(g.lanes.warp_numbers, g.warps, strict=True):
            own = active & (g.lanes.warp == number)
            for one in np.unique(lanes[own]).tolist():
                thing = self.counter(c, one, bits // 8)
                if thing is None:
                    continue
                here = own & (lanes == one)
                total = sum(signed(int(x), bits) for x in numbers[here].tolist())
                step = Step(ADD if operation == "add" else CHANGE, thing, total, 0, _line(c, site))
                self.steps[Warp(c.index, warp)].append(step)
                self.counters[thing] += total

    def until(
        self, c: Any, g: Any, site: Any, address: int, size: int, found: int, bound: int, comparison: str
    ) -> None:
        """A spin over a counter ends."""
        thing = self.counter(c, address, size)
        if thing is None:
            return
        if found != self.counters[thing]:
            self.refuse(f"{thing} is changed by what is no addition (PTX line {_line(c, site)} waits for it)")
        self.note(c, g, site, UNTIL, thing, bound, comparison)


def signed(value: int, bits: int) -> int:
    """A number of so many bits, in two's complement."""
    value &= (1 << bits) - 1
    return value - (value >> bits - 1 << bits)


def _line(c: Any, site: Any) -> int:
    return c.translation.place(site if isinstance(site, int) else site[0]).line or 0
