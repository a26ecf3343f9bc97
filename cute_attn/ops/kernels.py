"""Checked arguments of the attention op on the kernels, on a GPU or in simulation."""

from __future__ import annotations

import functools

import torch

from ..reference import Gradients, sink_gradient
from .plans import Plan, backward_plan, forward_plan, heads_of

__all__ = ["attention_backward", "attention_forward", "check_served"]

_DTYPES = (torch.bfloat16, torch.float16)


def attention_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: Plan,
    sink: torch.Tensor | None,
    softmax_scale: float,
    softcap: float,
    sm_margin: int,
    backend: str,
    return_max_logits: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `reference.attention_forward` computes, on backend "sm90" or "sim"; max_logits is empty if not asked for.

    Raises NotImplementedError, naming what does serve them, for tensors that the kernels do not take.
    """
    from ..launch.forward import forward

    check_served(q, v, backend)
    out, lse, max_logits = forward(
        q,
        k,
        v,
        forward_plan(plan),
        softmax_scale=softmax_scale,
        softcap=softcap,
        sink_lse=None if sink is None else sink.logsumexp(2).transpose(1, 2),
        return_max_logits=return_max_logits,
        sm_margin=sm_margin,
        runtime="sim" if backend == "sim" else "sm90",
    )
    if max_logits is None:
        return out, lse, lse.new_empty(0)
    return out, lse, max_logits.amax(0) if len(max_logits) else lse.new_full((q.shape[2],), -torch.inf)


def attention_backward(
    dout: torch.Tensor | None,
    dlse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    plan: Plan,
    sink: torch.Tensor | None,
    softmax_scale: float,
    softcap: float,
    deterministic: bool,
    sm_margin: int,
    backend: str,
    needs: list[bool],
) -> Gradients:
    """What `reference.attention_backward` computes, on backend "sm90" or "sim", for tensors whose forward ran there."""
    from ..launch.backward import backward, row_terms, without_keys

    if dout is None:
        dout = torch.zeros_like(out)
    if any(needs[:3]):
        dq, dk, dv, delta = backward(
            dout,
            q,
            k,
            v,
            out,
            lse,
            backward_plan(plan),
            softmax_scale=softmax_scale,
            softcap=softcap,
            dlse=dlse,
            needs=(needs[0], needs[1], needs[2]),
            deterministic=deterministic,
            sm_margin=sm_margin,
            runtime="sim" if backend == "sim" else "sm90",
        )
    else:
        dq = dk = dv = None
        delta = row_terms(dout, out, lse, without_keys(plan.lo, plan.hi, heads_of(plan)), dlse)
    dsink = sink_gradient(sink, lse, delta) if needs[3] and sink is not None else None
    return Gradients(dq, dk, dv, dsink)


def check_served(q: torch.Tensor, v: torch.Tensor, backend: str) -> None:
    """Raises NotImplementedError if the kernels take no such tensors, or run on no such device."""
    other = "with cute_attn.backend('reference') they run in plain PyTorch"
    if q.dtype not in _DTYPES:
        raise NotImplementedError(f"backend {backend!r} has kernels for bfloat16 and float16, got {q.dtype}; {other}")
    for name, dim in (("head_dim", q.shape[3]), ("head_dim of v", v.shape[3])):
        if dim % 8 or not 8 <= dim <= 256:
            raise NotImplementedError(
                f"backend {backend!r} has kernels for a {name} that is a multiple of 8 up to 256, got {dim}; {other}"
            )
    if backend == "sm90" and not _is_hopper(q.device):
        name = torch.cuda.get_device_name(q.device)
        raise NotImplementedError(f"backend 'sm90' runs on Hopper GPUs, these tensors are on a {name}; {other}")


@functools.cache
def _is_hopper(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) == (9, 0)
