"""One case of the forward: random inputs, the kernel on a runtime, and fp64 and plain low precision to compare with."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from oracle import assert_close

from cute_attn.backend import backend
from cute_attn.launch.forward import forward
from cute_attn.mask import IntervalMask
from cute_attn.reference import attention_forward
from cute_attn.spec.tiles import TileConfig

NARROW = TileConfig(128, 32)  # has all code that other tiles have, and compiles in half the time


@dataclass(frozen=True)
class Case:
    """What varies. `inputs` makes q, k, v from the others; `options` go to the launch."""

    mask: IntervalMask
    batch: int = 1
    heads: tuple[int, int] = (2, 1)  # of queries and of keys
    dims: tuple[int, int] = (128, 128)
    dtype: torch.dtype = torch.bfloat16
    scale: float | None = None
    softcap: float = 0.0
    sink: str | None = None  # "sh" or "ssh"
    inputs: Any = None
    mode: str = "eager"
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)


def random_inputs(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, keys = case.mask.seqlen_q, case.mask.seqlen_k
    (heads_q, heads_k), (dim, dim_v) = case.heads, case.dims
    return (
        torch.randn(case.batch, rows, heads_q, dim),
        torch.randn(case.batch, keys, heads_k, dim),
        torch.randn(case.batch, keys, heads_k, dim_v),
    )


def check(case: Case, runtime: str) -> None:
    """The kernel's error against fp64 is at most twice that of plain PyTorch in the same dtype."""
    q, k, v = (x.to(case.dtype) for x in (case.inputs or random_inputs)(case))
    scale = case.dims[0] ** -0.5 if case.scale is None else case.scale
    sink = random_sink(case)
    out, lse, max_logits = run(case, runtime, q, k, v, scale, sink)
    wide = [x.double() for x in (q, k, v)]
    lo, hi = case.mask.lo, case.mask.hi
    exact = attention_forward(*wide, lo, hi, None if sink is None else sink.double(), scale, case.softcap)
    plain_out, plain_lse = plain_attention(q, k, v, case.mask.to_dense(), sink, scale, case.softcap)
    finite = exact[1].isfinite()
    assert_close("out", out, exact[0], 2 * (plain_out - exact[0]).abs().max().item() + 1e-6)
    tolerance = 1e-5 * max(1.0, exact[1][finite].abs().max().item() if finite.any() else 1.0)
    if case.softcap:  # the hardware's tanh is no better than that
        tolerance = 2 * (plain_lse - exact[1])[finite].abs().max().item()
    assert_close("lse", lse, exact[1], tolerance)
    if max_logits is not None:
        assert_close("max_logits", max_logits.amax(0), exact[2], tolerance)


def run(case: Case, runtime: str, q, k, v, scale, sink):
    """The kernel on tensors of a CPU, its outputs poisoned, wherever it runs."""
    mask, device = case.mask, torch.device("cuda" if runtime == "sm90" else "cpu")
    if device.type == "cuda":
        mask = IntervalMask(mask.lo.to(device), mask.hi.to(device), mask.seqlen_k)
    sink_lse = None if sink is None else sink.to(device).logsumexp(2).transpose(1, 2)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills fresh memory with NaN
    try:
        with backend("sim", mode=case.mode, seed=case.seed):
            results = forward(
                *(moved(x, device) for x in (q, k, v)),
                mask,
                softmax_scale=scale,
                softcap=case.softcap,
                sink_lse=sink_lse,
                runtime=runtime,
                **case.options,
            )
    finally:
        torch.use_deterministic_algorithms(False)
    return [x if x is None else x.cpu() for x in results]


def moved(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """x on a device, with the strides that it has."""
    return x if x.device == device else torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device).copy_(x)


def random_sink(case: Case) -> torch.Tensor | None:
    """(1 or batch, 1 or rows, n, heads_q) fp32, some of them -inf."""
    if case.sink is None:
        return None
    shape = (1, 1, 3) if case.sink == "sh" else (case.batch, case.mask.seqlen_q, 2)
    sink = torch.randn(*shape, case.heads[0])
    return sink.masked_fill(torch.rand_like(sink) < 0.2, -math.inf)


def plain_attention(q, k, v, dense, sink, scale, softcap):
    """The same computation in plain PyTorch: every tensor in the inputs' dtype. Returns fp64."""
    ratio = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(ratio, 2) for x in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~dense[:, None], -math.inf)
    n_keys = scores.shape[3]
    if sink is not None:
        extra = sink.to(q.dtype).permute(0, 3, 1, 2).expand(*scores.shape[:3], sink.shape[2])
        scores = torch.cat([scores, extra], 3)
    empty = (scores == -math.inf).all(3, keepdim=True)
    weights = scores.masked_fill(empty, 0.0).softmax(3).masked_fill(empty, 0.0)[..., :n_keys]
    lse = scores.float().logsumexp(3).to(q.dtype)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v).double(), lse.double()


# ---------------------------------------------------------------- masks and inputs


def block_sparse(blocks: torch.Tensor) -> IntervalMask:
    """Rows and keys in blocks of 128, those attended where `blocks` says."""
    pairs = blocks.nonzero() * 128
    return IntervalMask.from_slices(
        torch.stack([pairs[:, 0], pairs[:, 0] + 128], 1),
        torch.stack([pairs[:, 1], pairs[:, 1] + 128], 1),
        None,
        blocks.shape[0] * 128,
        blocks.shape[1] * 128,
    )


def with_gaps(rows: int, keys: int, layers: int) -> IntervalMask:
    """`layers` intervals a row of random length, apart from each other; every 16th row has none."""
    ends = torch.stack([torch.randperm(keys - 1)[: 2 * layers].sort().values + 1 for _ in range(rows)], 1)
    ends[:, ::16] = 0
    return IntervalMask.from_intervals(ends[0::2], ends[1::2], keys)


def growing(case):
    """Scores that grow from key to key, by more than any slack: a new maximum in every tile of keys in order."""
    return _rising(case, torch.linspace(0, 8, case.mask.seqlen_k))


def falling(case):
    """Scores that fall from key to key: under causal masks, whose partial tiles come first, the maximum comes later."""
    return _rising(case, torch.linspace(8, 0, case.mask.seqlen_k))


def _rising(case, heights):
    q, k, v = random_inputs(case)
    direction = torch.randn(case.dims[0]).sign()
    return q.abs() * direction, k * 0.1 + heights[None, :, None, None] * direction, v


def one_hot(case):
    """Every row has one key that outweighs all others, first seen in some later tile for most."""
    q, k, v = random_inputs(case)
    choice = torch.randint(0, k.shape[1], (q.shape[1],))
    k[:, choice] = 4 * q.mean(2, keepdim=True) * q.shape[2]
    return 4 * q, k, v
