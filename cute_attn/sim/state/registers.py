"""The registers of a CTA, which its warps take and give back by setmaxnreg."""

from __future__ import annotations

from .groups import Group


class Registers:
    """What a CTA was launched with: that is all there is. Counted in registers of a thread, warp by warp."""

    subject = "registers"

    def __init__(self, entry: int, threads: int) -> None:
        warps = -(-threads // 32)
        self.entry, self.total, self.free = entry, entry * warps, 0
        self.owned = [entry] * warps
        self.waiters: list[Group] = []

    def __str__(self) -> str:
        return f"registers: {32 * self.free} free of {32 * self.total}, which is {self.entry} for each thread"

    def wanted(self, warps: tuple[int, ...], count: int) -> int:
        """How many more these warps need to have so many a thread."""
        return sum(count - self.owned[warp] for warp in warps)

    def move(self, warps: tuple[int, ...], count: int) -> bool:
        """Gives these warps so many a thread; false, and nothing is done, if not enough are free."""
        wanted = self.wanted(warps, count)
        if wanted > self.free:
            return False
        self.free -= wanted
        for warp in warps:
            self.owned[warp] = count
        return True

    def short(self, warps: tuple[int, ...], count: int) -> str:
        """What is said of warps that wait for so many for ever."""
        return (
            f"setmaxnreg waits for ever: {count} registers a thread are {32 * self.wanted(warps, count)} more than its "
            f"warps have, and {32 * self.free} are free of the {32 * self.total} that the CTA was launched with "
            f"({self.entry} a thread)"
        )
