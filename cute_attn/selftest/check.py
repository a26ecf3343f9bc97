"""One case: random inputs, the kernel on a GPU or in simulation, and float64 to compare with."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from cute_attn.backend import backend as chosen_backend
from cute_attn.jit.record import record_specs
from cute_attn.launch.backward import backward
from cute_attn.launch.captured import CapturedGradients
from cute_attn.launch.forward import forward
from cute_attn.launch.run import KernelBackend
from cute_attn.launch.tensors import NAMED_DTYPES
from cute_attn.mask import IntervalMask
from cute_attn.mods.trace import Traced
from cute_attn.ops.flex_flash import flex_flash_attn_func
from cute_attn.reference import attention_backward, attention_forward
from cute_attn.spec.backward import BackwardSpec
from cute_attn.spec.forward import ForwardSpec

from .cases import AnyCase, Case
from .decode import DecodeCase, DecodeProblem, make_decode_problem
from .masks import MASKS, thinned
from .mods import SCORE_MODS, Drawn, certain_of, mask_mod_of, score_mod_of, wanted_of
from .plain import plain_attention

__all__ = ["Verdict", "check", "launch", "make_problem"]

AGAIN = 2  # further runs on a GPU of what gives the same bits every time
Tensors = dict[str, torch.Tensor]


class Verdict(NamedTuple):
    """Of each tensor the largest error against float64 and what is allowed; what is wrong, in words, or ""."""

    error: dict[str, float]
    allowed: dict[str, float]
    wrong: str


@dataclass(frozen=True)
class AttentionProblem:
    """A case's tensors, on its device, with a batch of 1; of a backward also what the forward made of them."""

    mask: IntervalMask
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    dout: torch.Tensor
    sink: torch.Tensor | None  # (1, 1, n, heads_q)
    dlse: torch.Tensor | None
    out: torch.Tensor | None
    lse: torch.Tensor | None
    score_mod: Traced | None
    mask_mod: Traced | None  # what thins the mask
    attended: torch.Tensor | None  # the pairs of a mask that is thinned

    @property
    def pairs(self) -> torch.Tensor:
        """bool `(1 or heads_q, seqlen_q, seqlen_k)`."""
        return self.mask.to_dense().flatten(0, -3) if self.attended is None else self.attended


def check(case: AnyCase, backend: KernelBackend, device: torch.device) -> Verdict:
    """Runs a case. Whatever its launch raises goes through."""
    problem = make_problem(case, device)
    with record_specs() as recorder:
        got = launch(case, problem, backend)
    wrong = []
    if recorder.specs[-1:] != (case.spec,):
        wrong.append(f"another kernel was launched: {'; '.join(map(str, recorder.specs)) or 'none'}")
    for name, again in _runs_again(case, problem, backend):
        if not torch.equal(again, got[name]):
            wrong.append(f"{name} has other bits in another run")
    if isinstance(case, DecodeCase):
        assert isinstance(problem, DecodeProblem)
        exact, plain = problem.exact(case), problem.plain(case)
    else:
        assert isinstance(problem, AttentionProblem)
        exact, plain = _exact(case, problem), _plain(case, problem)
    error, allowed = {}, {}
    for name, result in got.items():
        allowed[name] = _allowed(case, name, exact[name], plain.get(name), problem.v)
        error[name], problem_of = _compared(name, result, exact[name], allowed[name])
        wrong += [problem_of] * bool(problem_of)
    return Verdict(error, allowed, "; ".join(dict.fromkeys(wrong)))


def make_problem(case: AnyCase, device: torch.device) -> AttentionProblem | DecodeProblem:
    """The same numbers for a case every time, on every device: they are drawn on the CPU."""
    if isinstance(case, DecodeCase):
        return make_decode_problem(case, device)
    numbers = torch.Generator().manual_seed(zlib.crc32(case.name.encode()))
    mask, (heads_q, heads_k), (dim, dim_v) = MASKS[case.mask](case.tokens), case.heads, case.dims

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(1, *shape, generator=numbers, device="cpu")

    q, k = random(mask.seqlen_q, heads_q, dim), random(mask.seqlen_k, heads_k, dim)
    v, dout = random(mask.seqlen_k, heads_k, dim_v), random(mask.seqlen_q, heads_q, dim_v)
    sink = random(1, 3, heads_q).to(device) if case.sink else None
    dlse = random(heads_q, mask.seqlen_q).to(device) if getattr(case.spec, "dlse", False) else None
    if case.inputs == "huge":
        q = 30 * q
    if case.inputs == "growing":
        direction = random(1, 1, dim).sign()
        heights = torch.linspace(0, 8, k.shape[1], device="cpu")[None, :, None, None]
        q, k = q.abs() * direction, 0.1 * k + heights * direction
    dtype = NAMED_DTYPES[case.spec.dtype]
    q, k, v, dout = (x.to(dtype).to(device) for x in (q, k, v, dout))
    mask = IntervalMask(mask.lo.to(device), mask.hi.to(device), mask.seqlen_k)
    drawn = Drawn(mask.seqlen_q, mask.seqlen_k, heads_q, numbers, device)
    score_mod = mask_mod = attended = out = lse = None
    if case.score_mod:
        score_mod = score_mod_of(case.score_mod, case.spec.score.graph, drawn)
    if getattr(case.spec, "planes_by_head", False):
        mask = mask._expanded(1, heads_q)
    if case.mask_mod:
        mask_mod = mask_mod_of(case.mask_mod, case.spec.mask.predicate, drawn)
        has_certain = case.spec.mask.has_certain
        certain = certain_of(case.mask_mod, has_certain, mask)
        mask, attended = thinned(mask, mask_mod, certain, heads_q, has_certain)
    problem = AttentionProblem(mask, q, k, v, dout, sink, dlse, out, lse, score_mod, mask_mod, attended)
    if case.op == "bwd" and not case.public:
        factors = case.softmax_scale, case.softcap
        if score_mod is None and attended is None:
            out, lse, _ = attention_forward(q, k, v, mask.lo, mask.hi, sink, *factors, mask_heads=mask.heads)
        else:
            inputs = q.float(), k.float(), v.float(), problem.pairs, sink
            out, lse, _ = plain_attention(*inputs, *factors, score_mod)
            out = out.to(dtype)
    return replace(problem, out=out, lse=lse)


def launch(case: AnyCase, p: AttentionProblem | DecodeProblem, backend: KernelBackend, **simulation: object) -> Tensors:
    """The results of one run by name, their memory poisoned before. simulation: options of the backend "sim"."""
    with _poisoned(), chosen_backend(backend, **simulation):
        if isinstance(case, DecodeCase):
            assert isinstance(p, DecodeProblem)
            found = p.launch(case, backend)
        else:
            assert isinstance(p, AttentionProblem)
            found = _public(case, p) if case.public else _launched(case, p, backend)
        if p.q.device.type == "cuda":
            torch.cuda.synchronize(p.q.device)
    return found


def _launched(case: Case, p: AttentionProblem, backend: KernelBackend) -> Tensors:
    spec = case.spec
    if isinstance(spec, ForwardSpec):
        out, lse, largest = forward(
            p.q,
            p.k,
            p.v,
            p.mask,
            softmax_scale=case.softmax_scale,
            softcap=case.softcap,
            score_mod=p.score_mod,
            predicate=p.mask_mod,
            sink_lse=None if p.sink is None else p.sink.logsumexp(2).transpose(1, 2),
            return_max_logits=spec.max_logits,
            return_max_scores=spec.max_scores,
            softmax=spec.softmax,
            fp32_out=spec.fp32_out,
            tile=spec.tile,
            heads_in_tile=case.heads_in_tile,
            backend=backend,
        )
        found = {"out": out, "lse": lse}
        if largest is not None:
            found |= {"max_scores": largest} if spec.max_scores else {"max_logits": largest[0]}
        return found
    assert p.out is not None
    assert p.lse is not None
    captured = None
    if p.score_mod is not None:
        wanted = wanted_of(case.score_mod, spec.score.graph, p.score_mod)
        captured = CapturedGradients(p.score_mod, wanted, p.q.device)
    gradients = backward(
        p.dout,
        p.q,
        p.k,
        p.v,
        p.out,
        p.lse,
        p.mask,
        softmax_scale=case.softmax_scale,
        softcap=case.softcap,
        dlse=p.dlse,
        needs=(spec.dq, spec.dk, spec.dv),
        captured=captured,
        predicate=p.mask_mod,
        deterministic=spec.deterministic,
        fp32_gradients=spec.fp32_gradients,
        tile=spec.tile,
        backend=backend,
    )
    flowed = dict(zip(("dq", "dk", "dv"), gradients, strict=False))
    if captured is not None:
        flowed |= _captured(captured.gathered(p.lse, p.dlse))
    return {name: gradient for name, gradient in flowed.items() if gradient is not None}


def _captured(gradients: Sequence[torch.Tensor | None]) -> dict[str, torch.Tensor | None]:
    """Gradients of what a score_mod captured, by name."""
    return {f"dcaptured {i}": gradient for i, gradient in enumerate(gradients)}


def _public(case: Case, p: AttentionProblem) -> Tensors:
    q, k, v = (x[0].detach().clone().requires_grad_() for x in (p.q, p.k, p.v))
    sink = None if p.sink is None else p.sink[0, 0].clone().requires_grad_()
    scale, softcap = case.softmax_scale, case.softcap
    out, lse = flex_flash_attn_func(q, k, v, p.mask, softmax_scale=scale, softcap=softcap, sink=sink)
    inputs = (q, k, v) if sink is None else (q, k, v, sink)
    gradients = torch.autograd.grad(out, inputs, p.dout[0])
    named = dict(zip(("dq", "dk", "dv", "dsink"), gradients, strict=False))
    return {name: x.detach()[None] for name, x in {"out": out, "lse": lse, **named}.items()}


def _runs_again(
    case: AnyCase, p: AttentionProblem | DecodeProblem, backend: KernelBackend
) -> Iterator[tuple[str, torch.Tensor]]:
    """The results of further runs, of what is the same every time; in simulation under another schedule."""
    if case.public or (isinstance(case.spec, BackwardSpec) and not case.spec.deterministic):
        return
    if backend == "sm90":
        for _ in range(AGAIN):
            yield from launch(case, p, backend).items()
    elif case.op == "bwd":
        yield from launch(case, p, backend, mode="random", seed=1).items()


@contextlib.contextmanager
def _poisoned() -> Iterator[None]:
    """Fresh memory is filled with NaN: what no kernel wrote is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


# ---------------------------------------------------------------- what it must be


def _exact(case: Case, p: AttentionProblem) -> Tensors:
    """By name, in float64."""
    q, k, v, dout = (x.double() for x in (p.q, p.k, p.v, p.dout))
    sink, dlse = (x if x is None else x.double() for x in (p.sink, p.dlse))
    if p.score_mod is not None or p.attended is not None:
        score_mod = p.score_mod
        if score_mod is not None:
            captured = [x.double() if x.is_floating_point() else x for x in score_mod.tensors]
            score_mod = score_mod._replace(tensors=captured)
        return _plain(case, replace(p, q=q, k=k, v=v, dout=dout, dlse=dlse, score_mod=score_mod))
    bounds, factors = (p.mask.lo, p.mask.hi), (case.softmax_scale, case.softcap)
    heads = p.mask.heads
    out, lse, max_scores = attention_forward(q, k, v, *bounds, sink, *factors, mask_heads=heads, by_row=True)
    found = {"out": out, "lse": lse, "max_scores": max_scores, "max_logits": max_scores[0].amax(1)}
    if case.op == "bwd":
        gradients = attention_backward(dout, dlse, q, k, v, out, lse, *bounds, sink, *factors, mask_heads=heads)
        named = zip(("dq", "dk", "dv"), gradients, strict=False)
        found |= {name: x for name, x in named if x is not None}
        if gradients.sink is not None:
            found["dsink"] = gradients.sink[0]
    return found


def _plain(case: Case, p: AttentionProblem) -> Tensors:
    """By name, of plain PyTorch in the case's dtype."""
    q, k, v = leaves = tuple(x.detach().clone().requires_grad_(case.op == "bwd") for x in (p.q, p.k, p.v))
    sink = None if p.sink is None else p.sink.clone().requires_grad_(case.op == "bwd")
    score_mod = p.score_mod
    if score_mod is not None and case.op == "bwd":
        wanted = wanted_of(case.score_mod, case.spec.score.graph, score_mod)
        captured = [x.detach().clone().requires_grad_(need) for x, need in zip(score_mod.tensors, wanted, strict=True)]
        score_mod = score_mod._replace(tensors=captured)
    out, lse, largest = plain_attention(q, k, v, p.pairs, sink, case.softmax_scale, case.softcap, score_mod)
    largest = largest.detach()
    found = {"out": out.detach(), "lse": lse.detach(), "max_scores": largest, "max_logits": largest[0].amax(1)}
    if case.op == "bwd":
        loss = (out * p.dout).sum()
        if p.dlse is not None:
            loss = loss + torch.where(lse.isfinite(), lse * p.dlse.to(lse.dtype), 0.0).sum()
        loss.backward()
        found |= {name: x.grad for name, x in zip(("dq", "dk", "dv"), leaves, strict=True) if x.grad is not None}
        if sink is not None and sink.grad is not None:
            found["dsink"] = sink.grad[0]
        if score_mod is not None:
            flowed = _captured([x.grad for x in score_mod.tensors])
            found |= {name: gradient for name, gradient in flowed.items() if gradient is not None}
    return found


def _allowed(case: AnyCase, name: str, exact: torch.Tensor, plain: torch.Tensor | None, v: torch.Tensor) -> float:
    """Twice the error of plain PyTorch; of sums kept in fp32, 1e-5 of the largest where nothing else rounds them.

    out is a mean of v: however wrong scores in the inputs' dtype make the plain one, rounding weights and result once
    leaves an error of at most eps times the largest v.
    """
    approximation = 2**-11 * case.softcap  # the hardware's tanh
    if isinstance(case, Case) and case.score_mod:
        approximation = SCORE_MODS[case.score_mod].approximation if case.score_mod in SCORE_MODS else 2**-9
    if name in ("lse", "max_logits", "max_scores"):
        if approximation:
            return 2 * approximation
        finite = exact[exact.isfinite()]
        return 1e-5 * max(1.0, finite.abs().max().item() if len(finite) else 1.0)
    assert plain is not None
    difference = (plain.double() - exact)[exact.isfinite()]
    twice = 2 * difference.abs().max().item()
    if name == "out" and not approximation:  # else it may move weights by more
        twice = min(twice, torch.finfo(v.dtype).eps * v.abs().max().item())
    return twice + 1e-6


def _compared(name: str, got: torch.Tensor, exact: torch.Tensor, allowed: float) -> tuple[float, str]:
    """The largest error, and what is wrong in words."""
    if got.shape != exact.shape:
        return float("inf"), f"{name} has shape {tuple(got.shape)}, not {tuple(exact.shape)}"
    got = got.double()
    if bad := int(got.isnan().sum()):
        return float("nan"), f"{name} has {bad:,} NaN of {got.numel():,}"
    infinite = exact.isinf()
    if not torch.equal(got[infinite], exact[infinite]):
        return float("inf"), f"{name} differs where infinities belong"
    if bool(infinite.all()):
        return 0.0, ""
    off = (got - exact).abs().masked_fill(infinite, 0.0)
    error = off.max().item()
    if error <= allowed:
        return error, ""
    beyond = int((off > allowed).sum())
    place = tuple(int(i) for i in torch.unravel_index(off.argmax(), off.shape))
    return error, (
        f"{name} is off by {error:.3g}, allowed {allowed:.2g}: "
        f"{beyond:,} of {off.numel():,} elements are, most at {place}"
    )
