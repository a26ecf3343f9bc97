"""The numbers of a finished row: its log-sum-exp, the sink, the weight of its output, the largest score."""

import cutlass.cute as cute
from cutlass import Boolean, Float32, const_expr, range_constexpr

from cute_attn.sm90.ptx import exp2
from cute_attn.spec.score import LN_2, LOG2_E

from .softmax import quad_max, quad_sum, rescale

__all__ = ["finish_rows"]


@cute.jit
def finish_rows(tensors, item, queries, softmax, out):
    """Normalises `out` of this thread's two rows, writes their LSE, their largest scores and their share of max_logits.

    A row without keys has l = 0: its output is 0, its LSE that of its sinks, -inf without.
    """
    weight = cute.make_rmem_tensor(2, Float32)
    without_keys = cute.make_rmem_tensor(2, Boolean)
    for h in range_constexpr(2):
        total = quad_sum(softmax.total[h])
        empty = total == 0.0
        without_keys[h] = empty
        log2_sum = -Float32.inf if empty else softmax.m[h] * softmax.factor + cute.math.log2(total, fastmath=True)
        weight[h] = 0.0 if empty else cute.arch.rcp_approx(total)
        if const_expr(tensors.sink is not None):
            sink = tensors.sink[item.batch, queries[h].last_head, queries[h].last_position] * LOG2_E
            largest = cute.arch.fmax(log2_sum, sink)
            if largest > -Float32.inf:
                joined = largest + cute.math.log2(exp2(log2_sum - largest) + exp2(sink - largest), fastmath=True)
                weight[h] = weight[h] * exp2(log2_sum - joined)
                log2_sum = joined
        if cute.arch.lane_idx() % 4 == 0 and queries[h].is_there():
            tensors.lse[item.batch, queries[h].head, queries[h].position] = log2_sum * LN_2
            if const_expr(tensors.max_scores is not None):
                tensors.max_scores[item.batch, queries[h].head, queries[h].position] = largest_score(softmax, h)
    rescale(out, weight)
    if cute.arch.vote_any_sync(without_keys[0] | without_keys[1]):  # 0 * NaN of other rows' values is NaN
        for k in range_constexpr(cute.size(out)):
            out[k] = 0.0 if without_keys[(k >> 1) & 1] else out[k]
    if const_expr(tensors.max_logits is not None):
        write_max_logits(tensors, item, queries, softmax)


@cute.jit
def largest_score(softmax, h):
    """Of row h, as the score_mod gave it; -inf without keys."""
    return softmax.top[h] * (softmax.factor * LN_2) if softmax.top[h] > softmax.no_key else -Float32.inf


@cute.jit
def write_max_logits(tensors, item, queries, softmax):
    """The largest score of the rows of this warp, by an atomic maximum: its order does not matter."""
    largest = Float32(softmax.no_key)
    for h in range_constexpr(2):
        if queries[h].is_there():
            largest = cute.arch.fmax(largest, softmax.top[h])
    largest = quad_max(largest)
    for offset in (4, 8, 16):
        largest = cute.arch.fmax(largest, cute.arch.shuffle_sync_bfly(largest, offset=offset))
    if cute.arch.lane_idx() == 0 and largest > softmax.no_key:
        target = tensors.max_logits.iterator + cute.crd2idx((item.batch, item.head), tensors.max_logits.layout)
        cute.arch.atomic_fmax(target.llvm_ptr, largest * (softmax.factor * LN_2))
