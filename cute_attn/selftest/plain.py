"""Attention in plain PyTorch, every tensor in the inputs' dtype: a kernel may be off by twice its error."""

from __future__ import annotations

import math

import torch

from cute_attn.mods.evaluate import evaluate
from cute_attn.mods.trace import Traced
from cute_attn.reference import compute_dtype

__all__ = ["plain_attention"]


def plain_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attended: torch.Tensor,
    sink: torch.Tensor | None,
    softmax_scale: float,
    softcap: float,
    score_mod: Traced | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """out, lse and the largest score of each row, differentiable, in the dtype of q `(1, seqlen_q, heads_q, head_dim)`;
    one head after another.

    attended: bool `(1 or heads_q, seqlen_q, seqlen_k)`. sink: `(1, 1, n, heads_q)`. score_mod: reads captured tensors
    as kernels do.
    """
    hidden = ~attended
    ratio = q.shape[2] // k.shape[2]
    outs, lses, largest = [], [], []
    for head in range(q.shape[2]):
        scores = q[0, :, head] @ k[0, :, head // ratio].T * softmax_scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        if score_mod is not None:
            scores = _changed(scores, score_mod, head)
        scores = scores.masked_fill(hidden[head % len(hidden)], -math.inf)
        largest.append(scores.amax(1))
        if sink is not None:
            scores = torch.cat([scores, sink[0, 0, :, head].to(q.dtype).expand(len(scores), -1)], 1)
        empty = (scores == -math.inf).all(1, keepdim=True)
        filled = scores.masked_fill(empty, 0.0)
        weights = filled.softmax(1).masked_fill(empty, 0.0)[:, : k.shape[1]]
        outs.append(weights @ v[0, :, head // ratio])
        lses.append(filled.logsumexp(1).masked_fill(empty[:, 0], -math.inf))
    return torch.stack(outs, 1)[None], torch.stack(lses)[None], torch.stack(largest)[None]


def _changed(scores: torch.Tensor, score_mod: Traced, head: int) -> torch.Tensor:
    dtype, device, graph = compute_dtype(scores.dtype), scores.device, score_mod.graph
    rows, keys = (torch.arange(n, dtype=torch.int32, device=device) for n in scores.shape)
    zero = torch.zeros((), dtype=torch.int32, device=device)
    inputs = {"score": scores.to(dtype), "b": zero, "h": zero + head, "q": rows[:, None], "kv": keys}
    (found,) = evaluate(graph, inputs, score_mod.tensors, score_mod.scalars, dtype, clamps=True)
    return found.expand(scores.shape).to(scores.dtype)
