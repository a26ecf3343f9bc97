"""The arithmetic of a tile whose scores a graph changes: see `tile_math`, whose fragments these are.

P and dS of an element are computed together, once both products are there: what was computed of a place serves the
score, its derivative and what flows to captured tensors.
"""

import math
from typing import Any

import cutlass.cute as cute
from cutlass import Boolean, Float32, Int32, Uint32

from cute_attn.mods.device.keys import TileScores
from cute_attn.mods.device.operations import chosen
from cute_attn.sm90.ptx import exp2, fma, keep_inside, pack
from cute_attn.sm90.score import Where

from .tile_math import TileMath

__all__ = ["GraphMath"]


class GraphMath(TileMath):
    """Its `score` is of a form that carries the graph of `cute_attn.mods.derivative`."""

    def gradients(
        self,
        scores: cute.Tensor,
        dp: cute.Tensor | None,
        packed: tuple[cute.Tensor, cute.Tensor],
        statistics: tuple[cute.Tensor, cute.Tensor],
        bounds: Any,
        layers: Any,
        mods: TileScores,
        where: Where,
        masked: bool,
    ) -> None:
        """packed = P^T and dS^T = P^T (dP^T - delta) times the derivative of the score; both zero outside the mask.

        dp: dP^T; None if nothing but P is asked for. statistics: shift and delta; bounds, layers, where, masked: as in
        `probabilities`. mods: of the tile.
        """
        p_packed, ds_packed = (cute.recast_tensor(x, Int32) for x in packed)
        flags = self.flags_of_many(bounds, layers) if masked and self.spec.mask.is_many else None
        for i in range(self.queries // 16):
            shifts, deltas = (self.of_thread(x, i) for x in statistics)
            limits = []
            if masked and self.staged_layers > 0:
                limits = [[self.of_thread(bounds[None, y, z], i) for y in range(2)] for z in range(self.staged_layers)]
            for b in range(2):
                columns = [mods.column(where.row + (16 * i + 8 * b + e)) for e in range(2)]
                for h in range(2):
                    p, ds = [], []
                    for e in range(2):
                        k, row = 8 * i + 4 * b + 2 * h + e, 2 * b + e
                        element = mods.element(h, columns[e], scores[k] * self.score.factor)
                        exponent = fma(element.score, self.exp2_factor, shifts[row])
                        if flags is not None:
                            keep = Boolean(flags[i // 4] & (Uint32(1) << (k % 32)))
                            exponent = chosen(keep, exponent, Float32(-math.inf))
                        elif masked:
                            exponent = keep_inside(exponent, self.keys[h], self.intervals(limits, row))
                        p.append(exp2(exponent))
                        if dp is not None:
                            gradient = p[e] * (dp[k] - deltas[row])
                            mods.scatter(h, element, gradient)
                            ds.append(mods.by_score(element, gradient))
                    place = 4 * i + 2 * b + h
                    p_packed[place] = pack(*p, self.spec.dtype == "bf16")
                    if ds:
                        ds_packed[place] = pack(*ds, self.spec.dtype == "bf16")
        mods.finish()
