"""The online softmax on accumulator fragments: a maximum and a sum for each of a thread's two rows.

With m any number not far below the maximum of the scores so far, P = exp2(c S - c m), l = the sum of P and O = P V give
the output O / l and the log-sum-exp c m + log2 l: m need not be the maximum itself. Two ways to keep it follow.

exact: the maximum is computed in every tile, and m moves (O and l are rescaled) when it grew by more than 2^8.

stale: m is taken from the first tile and then left alone. The sum of a tile's exponentials, needed anyway, tells when
it has become too small: above 2^15 the true maximum is taken, and the tile's exponentials are computed anew from the
scores, which are still in registers. In fp16 no element can then overflow either. The common path has no maximum, no
shuffle and no rescale. A row without a key so far has m = no_key: its first key makes an infinite sum and is repaired
like any other.
"""

from dataclasses import dataclass
from typing import Any

import cutlass.cute as cute
from cutlass import Boolean, Float32, const_expr, range_constexpr

from cute_attn.sm90.ptx import exp2, fma, opaque_zero, pack

__all__ = ["OnlineSoftmax", "clear", "rescale"]

EXACT_SLACK = 8.0  # log2 of how far the maximum may grow before the exact softmax moves it
STALE_LIMIT = 2.0**15  # sum of a tile's exponentials in one thread above which the stale softmax repairs


@dataclass(frozen=True)
class OnlineSoftmax:
    """m and l of rows 16w + lane / 4 and 8 below; `total` is this thread's share of l.

    columns: n of the tile. bf16: whether P is bf16, else fp16. factor: c above, positive. no_key: of ScoreForm.
    top: the true maximum, kept beside m where it is asked for (exact softmax only).
    """

    columns: int
    bf16: bool
    factor: Float32
    no_key: float
    m: cute.Tensor
    total: cute.Tensor
    top: Any

    @classmethod
    def make(cls, columns: int, bf16: bool, factor: Float32, no_key: float, track_top: bool) -> "OnlineSoftmax":
        m, total, top = (cute.make_rmem_tensor(2, Float32) for _ in range(3))
        return cls(columns, bf16, factor, no_key, m, total, top if track_top else None)

    def reset(self) -> None:
        self.m.fill(self.no_key)
        self.total.fill(0.0)
        if self.top is not None:
            self.top.fill(self.no_key)

    # ---------------------------------------------------------------- exact

    @cute.jit
    def first(self, scores, p):
        """The first tile of a row: m is its maximum."""
        largest = self.row_max(scores)
        self.m.store(largest.load())
        self.total.store(self.exponentials(scores, p).load())

    @cute.jit
    def grown(self, largest):
        """Whether m has to move for some row of this warp."""
        by = [(largest[h] - self.m[h]) * self.factor for h in range(2)]
        return cute.arch.vote_any_sync(cute.arch.fmax(by[0], by[1]) > EXACT_SLACK)

    @cute.jit
    def move(self, largest, correction):
        """m = largest; correction gets what O has to be multiplied with."""
        for h in range_constexpr(2):
            correction[h] = exp2((self.m[h] - largest[h]) * self.factor)
            self.total[h] = self.total[h] * correction[h]
            self.m[h] = largest[h]

    @cute.jit
    def exponentials_in_place(self, scores):
        """scores = P in fp32; l grows by their sums."""
        for h in range_constexpr(2):
            offset = -(self.m[h] * self.factor)
            sums = [self.total[h], Float32(0.0)]
            for j in range_constexpr(self.columns // 8):
                for q in range_constexpr(2):
                    k = 4 * j + 2 * h + q
                    scores[k] = exp2(fma(scores[k], self.factor, offset))
                    sums[q] = sums[q] + scores[k]
            self.total[h] = sums[0] + sums[1]

    @cute.jit
    def pin(self):
        """A point that needs all exponentials: a branch never taken, which the compiler cannot move them across.

        Without it ptxas sinks them below the wait for the previous product, and nothing is left to overlap with it.
        """
        if cute.arch.vote_any_sync(cute.arch.fmin(self.total[0], self.total[1]) < 0.0):
            cute.arch.barrier(barrier_id=15, number_of_threads=32)

    # ---------------------------------------------------------------- stale

    @cute.jit
    def exponentials(self, scores, p):
        """p = P packed in pairs; returns this thread's row sums. The scores are kept."""
        sums = cute.make_rmem_tensor(2, Float32)
        for h in range_constexpr(2):
            offset = -(self.m[h] * self.factor)
            parts = [Float32(0.0), Float32(0.0)]
            for j in range_constexpr(self.columns // 8):
                k = 4 * j + 2 * h
                e = [exp2(fma(scores[k + q], self.factor, offset)) for q in range(2)]
                for q in range_constexpr(2):
                    parts[q] = parts[q] + e[q] if j > 0 else e[q]
                p[k // 2] = pack(e[0], e[1], self.bf16)
            sums[h] = parts[0] + parts[1]
        return sums

    def overflowed(self, sums) -> Boolean:
        """Whether m has become too small for some row of this warp."""
        return cute.arch.vote_any_sync(cute.arch.fmax(sums[0], sums[1]) > STALE_LIMIT)

    @cute.jit
    def repair(self, scores, p, sums, correction):
        """Takes the true maximum and computes the tile's exponentials anew."""
        self.move(self.row_max(scores), correction)
        sums.store(self.exponentials(scores, p).load())

    def add(self, sums) -> None:
        for h in range(2):
            self.total[h] = self.total[h] + sums[h]

    # ---------------------------------------------------------------- rows

    @cute.jit
    def row_max(self, scores):
        """The maximum of m and the scores of each row, over the four threads that share it."""
        largest = cute.make_rmem_tensor(2, Float32)
        for h in range_constexpr(2):
            parts = [cute.arch.fmax(scores[2 * h + 4 * j], scores[2 * h + 4 * j + 1]) for j in range(2)]
            for j in range_constexpr(2, self.columns // 8):
                for q in range_constexpr(2):
                    parts[q] = cute.arch.fmax(parts[q], scores[2 * h + 4 * j + q])
            largest[h] = quad_max(cute.arch.fmax(cute.arch.fmax(parts[0], parts[1]), self.m[h]))
            if const_expr(self.top is not None):
                self.top[h] = cute.arch.fmax(self.top[h], largest[h])
        return largest


def quad_max(x: Float32) -> Float32:
    x = cute.arch.fmax(x, cute.arch.shuffle_sync_bfly(x, offset=1))
    return cute.arch.fmax(x, cute.arch.shuffle_sync_bfly(x, offset=2))


def quad_sum(x: Float32) -> Float32:
    x = x + cute.arch.shuffle_sync_bfly(x, offset=1)
    return x + cute.arch.shuffle_sync_bfly(x, offset=2)


@cute.jit
def clear(accumulator):
    """Zeros that LLVM cannot rematerialise: it would put them between wgmma.fence and the first product."""
    for k in range_constexpr(cute.size(accumulator)):
        accumulator[k] = opaque_zero()


@cute.jit
def rescale(accumulator, factors):
    """Multiplies both rows of an accumulator by their factors."""
    for k in range_constexpr(cute.size(accumulator)):
        accumulator[k] = accumulator[k] * factors[(k >> 1) & 1]
