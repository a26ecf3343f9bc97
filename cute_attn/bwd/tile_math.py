"""The arithmetic of a tile of the backward on transposed fragments: P from S, dS from dP, and the mask.

A thread holds two keys of a 64 x n accumulator, `key` and `key + 8`, and of each the queries 8j + 2t + e with
t = lane % 4 and e = 0, 1. Below, register 8i + 4b + 2h + e is that of j = 2i + b and key h; what belongs to query rows
is in the order of `cute_attn.bwd.rows`, four (b, e) together.
"""

from dataclasses import dataclass
from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Float32, Int32, Uint32, const_expr, range_constexpr

from cute_attn.sm90.ptx import exp2, fma, keep_before, pack
from cute_attn.sm90.score import Score, Where
from cute_attn.spec.backward import BackwardSpec

__all__ = ["TileMath"]


@dataclass(frozen=True)
class TileMath:
    """queries: columns of the fragments. first: of them in the tile, in units of 16.
    keys: this thread's two. seqlen_k: where keys end.
    """

    spec: BackwardSpec
    queries: int
    first: Any
    keys: Any
    seqlen_k: Int32
    score: Score
    exp2_factor: Float32

    @cute.jit
    def probabilities(self, scores, packed, shift, word, where: Where, masked: cutlass.Constexpr):
        """packed = P^T in pairs, scores = P^T times the derivative of the score; both zero outside the mask.

        shift: (m,) -lse * log2(e), -inf for rows without keys.
        word: of a partial tile, the pairs that are attended, see `words`; None tests where keys end.
        where: the score in register 0 is.
        """
        packed = cute.recast_tensor(packed, Int32)
        if const_expr(self.spec.score.is_changed):
            for k in range_constexpr(cute.size(scores)):
                scores[k] = self.score.changed(scores[k], self.at(where, k))
        for i in range_constexpr(self.queries // 16):
            shifts = self.of_thread(shift, i)
            for b in range_constexpr(2):
                for h in range_constexpr(2):
                    pair = []
                    for e in range_constexpr(2):
                        k = 8 * i + 4 * b + 2 * h + e
                        x = scores[k]
                        exponent = fma(x, self.exp2_factor, shifts[2 * b + e])
                        if const_expr(word is not None):
                            keep = Boolean(word & (Uint32(1) << k))
                            exponent = exponent if keep else -Float32.inf
                        elif const_expr(masked):
                            exponent = keep_before(exponent, self.keys[h], self.seqlen_k)
                        p = exp2(exponent)
                        derivative: Any = None
                        if const_expr(self.spec.score.is_changed):
                            derivative = self.score.derivative(x, self.at(where, k))
                        scores[k] = p if const_expr(derivative is None) else p * derivative
                        pair.append(p)
                    packed[4 * i + 2 * b + h] = pack(pair[0], pair[1], self.spec.dtype == "bf16")

    @cute.jit
    def score_gradients(self, dp, p, packed, delta):
        """packed = dS^T = P^T (dP^T - delta) in pairs; delta: (m,) of the tile's rows."""
        packed = cute.recast_tensor(packed, Int32)
        for i in range_constexpr(self.queries // 16):
            deltas = self.of_thread(delta, i)
            for b in range_constexpr(2):
                for h in range_constexpr(2):
                    k = 8 * i + 4 * b + 2 * h
                    pair = [p[k + e] * (dp[k + e] - deltas[2 * b + e]) for e in range(2)]
                    packed[k // 2] = pack(pair[0], pair[1], self.spec.dtype == "bf16")

    def at(self, where: Where, k: int) -> Where:
        """The score in register k, of that in register 0."""
        return where.moved(16 * (k // 8) + 8 * (k // 4 % 2) + k % 2, 8 * (k // 2 % 2))

    def of_thread(self, rows: cute.Tensor, i: int) -> Any:
        """Of (m,) in shared or global memory, the four that this thread needs for registers 8i to 8i + 7."""
        view = cute.make_tensor(rows.iterator, cute.make_layout((4, 4, self.spec.tile.m // 16)))
        return view[None, cute.arch.lane_idx() % 4, self.first + i].load()
