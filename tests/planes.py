"""Masks with planes: one for each query head, for each batch element or for both, no two alike."""

import torch
from cases import stacked
from forward_case import TANH_ERROR
from oracle import assert_no_worse, plain_attention, results

from cute_attn.mask import IntervalMask, causal, full, sliding_window
from cute_attn.ops.attention_op import attention

SHARES = ("heads", "batch", "both")  # what has planes of its own


def plane(index, rows, keys):
    """One layer, two and three, and none, in turn; most leave out some rows and keys, one all of them."""
    made = (
        lambda: causal(rows, keys),
        lambda: gaps(rows, keys, 3),
        lambda: sliding_window(rows, keys, left=30, right=5) | causal(rows, keys, offset=-90),
        lambda: ~full(rows, keys),
        lambda: full(rows, keys),
        lambda: sliding_window(rows, keys, left=17, right=0),
    )
    return made[index % len(made)]()


def gaps(rows, keys, layers):
    """Intervals of random length; every 16th row has none, and the keys of the second hundred are in none."""
    ends = torch.stack([torch.randperm(keys - 101)[: 2 * layers].sort().values + 1 for _ in range(rows)], 1)
    ends = ends + 100 * (ends >= 100)
    ends[:, ::16] = 0
    pieces = IntervalMask.from_intervals(ends[0::2], ends[1::2], keys)
    lo = torch.tensor([[0], [200]]).expand(2, rows)
    return pieces & IntervalMask.from_intervals(lo, torch.tensor([[100], [keys]]).expand(2, rows), keys)


def mask_of(share, batch, heads, rows, keys, first=0):
    batch, heads = batch if share != "heads" else 1, heads if share != "batch" else 1
    return stacked(*(plane(first + i, rows, keys) for i in range(batch * heads)), heads=heads)


def dense(mask):
    """bool `(batch, heads, rows, keys)`."""
    pairs = mask.to_dense()
    return pairs if pairs.ndim == 4 else pairs[:, None]


def inputs(mask, batch, heads, dim, dtype, sink=False):
    """q, k, v, dout, dlse and a sink or None."""
    (heads_q, heads_k), rows, keys = heads, mask.seqlen_q, mask.seqlen_k
    q, dout = (torch.randn(batch, rows, heads_q, dim).to(dtype) for _ in range(2))
    k, v = (torch.randn(batch, keys, heads_k, dim).to(dtype) for _ in range(2))
    return q, k, v, dout, torch.randn(batch, heads_q, rows), torch.randn(1, 1, 2, heads_q) if sink else None


def check(mask, batch, heads, dim=64, dtype=torch.bfloat16, softcap=0.0, sink=False, deterministic=False, grads=True):
    """The attention op, under the backend that is asked for here, against the formula in fp64: at most twice as far off
    as the formula in the inputs' dtype. Returns out and the gradients."""
    q, k, v, dout, dlse, sinks = inputs(mask, batch, heads, dim, dtype, sink)
    scale, pairs = dim**-0.5, mask.to_dense()

    def leaves(kind):
        given = [x.to(kind) for x in (q, k, v)]
        given += [] if sinks is None else [sinks.to(torch.float32 if kind == dtype else kind)]
        return [x.detach().requires_grad_(grads) for x in given]

    def op(q, k, v, extra=None):
        return attention(q, k, v, extra, mask, scale, softcap, deterministic, 0, False)[:2]

    def plain(q, k, v, extra=None):
        return plain_attention(q, k, v, pairs, extra, scale, softcap)[:2]

    got = results(op, leaves(dtype), dout, dlse)
    exact, rough = (results(plain, leaves(kind), dout, dlse) for kind in (torch.float64, dtype))
    names = ("out", "lse", "dq", "dk", "dv", "dsink")
    assert_no_worse(names, got, exact, rough, TANH_ERROR * softcap)  # no score is above the softcap
    return got
