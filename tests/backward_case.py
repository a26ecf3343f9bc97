"""The backward on a case, wherever it runs, against plain PyTorch in fp64 and in the case's dtype."""

import math
from dataclasses import replace

import torch
from cases import Case, Problem, draw, on, plainly, running
from oracle import assert_close, plain_logits

from cute_attn.launch.backward import KernelGradients, backward
from cute_attn.reference import attention_forward, sink_gradient

NAMES = ("dq", "dk", "dv", "dsink")


def make_problem(case: Case) -> Problem:
    p = draw(case)
    out, lse, _ = attention_forward(p.q, p.k, p.v, *case.bounds, p.sink, case.softmax_scale, case.softcap)
    dlse = torch.randn(lse.shape) if case.dlse else None
    return replace(p, out=out, lse=lse, dout=torch.randn(out.shape).to(case.dtype), dlse=dlse)


def check(case: Case, backend: str) -> KernelGradients:
    """The kernels' errors against fp64 are at most twice those of plain PyTorch in the same dtype, and what fp32 sums
    explain: where a row has one key, plain gradients of q and k are exactly zero, and the kernels' are nearly so."""
    problem = make_problem(case)
    gradients = run(case, backend, problem)
    exact, plain = plainly(case, problem, torch.float64), plainly(case, problem, case.dtype)
    rounding = dict(zip(NAMES, fp32_rounding(case, problem), strict=False))
    dsink = None if problem.sink is None else sink_gradient(problem.sink, problem.lse, gradients.delta)
    for name, got in zip(NAMES, (*gradients[:3], dsink), strict=True):
        if got is not None:
            error = (plain[name].double() - exact[name]).abs().max().item()
            assert_close(name, got, exact[name], 2 * error + rounding.get(name, 0.0))
    return gradients


def check_same_bits(case: Case, backend: str, schedules: list[tuple[str, int]]) -> None:
    """The case has the same gradients in every schedule."""
    problem = make_problem(case)
    first, *others = [run(replace(case, mode=mode, seed=seed), backend, problem) for mode, seed in schedules]
    for gradients in others:
        for name in ("dq", "dk", "dv"):
            assert torch.equal(getattr(gradients, name), getattr(first, name)), name


def run(case: Case, backend: str, p: Problem) -> KernelGradients:
    """The kernels on tensors of a CPU, wherever they run."""
    mask, *tensors, dlse = on(backend, case.mask, p.dout, p.q, p.k, p.v, p.out, p.lse, p.dlse)
    with running(case):
        results = backward(
            *tensors,
            mask,
            softmax_scale=case.softmax_scale,
            softcap=case.softcap,
            dlse=dlse,
            backend=backend,
            **case.options,
        )
    return KernelGradients(*(x if x is None else x.cpu() for x in results))


def fp32_rounding(case: Case, p: Problem) -> tuple[float, float]:
    """What rounding in fp32 may leave in an element of dq and dk where dP and delta cancel: six standard deviations.

    Each is a sum of d products, added one block of 16 after another. If B additions are off by independent errors of at
    most u = 2^-24, relative, the sum is off by about 0.3 sqrt(B) u times the norm of the products; twice that here.
    """
    ratio = case.heads[0] // case.heads[1]
    u = 0.6 * (max(case.dims) / 16) ** 0.5 * 2.0**-24
    q, out, dout = (x.double().transpose(1, 2) for x in (p.q, p.out, p.dout))
    k, v = (x.double().transpose(1, 2).repeat_interleave(ratio, 1) for x in (p.k, p.v))
    scores = plain_logits(p.q.double(), p.k.double(), case.mask.to_dense(), case.softmax_scale, case.softcap)
    weights = (scores - p.lse.double().masked_fill(p.lse == -math.inf, 0.0)[..., None]).exp()
    variance = dout**2 @ (v**2).mT + (dout * out).square().sum(3, keepdim=True)
    if p.dlse is not None:
        variance = variance + p.dlse.double()[..., None] ** 2
    variance = (u * case.softmax_scale * weights) ** 2 * variance
    dq, dk = variance @ k**2, (variance.mT @ q**2).unflatten(1, (-1, ratio)).sum(2)
    return 6 * dq.max().sqrt().item(), 6 * dk.max().sqrt().item()
