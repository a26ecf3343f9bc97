"""Attention of one rank over some of the keys: partial results that stay in the compute dtype until they are merged."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..backends.interface import Backend
from ..mask import IntervalMask

__all__ = ["AttentionSettings", "attend", "attend_backward"]


@dataclass(frozen=True)
class AttentionSettings:
    """What every attention of one `calc_attn` shares, checked; the backward uses the backend of its forward too."""

    softmax_scale: float
    softcap: float
    deterministic: bool
    sm_margin: int
    backend: Backend


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: IntervalMask,
    settings: AttentionSettings,
    return_max_logits: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Attention without sinks over the keys given: out `(rows, heads_q, head_dim_v)`, lse `(heads_q, rows)` and
    max_logits `(heads_q,)`, None if not asked for, all fp32 (fp64 for fp64).

    q: `(rows, heads_q, head_dim)`; k, v: `(keys, heads_k, head_dim or head_dim_v)`; mask: rows over keys, which keeps
    its tile schedules from call to call.
    """
    out, lse, max_logits = settings.backend.forward(
        q[None],
        k[None],
        v[None],
        mask,
        None,
        softmax_scale=settings.softmax_scale,
        softcap=settings.softcap,
        sm_margin=settings.sm_margin,
        return_max_logits=return_max_logits,
        unrounded=True,
    )
    return out[0], lse[0], None if max_logits is None else max_logits[0]


def attend_backward(
    dout: torch.Tensor,
    dlse: torch.Tensor,
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
    gradients = settings.backend.backward(
        dout[None],
        dlse[None],
        q[None],
        k[None],
        v[None],
        out[None],
        lse[None],
        mask,
        None,
        softmax_scale=settings.softmax_scale,
        softcap=settings.softcap,
        deterministic=settings.deterministic,
        sm_margin=settings.sm_margin,
        needs=(needs_q, needs_kv, needs_kv, False),
        unrounded=True,
    )
    dq, dk, dv = (None if gradient is None else gradient[0] for gradient in gradients[:3])
    return dq, dk, dv
