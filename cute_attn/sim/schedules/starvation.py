"""One warp, or one warpgroup, of every CTA runs only when nothing else can: the others get as far ahead as is legal."""

from __future__ import annotations

import math

from ..launch import Launch
from ..state.groups import WARP, Group


class Starved:
    """Who that is, by seed: first the warps in order, then the warpgroups."""

    def __init__(self, launch: Launch, seed: int):
        threads = math.prod(launch.block)
        warps, warpgroups = -(-threads // 32), -(-threads // 128)
        role = seed % (warps + (warpgroups if warps > 4 else 0))
        self.warpgroup, self.lanes = (role // 4, WARP << 32 * (role % 4)) if role < warps else (role - warps, -1)

    def __contains__(self, g: Group) -> bool:
        return g.wg.index == self.warpgroup and g.mask & self.lanes == g.mask

    def part(self, g: Group) -> Group:
        """Of a group that is about to run, the lanes that may go on before; those that are starved become ready."""
        starved = g.mask & self.lanes if g.wg.index == self.warpgroup else 0
        if starved in (0, g.mask):
            return g
        g.cta.ready.append(Group(g.cta, g.wg, starved, g.pc, g.join))
        g.resize(g.mask & ~starved)
        return g
