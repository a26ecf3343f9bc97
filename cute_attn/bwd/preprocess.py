"""Before the main kernel: what it needs of each query row, and zeroes where sums of dQ begin.

For a row with output O, log-sum-exp lse and their gradients, dS = P (dP - (rowsum(dO O) - dlse)): delta is that
difference, so that a gradient of lse costs the main kernel nothing.
"""

import math

import cuda.bindings.driver as cuda
import cutlass.cute as cute
from cutlass import Float32, Int32, const_expr, range_constexpr

from cute_attn.sm90.idle import is_idle
from cute_attn.spec.backward import BackwardSpec
from cute_attn.spec.score import LOG2_E

from .arguments import Schedule, Tensors
from .rows import place_of_row
from .work import plane_of_rows

__all__ = ["Preprocess"]

THREADS = 256
VECTOR = 8  # elements of 16 bytes


class Preprocess:
    """One CTA a tile of query rows of a head."""

    def __init__(self, spec: BackwardSpec) -> None:
        self.spec, self.m = spec, spec.tile.m
        self.lanes = 1 << (spec.head_dim_v // VECTOR - 1).bit_length()  # that share a row

    @cute.jit
    def launch(self, tensors: Tensors, schedule: Schedule, stream: cuda.CUstream):
        tiles = tensors.statistics.shape
        self.kernel(tensors, schedule.idle_rows).launch(
            grid=(tiles[2], tiles[1], tiles[0]), block=(THREADS, 1, 1), stream=stream
        )

    @cute.kernel
    def kernel(self, tensors: Tensors, idle_rows: cute.Tensor):
        thread = cute.arch.thread_idx()[0]
        tile, head, batch = cute.arch.block_idx()
        rows_at_once = THREADS // self.lanes
        plane = plane_of_rows(self.spec, idle_rows, batch, head, tensors.q.shape[2])
        for i in range_constexpr(-(-self.m // rows_at_once)):
            place = i * rows_at_once + thread // self.lanes
            row = tile * self.m + place
            inside = place < self.m and row < tensors.lse.shape[2]
            total = Float32(0.0)
            if inside:
                total = self.dot(tensors.out[batch, row, head, None], tensors.dout[batch, row, head, None], thread)
            offset = self.lanes // 2
            while const_expr(offset > 0):
                total = total + cute.arch.shuffle_sync_bfly(total, offset=offset)
                offset //= 2
            if thread % self.lanes == 0 and place < self.m:
                has_keys = inside and not is_idle(idle_rows, plane, tile, place)
                self.write_row(tensors, batch, head, tile, place, row, has_keys, total)
        if const_expr(self.spec.dq):
            self.clear(tensors, batch, head, tile, thread)

    @cute.jit
    def dot(self, x, y, thread):
        """This thread's share of the product of two rows."""
        total = Float32(0.0)
        vector = thread % self.lanes
        if vector < x.shape[0] // VECTOR:
            values = [cute.local_tile(t, (VECTOR,), (vector,)).load().to(Float32) for t in (x, y)]
            products = values[0] * values[1]
            for e in range_constexpr(VECTOR):
                total = total + products[e]
        return total

    @cute.jit
    def write_row(self, tensors, batch, head, tile, place, row, has_keys, total):
        """Rows without keys, and those past the end, get a shift of -inf: P and dS are zero, whatever O and dO are.

        Rows whose lse is NaN or inf get a shift of NaN, for the keys that they attend, and a delta that leaves the
        others in their tiles alone.
        """
        shift, delta = -Float32.inf, Float32(0.0)
        if has_keys:
            lse = tensors.lse[batch, head, row]
            if lse > -Float32.inf and lse < Float32.inf:
                shift, delta = -lse * LOG2_E, total
                if const_expr(self.spec.dlse):
                    delta = delta - tensors.dlse[batch, head, row]
            elif lse != -Float32.inf:
                shift = Float32(math.nan)
        at = place_of_row(place)
        tensors.statistics[batch, head, tile, 0, at] = shift
        tensors.statistics[batch, head, tile, 1, at] = delta

    @cute.jit
    def clear(self, tensors, batch, head, tile, thread):
        vectors = self.m * self.spec.head_dim // (4 * THREADS)
        order = cute.make_ordered_layout((4, THREADS, vectors), (0, 1, 2))
        sums = cute.make_tensor(tensors.dq_sum[batch, head, tile, None].iterator, order)
        zero = cute.make_rmem_tensor(4, Float32)
        zero.fill(0.0)
        for i in range_constexpr(vectors):
            cute.autovec_copy(zero, sums[None, thread, i])
        if const_expr(self.spec.deterministic):  # noqa: SIM102
            if thread < 2:
                tensors.turns[batch, head, tile, thread] = Int32(0)
