"""Attention of one rank over some of the keys: partial results that stay in the compute dtype until they are merged."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .. import reference
from ..mask import IntervalMask

__all__ = ["AttentionSettings", "attend", "attend_backward", "check_backend"]


@dataclass(frozen=True)
class AttentionSettings:
    """What every attention of one `calc_attn` shares, checked.

    backend: the name of the backend that the forward found; the backward uses it too.
    """

    softmax_scale: float
    softcap: float
    deterministic: bool
    sm_margin: int
    backend: str


def check_backend(name: str) -> str:
    """The backend, if it can give partial results."""
    if name != "reference":
        raise NotImplementedError(
            f"calc_attn needs partial results in fp32, which backend {name!r} does not give yet; "
            "with cute_attn.backend('reference') it runs in plain PyTorch"
        )
    return name


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: IntervalMask, settings: AttentionSettings
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention without sinks over the keys given: out `(rows, heads_q, head_dim_v)`, lse `(heads_q, rows)` and
    max_logits `(heads_q,)`, all fp32 (fp64 for fp64).

    q: `(rows, heads_q, head_dim)`; k, v: `(keys, heads_k, head_dim or head_dim_v)`; mask: rows over keys.
    """
    q, k, v = (x[None].to(reference.compute_dtype(x.dtype)) for x in (q, k, v))
    out, lse, max_logits = reference.attention_forward(
        q, k, v, mask.lo, mask.hi, None, settings.softmax_scale, settings.softcap
    )
    return out[0], lse[0], max_logits


def attend_backward(
    dout: torch.Tensor | None,
    dlse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    mask: IntervalMask,
    settings: AttentionSettings,
    needs_q: bool,
    needs_kv: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """What the keys given contribute to dq, and their dk and dv, all fp32 (fp64 for fp64); None where not needed.

    out, lse, and their gradients dout, dlse: of the rows over all keys of all ranks, sinks included. With the LSE over
    all keys, `exp(score - lse)` is the final probability, and `delta = rowsum(dout * out) - dlse` the final one, so the
    contributions of parts of the keys add up.
    """
    q, k, v, out = (x[None].to(reference.compute_dtype(x.dtype)) for x in (q, k, v, out))
    grads = reference.attention_backward(
        None if dout is None else dout[None],
        None if dlse is None else dlse[None],
        q,
        k,
        v,
        out,
        lse[None],
        mask.lo,
        mask.hi,
        None,
        settings.softmax_scale,
        settings.softcap,
        (needs_q, needs_kv, needs_kv, False),
    )
    dq, dk, dv = (None if grad is None else grad[0] for grad in grads[:3])
    return dq, dk, dv
