"""The merge of the parts of a sequence, in their order: the same bits from run to run."""

import cutlass
import cutlass.cute as cute
from cutlass import Float32, const_expr, range_constexpr

from cute_attn.sm90.ptx import exp2
from cute_attn.spec.score import LN_2, LOG2_E

from .arguments import Tensors

__all__ = ["merge"]

LOWEST = -1.0e30
MOST_DIMS = 256


@cute.kernel
def merge(tensors: Tensors):
    """A warp a row, 32 dims at a time; the sink joins here. A part without keys (lse = -inf) is not read."""
    row, batch = cute.arch.block_idx()[0] * 4 + cute.arch.warp_idx(), cute.arch.block_idx()[1]
    parts, logs, heads = tensors.parts, tensors.logs, tensors.q.shape[2]
    token, head = row // heads, row % heads
    if token < tensors.q.shape[1]:
        top = Float32(LOWEST)
        sink = -Float32.inf
        if const_expr(tensors.sink is not None):
            sink = tensors.sink[head]
            top = cute.arch.fmax(top, sink)
        for part in cutlass.range(parts.shape[0], unroll=1):
            top = cute.arch.fmax(top, logs[part, batch, head, token])
        total = exp2((sink - top) * LOG2_E)
        sums = cute.make_rmem_tensor(MOST_DIMS // 32, Float32)
        sums.fill(0.0)
        for part in cutlass.range(parts.shape[0], unroll=1):
            log = logs[part, batch, head, token]
            if log != -Float32.inf:
                weight = exp2((log - top) * LOG2_E)
                total += weight
                for j in range_constexpr(MOST_DIMS // 32):
                    dim = cute.arch.lane_idx() + 32 * j
                    if dim < parts.shape[4]:
                        sums[j] = sums[j] + weight * parts[part, batch, token, head, dim]
        inverse = Float32(0.0)
        log = -Float32.inf
        if total != 0.0:
            inverse = 1.0 / total
            log = top + cute.math.log2(total, fastmath=True) * LN_2
        if cute.arch.lane_idx() == 0:
            tensors.lse[batch, head, token] = log
        for j in range_constexpr(MOST_DIMS // 32):
            dim = cute.arch.lane_idx() + 32 * j
            if dim < parts.shape[4]:
                tensors.out[batch, token, head, dim] = (sums[j] * inverse).to(tensors.out.element_type)


merge.set_name_prefix("cute_attn_decode_merge", remove_cutlass_symbol=True, keep_mangled_name=False)
