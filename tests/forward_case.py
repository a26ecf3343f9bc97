"""The forward on a case, wherever it runs, against plain PyTorch in fp64 and in the case's dtype."""

import torch
from cases import Case, Problem, draw, on, plainly, running
from oracle import allowed_error, assert_close, plain_logits

from cute_attn.launch.forward import forward
from cute_attn.reference import attention_forward

TANH_ERROR = 2.0**-10.9  # relative, of the hardware's tanh


def check(case: Case, backend: str) -> None:
    """The output's error against fp64 is at most twice that of plain PyTorch in the same dtype."""
    problem = draw(case)
    got = dict(zip(("out", "lse", "max_logits"), run(case, backend, problem), strict=True))
    exact, plain = plainly(case, problem, torch.float64), plainly(case, problem, case.dtype)
    wide = lse_tolerance(case, problem, exact["lse"])
    allowed = {"out": allowed_error(exact["out"], plain["out"]), "lse": wide, "max_logits": wide}
    for name, result in got.items():
        if result is not None:
            assert_close(name, result, exact[name], allowed[name])


def lse_tolerance(case: Case, p: Problem, exact: torch.Tensor) -> float:
    """How far lse and the largest logit may be off: by what sums in fp32 are, and under a softcap by what tanh is.

    A capped score s is off by TANH_ERROR |s| at most. lse has the derivatives softmax(s), which are positive and add up
    to 1 or, with sinks, less: it is off by no more than the worst of its scores.
    """
    rounding = 1e-5 * exact[exact.isfinite()].abs().clamp(min=1.0).amax().item() if exact.isfinite().any() else 1e-5
    if not case.softcap:
        return rounding
    scores = plain_logits(p.q.double(), p.k.double(), case.mask.to_dense(), case.softmax_scale, case.softcap)
    return rounding + TANH_ERROR * scores.masked_fill(scores == -torch.inf, 0.0).abs().max().item()


def run(case: Case, backend: str, p: Problem) -> list[torch.Tensor | None]:
    """out, lse and the largest logit of every head, or None, on tensors of a CPU wherever it runs."""
    if backend == "reference":
        out, lse, max_logits = attention_forward(p.q, p.k, p.v, *case.bounds, p.sink, case.softmax_scale, case.softcap)
        return [out, lse, max_logits.amax(0)]
    mask, q, k, v, sink = on(backend, case.mask, p.q, p.k, p.v, p.sink)
    with running(case):
        out, lse, max_logits = forward(
            q,
            k,
            v,
            mask,
            softmax_scale=case.softmax_scale,
            softcap=case.softcap,
            sink_lse=None if sink is None else sink.logsumexp(2).transpose(1, 2),
            backend=backend,
            **case.options,
        )
    return [out.cpu(), lse.cpu(), None if max_logits is None else max_logits.amax(0).cpu()]
