"""How large logits may be: errors of out, lse and gradients against fp64, in simulation and in the reference."""

from __future__ import annotations

import torch
from common import save

import cute_attn
from cute_attn.mask import causal
from cute_attn.reference import attention_backward, attention_forward

TOKENS, HEADS, HEAD_DIM = 256, 2, 128
POWERS = (6, 10, 14, 16, 18, 20, 22, 26, 30)  # of two, even: logits up to 1e9
BACKENDS = ("sim", "reference")
NAMES = ("out", "lse", "dq", "dk", "dv")


def problem(power: int, alike: bool) -> tuple[torch.Tensor, ...]:
    """q, k, v and dout for a scale of 1. The logits of a row are 2^power plus what logits usually are; or, not alike,
    random ones of that magnitude, of which the largest takes all."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, dout = (torch.randn(1, TOKENS, HEADS, HEAD_DIM, generator=generator) for _ in range(4))
    if alike:
        q, k = (x * HEAD_DIM**-0.25 for x in (q, k))
        q[..., 0] = k[..., 0] = 2.0 ** (power // 2)
    else:
        q, k = (x * 2.0 ** (power // 2) * HEAD_DIM**-0.25 for x in (q, k))
    return tuple(x.bfloat16() for x in (q, k, v, dout))


def exact(inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    mask, (q, k, v, dout) = causal(TOKENS), (x.double() for x in inputs)
    out, lse, _ = attention_forward(q, k, v, mask.lo, mask.hi, None, 1.0, 0.0)
    dq, dk, dv, _ = attention_backward(dout, None, q, k, v, out, lse, mask.lo, mask.hi, None, 1.0, 0.0)
    return out, lse, dq[..., 1:], dk[..., 1:], dv


def computed(inputs: tuple[torch.Tensor, ...], backend: str) -> tuple[torch.Tensor, ...]:
    q, k, v, dout = (x[0] for x in inputs)
    q, k, v = (x.clone().requires_grad_() for x in (q, k, v))
    with cute_attn.backend(backend):
        out, lse = cute_attn.flex_flash_attn_func(q, k, v, causal(TOKENS), softmax_scale=1.0)
        out.backward(dout)
    return tuple(x.detach()[None] for x in (out, lse, q.grad[..., 1:], k.grad[..., 1:], v.grad))


def error(got: torch.Tensor, wanted: torch.Tensor) -> str:
    """The norm of the difference by that of what is right; or what share of the elements is not finite."""
    lost = (~got.isfinite()).double().mean().item()
    if lost:
        return f"{100 * lost:.0f} % not finite"
    return f"{((got.double() - wanted).norm() / wanted.norm()).item():.0e}"


def table(alike: bool, names: tuple[str, ...]) -> list[dict[str, object]]:
    rows = []
    for backend in BACKENDS:
        for power in POWERS:
            inputs = problem(power, alike)
            errors = dict(zip(NAMES, map(error, computed(inputs, backend), exact(inputs)), strict=True))
            row: dict[str, object] = {"backend": backend, "logits": f"2^{power} = {2.0**power:.1e}"}
            rows.append(row | {name: errors[name] for name in names})
    return rows


def main() -> None:
    notes = [
        f"bf16, causal, {TOKENS} tokens, {HEADS} heads, head_dim {HEAD_DIM}, a scale of 1. An error is the norm of the",
        "difference from fp64, on the same inputs, by the norm of what is right. Here the logits of a row are large,",
        "and alike: 2^p through the first dim of q and k, left out of dq and dk, plus what logits usually are.",
    ]
    further = {"Random logits of that magnitude, of which one takes all": table(False, ("out", "lse", "dv"))}
    save("large_logits", "Errors at large logits", table(True, NAMES), notes, further)


if __name__ == "__main__":
    main()
