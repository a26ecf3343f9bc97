"""Attention in plain PyTorch, every tensor in the inputs' dtype: a kernel may be off by twice its error."""

from __future__ import annotations

import math

import torch

from cute_attn.mask import IntervalMask

__all__ = ["plain_attention"]


def plain_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: IntervalMask,
    sink: torch.Tensor | None,
    softmax_scale: float,
    softcap: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """out and lse, differentiable, in the dtype of q `(1, seqlen_q, heads_q, head_dim)`; one head after another.

    sink: `(1, 1, n, heads_q)`.
    """
    hidden = ~mask.to_dense()[0]
    ratio = q.shape[2] // k.shape[2]
    outs, lses = [], []
    for head in range(q.shape[2]):
        scores = q[0, :, head] @ k[0, :, head // ratio].T * softmax_scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(hidden, -math.inf)
        if sink is not None:
            scores = torch.cat([scores, sink[0, 0, :, head].to(q.dtype).expand(len(scores), -1)], 1)
        empty = (scores == -math.inf).all(1, keepdim=True)
        filled = scores.masked_fill(empty, 0.0)
        weights = filled.softmax(1).masked_fill(empty, 0.0)[:, : k.shape[1]]
        outs.append(weights @ v[0, :, head // ratio])
        lses.append(filled.logsumexp(1).masked_fill(empty[:, 0], -math.inf))
    return torch.stack(outs, 1)[None], torch.stack(lses)[None]
