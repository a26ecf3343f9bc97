"""Attention problems, what one device makes of them, and the check that ranks make the same of them."""

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from oracle import assert_close, dense_attention, random_slices

from cute_attn import IntervalMask
from cute_attn import mask as masks
from cute_attn.dist import (
    DispatchConfig,
    DistAttnConfig,
    MinHeapDispatchAlg,
    OverlapConfig,
    calc_attn,
    compute_pad_size,
    dispatch,
    magi_attn_flex_key,
    undispatch,
)

EXACT = 1e-10
NAMES = ("out", "lse", "max_logits", "dq", "dk", "dv", "dsink")


def documents(*lengths):
    """Packed causal documents."""
    total = sum(lengths)
    return masks.causal_documents(total, cu_seqlens=torch.tensor([0, *lengths]).cumsum(0))


def slices(count, seqlen_q, seqlen_k=None, seed=0):
    """Random slices of all four types."""
    seqlen_k = seqlen_q if seqlen_k is None else seqlen_k
    ranges = random_slices(count, seqlen_q, seqlen_k, torch.Generator().manual_seed(seed))
    return IntervalMask.from_slices(*ranges, seqlen_q, seqlen_k)


def small_masks():
    """Masks of about a hundred rows, by name: lengths that no number of ranks divides."""
    some_rows = IntervalMask.from_slices([[3, 9]], [[0, 14]], "full", 90, 90)
    return {
        "causal": masks.causal(101),
        "documents": documents(13, 71, 9, 1, 22),
        "window": masks.sliding_window(97, left=11, right=0),
        "shared prefix": masks.shared_prefix(95, prefix_length=21, lengths=[30, 7, 37]),
        "slices": slices(9, 107),
        "rows on few ranks": some_rows,
        "nothing": IntervalMask.from_slices([], [], None, 40, 40),
    }


@dataclass
class Problem:
    """Inputs, output gradients and what they must lead to; `q` and so on are global."""

    mask: IntervalMask
    heads_q: int = 8
    heads_k: int = 2
    head_dim: int = 8
    head_dim_v: int = 8
    sinks: int = 0
    softcap: float = 0.0
    softmax_scale: float | None = None
    inputs: tuple = field(init=False)
    gradients: tuple = field(init=False)
    wanted: dict = field(init=False)

    def __post_init__(self):
        rows, keys = self.mask.seqlen_q, self.mask.seqlen_k
        q, k = draw(rows, self.heads_q, self.head_dim), draw(keys, self.heads_k, self.head_dim)
        v = draw(keys, self.heads_k, self.head_dim_v)
        sink = draw(self.sinks, self.heads_q) if self.sinks else None
        self.inputs = q, k, v, sink
        self.gradients = draw(rows, self.heads_q, self.head_dim_v), draw(self.heads_q, rows)
        self.wanted = results(self.inputs, self.gradients, self.on_one_device)

    def on_one_device(self, q, k, v, sink):
        out, lse, max_logits = dense_attention(
            q[None], k[None], v[None], self.mask.to_dense(), sink,
            softmax_scale=self.softmax_scale, softcap=self.softcap,
        )  # fmt: skip
        return out[0], lse[0], max_logits


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def results(inputs, gradients, attention):
    """Everything in NAMES of `attention(q, k, v, sink) -> (out, lse, max_logits)`."""
    inputs = [None if x is None else x.detach().clone().requires_grad_() for x in inputs]
    out, lse, max_logits = attention(*inputs)
    dout, dlse = gradients
    ((out * dout).sum() + (lse.where(lse.isfinite(), 0.0) * dlse).sum()).backward()
    grads = [None if x is None else x.grad for x in inputs]
    return dict(zip(NAMES, (out.detach(), lse.detach(), max_logits, *grads), strict=True))


def config(mover, **overlap):
    """Chunks scattered over the ranks, and several stages even of few rows."""
    overlap = {"degree": 2, "min_chunk_size": 8, **overlap}
    return DistAttnConfig(DispatchConfig(MinHeapDispatchAlg()), OverlapConfig(**overlap), mover)


def on_ranks(problem, settings, group=None, chunk_size=4, **flags):
    """What the ranks of `group` make of a problem: the results of one device, on each of them."""
    group = dist.group.WORLD if group is None else group
    rows, keys = problem.mask.seqlen_q, problem.mask.seqlen_k
    world = group.size()
    pad_size = compute_pad_size(rows, world, chunk_size)
    key = magi_attn_flex_key(problem.mask, None, None, rows, keys, pad_size, chunk_size, group, settings, **flags)

    def attention(q, k, v, sink):
        local = dispatch(q, key), dispatch(k, key, side="k"), dispatch(v, key, side="k")
        out, lse, max_logits = calc_attn(
            *local, key, sink, problem.softmax_scale, problem.softcap, return_max_logits=True
        )
        return undispatch(out, key), undispatch(lse.T, key).T, max_logits

    return results(problem.inputs, problem.gradients, attention)


def check(name, got, wanted, tolerance=EXACT):
    for part in NAMES:
        if wanted[part] is None:
            assert got[part] is None
        else:
            assert_close(f"{name}: {part}", got[part], wanted[part], tolerance)


def solve(rank, problems, settings, make_group=None, **flags):
    """For `run_ranks`: every problem, on every rank, as on one device. make_group: the group or mesh, made here."""
    group = None if make_group is None else make_group()
    for name, problem in problems.items():
        check(name, on_ranks(problem, settings, group, **flags), problem.wanted)
