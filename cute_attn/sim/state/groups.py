"""Groups of lanes that run together, and the joins at which diverged lanes of a warp meet again."""

from __future__ import annotations

from typing import Any

from .lanes import Lanes, Warpgroup

WARP = 0xFFFFFFFF


class Join:
    """Where lanes that parted at a branch come together: its immediate post-dominator. Complete warp by warp."""

    __slots__ = ("arrived", "expected", "parent", "pc")

    def __init__(self, pc: int, expected: int, parent: Join | None):
        self.pc, self.expected, self.parent, self.arrived = pc, expected, parent, 0

    def complete(self) -> int:
        """Lanes of warps that are all here, taken out."""
        done = 0
        for shift in (0, 32, 64, 96):
            warp = self.expected & (WARP << shift)
            if warp and self.arrived & warp == warp:
                done |= warp
        self.expected &= ~done
        self.arrived &= ~done
        return done


class Group:
    """Lanes of one warpgroup at one place of the program."""

    __slots__ = ("cta", "deferred", "denied", "join", "lanes", "mask", "pc", "polled", "waits", "wg")

    def __init__(self, cta: Any, wg: Warpgroup, mask: int, pc: int, join: Join | None):
        self.cta, self.wg, self.pc, self.join = cta, wg, pc, join
        self.mask = mask
        self.lanes: Lanes = wg.lanes_of(mask)
        self.waits: Any = None  # what it waits on, for the report of a deadlock
        self.polled = (-1, -1)  # node and progress at its last unsuccessful poll
        self.deferred = False
        self.denied = -1  # the node of a look at a barrier that was told no too early

    def resize(self, mask: int) -> None:
        self.mask = mask
        self.lanes = self.wg.lanes_of(mask)

    @property
    def warps(self) -> tuple[int, ...]:
        """Numbers of its warps within the CTA."""
        return tuple(4 * self.wg.index + w for w in self.lanes.warp_numbers)

    @property
    def numbers(self) -> list[int]:
        """Numbers of its warps in the order of the cluster."""
        return [self.wg.number + w for w in self.lanes.warp_numbers]

    def merges(self, other: Group) -> bool:
        return self.pc == other.pc and self.wg is other.wg and self.join is other.join

    def parts(self) -> list[int]:
        """The lanes of each of its warps."""
        return [m for m in (self.mask & (WARP << 32 * w) for w in range(4)) if m]
