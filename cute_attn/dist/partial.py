"""Attention of one rank over some of the keys: partial results that stay in the compute dtype until they are merged."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .. import reference
from ..mask import IntervalMask
from ..ops.kernels import check_served

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


def check_backend(name: str, q: torch.Tensor, v: torch.Tensor) -> str:
    """The backend. Raises NotImplementedError, before any communication, if it has no kernels for such tensors."""
    if name != "reference":
        check_served(q[None], v[None], name)
    return name


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
    if settings.backend != "reference":
        return _attend_on_kernels(q, k, v, mask, settings, return_max_logits)
    q, k, v = (x[None].to(reference.compute_dtype(x.dtype)) for x in (q, k, v))
    out, lse, max_logits = reference.attention_forward(
        q, k, v, mask.lo, mask.hi, None, settings.softmax_scale, settings.softcap
    )
    return out[0], lse[0], max_logits if return_max_logits else None


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
    if settings.backend != "reference":
        return _attend_backward_on_kernels(dout, dlse, q, k, v, out, lse, mask, settings, needs_q, needs_kv)
    q, k, v, out = (x[None].to(reference.compute_dtype(x.dtype)) for x in (q, k, v, out))
    grads = reference.attention_backward(
        dout[None],
        dlse[None],
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


def _attend_on_kernels(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: IntervalMask,
    settings: AttentionSettings,
    return_max_logits: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    from ..launch.forward import forward

    out, lse, max_logits = forward(
        q[None],
        k[None],
        v[None],
        mask,
        softmax_scale=settings.softmax_scale,
        softcap=settings.softcap,
        return_max_logits=return_max_logits,
        sm_margin=settings.sm_margin,
        runtime="sim" if settings.backend == "sim" else "sm90",
        fp32_out=True,
    )
    return out[0], lse[0], None if max_logits is None else max_logits[0]


def _attend_backward_on_kernels(
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
    from ..launch.backward import backward

    dq, dk, dv, _ = backward(
        dout[None],
        q[None],
        k[None],
        v[None],
        out[None],
        lse[None],
        mask,
        softmax_scale=settings.softmax_scale,
        softcap=settings.softcap,
        dlse=dlse[None],
        needs=(needs_q, needs_kv, needs_kv),
        deterministic=settings.deterministic,
        sm_margin=settings.sm_margin,
        runtime="sim" if settings.backend == "sim" else "sm90",
        fp32_gradients=True,
    )
    dq, dk, dv = (None if grad is None else grad[0] for grad in (dq, dk, dv))
    return dq, dk, dv
