"""One case of the backward: random inputs, the kernels on a runtime, fp64 and plain low precision to compare with."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from oracle import assert_close

from cute_attn.backend import backend
from cute_attn.launch.backward import KernelGradients, backward
from cute_attn.mask import IntervalMask
from cute_attn.reference import attention_backward, attention_forward, sink_gradient

NAMES = ("dq", "dk", "dv", "dsink")


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
    sink: tuple[int, ...] | None = None  # its shape, fp32: (1 or batch, 1 or rows, n, heads_q)
    dlse: bool = False
    inputs: Any = None
    mode: str = "eager"
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def softmax_scale(self) -> float:
        return self.dims[0] ** -0.5 if self.scale is None else self.scale


@dataclass(frozen=True)
class Problem:
    """Inputs in the case's dtype, and what the forward made of them, rounded as its kernel rounds."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    sink: torch.Tensor | None
    out: torch.Tensor
    lse: torch.Tensor
    dout: torch.Tensor
    dlse: torch.Tensor | None


def random_inputs(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, keys = case.mask.seqlen_q, case.mask.seqlen_k
    (heads_q, heads_k), (dim, dim_v) = case.heads, case.dims
    return (
        torch.randn(case.batch, rows, heads_q, dim),
        torch.randn(case.batch, keys, heads_k, dim),
        torch.randn(case.batch, keys, heads_k, dim_v),
    )


def one_hot(case):
    """Every row has one key that outweighs all others."""
    q, k, v = random_inputs(case)
    choice = torch.randint(0, k.shape[1], (q.shape[1],))
    k[:, choice] = 4 * q.mean(2, keepdim=True) * q.shape[2]
    return 4 * q, k, v


def make_problem(case: Case) -> Problem:
    q, k, v = (x.to(case.dtype) for x in (case.inputs or random_inputs)(case))
    sink = None
    if case.sink is not None:
        sink = torch.randn(case.sink)
        sink = sink.masked_fill(torch.rand_like(sink) < 0.2, -math.inf)
    lo, hi = case.mask.lo, case.mask.hi
    out, lse, _ = attention_forward(q, k, v, lo, hi, sink, case.softmax_scale, case.softcap)
    dlse = torch.randn(lse.shape) if case.dlse else None
    return Problem(q, k, v, sink, out, lse, torch.randn(out.shape).to(case.dtype), dlse)


def check(case: Case, runtime: str) -> KernelGradients:
    """The kernels' errors against fp64 are at most twice those of plain PyTorch in the same dtype, and what fp32 sums
    explain: where a row has one key, plain gradients of q and k are exactly zero, and the kernels' are nearly so."""
    problem = make_problem(case)
    gradients = run(case, runtime, problem)
    exact, plain = exact_gradients(case, problem), plain_gradients(case, problem)
    rounding = dict(zip(NAMES, fp32_rounding(case, problem), strict=False))
    dsink = None if problem.sink is None else sink_gradient(problem.sink, problem.lse, gradients.delta)
    for name, got, wanted, rough in zip(NAMES, (*gradients[:3], dsink), exact, plain, strict=True):
        if got is not None:
            error = (rough.double() - wanted).abs().max().item()
            assert_close(name, got, wanted, 2 * error + rounding.get(name, 0.0))
    return gradients


def run(case: Case, runtime: str, problem: Problem) -> KernelGradients:
    """The kernels on tensors of a CPU, outputs and workspaces poisoned, wherever they run."""
    device = torch.device("cuda" if runtime == "sm90" else "cpu")
    mask = IntervalMask(case.mask.lo.to(device), case.mask.hi.to(device), case.mask.seqlen_k)
    p = problem
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills fresh memory with NaN
    try:
        with backend("sim", mode=case.mode, seed=case.seed):
            results = backward(
                *(moved(x, device) for x in (p.dout, p.q, p.k, p.v, p.out, p.lse)),
                mask,
                softmax_scale=case.softmax_scale,
                softcap=case.softcap,
                dlse=None if p.dlse is None else p.dlse.to(device),
                runtime=runtime,
                **case.options,
            )
    finally:
        torch.use_deterministic_algorithms(False)
    return KernelGradients(*(x if x is None else x.cpu() for x in results))


def moved(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """x on a device, with the strides that it has."""
    return x if x.device == device else torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device).copy_(x)


def exact_gradients(case: Case, p: Problem) -> tuple[torch.Tensor | None, ...]:
    """dq, dk, dv, dsink in fp64, from a forward in fp64."""
    lo, hi = case.mask.lo, case.mask.hi
    q, k, v, dout = (x.double() for x in (p.q, p.k, p.v, p.dout))
    sink, dlse = (x if x is None else x.double() for x in (p.sink, p.dlse))
    out, lse, _ = attention_forward(q, k, v, lo, hi, sink, case.softmax_scale, case.softcap)
    return attention_backward(dout, dlse, q, k, v, out, lse, lo, hi, sink, case.softmax_scale, case.softcap)


def plain_gradients(case: Case, p: Problem) -> tuple[torch.Tensor | None, ...]:
    """The same by autograd through plain PyTorch, every tensor in the inputs' dtype."""
    q, k, v = (x.detach().clone().requires_grad_() for x in (p.q, p.k, p.v))
    sink = None if p.sink is None else p.sink.to(case.dtype).requires_grad_()
    ratio = q.shape[2] // k.shape[2]
    keys, values = (x.repeat_interleave(ratio, 2) for x in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, keys) * case.softmax_scale
    if case.softcap:
        scores = case.softcap * torch.tanh(scores / case.softcap)
    n_keys = scores.shape[3]
    scores = scores.masked_fill(~case.mask.to_dense()[:, None], -math.inf)
    if sink is not None:
        scores = torch.cat([scores, sink.permute(0, 3, 1, 2).expand(*scores.shape[:3], sink.shape[2])], 3)
    empty = (scores == -math.inf).all(3, keepdim=True)
    filled = scores.masked_fill(empty, 0.0)
    weights = filled.softmax(3).masked_fill(empty, 0.0)[..., :n_keys]
    loss = (torch.einsum("bhqk,bkhd->bqhd", weights, values) * p.dout).sum()
    if p.dlse is not None:
        loss = loss + (filled.logsumexp(3) * p.dlse.to(case.dtype)).masked_fill(empty[..., 0], 0.0).sum()
    loss.backward()
    return q.grad, k.grad, v.grad, None if sink is None else sink.grad


def fp32_rounding(case: Case, p: Problem) -> tuple[float, float]:
    """What rounding in fp32 may leave in an element of dq and dk where dP and delta cancel: six standard deviations.

    Each is a sum of d products, added one block of 16 after another. If B additions are off by independent errors of at
    most u = 2^-24, relative, the sum is off by about 0.3 sqrt(B) u times the norm of the products; twice that here.
    """
    ratio = case.heads[0] // case.heads[1]
    u = 0.6 * (max(case.dims) / 16) ** 0.5 * 2.0**-24
    q, out, dout = (x.double().transpose(1, 2) for x in (p.q, p.out, p.dout))
    k, v = (x.double().transpose(1, 2).repeat_interleave(ratio, 1) for x in (p.k, p.v))
    scores = case.softmax_scale * q @ k.mT
    if case.softcap:
        scores = case.softcap * torch.tanh(scores / case.softcap)
    lse = p.lse.double().masked_fill(p.lse == -math.inf, 0.0)[..., None]
    weights = (scores - lse).exp().masked_fill(~case.mask.to_dense()[:, None], 0.0)
    variance = dout**2 @ (v**2).mT + (dout * out).square().sum(3, keepdim=True)
    if p.dlse is not None:
        variance = variance + p.dlse.double()[..., None] ** 2
    variance = (u * case.softmax_scale * weights) ** 2 * variance
    dq, dk = variance @ k**2, (variance.mT @ q**2).unflatten(1, (-1, ratio)).sum(2)
    return 6 * dq.max().sqrt().item(), 6 * dk.max().sqrt().item()


def with_gaps(rows: int, keys: int, layers: int) -> IntervalMask:
    """`layers` intervals a row of random length, apart from each other; every 16th row has none."""
    ends = torch.stack([torch.randperm(keys - 1)[: 2 * layers].sort().values + 1 for _ in range(rows)], 1)
    ends[:, ::16] = 0
    return IntervalMask.from_intervals(ends[0::2], ends[1::2], keys)


def block_sparse(blocks: torch.Tensor) -> IntervalMask:
    """Rows and keys in blocks of 128, those attended where `blocks` says."""
    pairs = blocks.nonzero() * 128
    ranges = [torch.stack([pairs[:, side], pairs[:, side] + 128], 1) for side in (0, 1)]
    return IntervalMask.from_slices(*ranges, None, blocks.shape[0] * 128, blocks.shape[1] * 128)
