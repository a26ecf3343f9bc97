"""Registers of a warpgroup and views of them for the lanes that run together."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

LaneIndex = Any  # a slice, or an array of lane numbers
Files = dict[str, np.ndarray]  # [rows, 128] by kind of register
FileRows = dict[str, np.ndarray]  # numbers of rows by kind of register
KINDS = {"p": np.bool_, "h": np.uint16, "r": np.uint32, "d": np.uint64}


def lanes_of(mask: int) -> np.ndarray:
    """The lane numbers of a bit mask."""
    return np.flatnonzero(np.unpackbits(np.frombuffer(mask.to_bytes(16, "little"), np.uint8), bitorder="little"))


def mask_of(lanes: np.ndarray) -> int:
    bits = np.zeros(128, np.uint8)
    bits[lanes] = 1
    return int.from_bytes(np.packbits(bits, bitorder="little").tobytes(), "little")


class Lanes:
    """A set of lanes of a warpgroup, known once and shared by all warpgroups of a shape."""

    def __init__(self, mask: int, tid: dict[str, np.ndarray], first_thread: int):
        lanes = lanes_of(mask)
        self.mask, self.lanes, self.count = mask, lanes, len(lanes)
        steps = np.diff(lanes)
        if len(lanes) == 1:
            self.index: LaneIndex = slice(int(lanes[0]), int(lanes[0]) + 1)
        elif (steps == steps[0]).all():
            self.index = slice(int(lanes[0]), int(lanes[-1]) + 1, int(steps[0]))
        else:
            self.index = lanes
        self.is_slice = isinstance(self.index, slice)
        self.lane = lanes % 32
        self.warp = lanes // 32
        self.warp_numbers = tuple(sorted(set(self.warp.tolist())))
        self.warps = len(self.warp_numbers)
        self.slot = np.searchsorted(self.warp_numbers, self.warp)
        self.whole = self.count == 32 * self.warps
        self.tid_x, self.tid_y, self.tid_z = (tid[axis][lanes] for axis in "xyz")
        self.laneid = self.lane.astype(np.uint32)
        self.warpid = (self.warp + first_thread // 32).astype(np.uint32)
        one = np.uint32(1)
        self.lanemask_eq = one << self.laneid
        self.lanemask_lt = self.lanemask_eq - one
        self.lanemask_le = self.lanemask_lt | self.lanemask_eq
        self.lanemask_gt, self.lanemask_ge = ~self.lanemask_le, ~self.lanemask_lt


class Views:
    """Register files seen through the lanes that run: attributes P H S X R I F D L G, and those of Lanes."""

    def __init__(self, lanes: Lanes, files: dict[str, np.ndarray]):
        self.__dict__.update(lanes.__dict__)
        self.P, self.H, self.R, self.D = files["p"], files["h"], files["r"], files["d"]
        self.S, self.X = self.H.view(np.int16), self.H.view(np.float16)
        self.I, self.F = self.R.view(np.int32), self.R.view(np.float32)
        self.L, self.G = self.D.view(np.int64), self.D.view(np.float64)

    def __getattr__(self, name: str) -> Any:  # attributes are set above by name; this keeps type checkers quiet
        raise AttributeError(name)


@dataclass(eq=False)
class Entry:
    """A chain of wgmmas in flight: steps along k into one accumulator. Shared by the four warps that issued it."""

    tiles: list[Any]
    sites: list[int]
    a: tuple[int, ...]  # descriptors, a step each; empty if A is in registers
    b: tuple[int, ...]
    accumulate: bool  # whether the first step adds to what is there
    locks: tuple[int, int] = (0, 0)  # registers of the accumulator and of A, as bits
    b_read: tuple[Any, ...] = ()  # granules of shared memory, as selectors
    a_read: dict[int, tuple[Any, ...]] = field(default_factory=dict)  # by warp, those of its rows
    older: tuple[Entry, ...] = ()  # on the same accumulator, not done when this was issued: they run first
    waiting: int = 4  # warps that have not waited for it
    done: bool = False


@dataclass
class WarpState:
    """What the hardware keeps for one warp's matrix multiplies."""

    open: list[Entry] = field(default_factory=list)
    committed: deque[list[Entry]] = field(default_factory=deque)
    accumulators: int = 0  # registers in flight, as bits
    fragments: int = 0
    dirty: int = 0  # registers written since the last wgmma.fence
    constant: int = 0  # of these, the ones to which a constant was moved last
    read: int = 0  # registers read since then and not written
    fenced: bool = False


class Warpgroup:
    """128 consecutive threads of a CTA: their registers."""

    def __init__(
        self,
        index: int,
        lanes: int,
        number: int,
        block: tuple[int, int, int],
        files: Files,
        known: dict[int, Lanes],
    ):
        """`number` is that of its first warp in the order of the cluster; `known` is shared by those of its shape."""
        self.index, self.lanes, self.number, self.block = index, lanes, number, block
        self.everyone = (1 << lanes) - 1
        self.files = files
        for kind, file in files.items():
            file.fill(False if kind == "p" else np.iinfo(file.dtype).max)
        self.known = known
        self.views: dict[int, Views] = {}
        self.state = [WarpState() for _ in range(4)]
        self.gathering: list[Any] = []  # groups that wait here for the other warps of the warpgroup
        self.local: np.ndarray | None = None

    def view(self, mask: int) -> Views | None:
        """Views for a set of lanes, None if they are no slice."""
        found = self.views.get(mask)
        if found is None:
            lanes = self.lanes_of(mask)
            if not lanes.is_slice:
                return None
            found = self.views[mask] = Views(lanes, {k: f[:, lanes.index] for k, f in self.files.items()})
        return found

    def lanes_of(self, mask: int) -> Lanes:
        found = self.known.get(mask)
        if found is None:
            found = self.known[mask] = Lanes(mask, self._threads(), 128 * self.index)
        return found

    def _threads(self) -> dict[str, np.ndarray]:
        """Thread indices of its lanes."""
        x, y, _ = self.block
        linear = np.arange(128 * self.index, 128 * self.index + 128)
        return {
            "x": (linear % x).astype(np.uint32),
            "y": (linear // x % y).astype(np.uint32),
            "z": (linear // (x * y)).astype(np.uint32),
        }

    def gathered(self, mask: int, touched: FileRows) -> Views:
        """Copies of the rows that a segment touches, for lanes that are no slice."""
        lanes = self.lanes_of(mask)
        files = {}
        for kind, file in self.files.items():
            copy = np.empty((file.shape[0], lanes.count), file.dtype)
            some = touched[kind]
            if some.size:
                copy[some] = file[some[:, None], lanes.lanes]
            files[kind] = copy
        return Views(lanes, files)

    def put_back(self, views: Views, written: FileRows) -> None:
        source = {"p": views.P, "h": views.H, "r": views.R, "d": views.D}
        for kind, rows in written.items():
            self.files[kind][rows[:, None], views.lanes] = source[kind][rows]
