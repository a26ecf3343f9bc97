"""calc_attn as autograd sees it: blocks of keys come, are attended and merge; their gradients return the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from ..merge import Merger
from ..reference import compute_dtype, sink_gradient
from .comm import max_over_ranks, sum_over_ranks
from .guard import Guard
from .movers.blocks import Mover
from .movers.heads import HeadExchange
from .partial import AttentionSettings, attend, attend_backward

__all__ = ["CALL", "Route", "run_attention"]

CALL = "calc_attn"


@dataclass(frozen=True, eq=False)
class Route:
    """How the tensors of one call move: which mover brings keys, and the exchange of heads around it, if any.

    group: all ranks. rows, keys: how many of this rank's rows are not padding; padding comes last.
    """

    mover: Mover
    exchange: HeadExchange | None
    group: dist.ProcessGroup
    guard: Guard
    rows: int
    keys: int


def run_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sink: torch.Tensor | None,
    route: Route,
    settings: AttentionSettings,
    return_max_logits: bool,
    compared: Mapping[str, object],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention of checked local tensors: out, lse and max_logits, which is empty unless asked for.

    sink: `(sinks, heads_q)` in the compute dtype. compared: what must be the same on every rank.
    """
    return _Attention.apply(q, k, v, sink, route, settings, return_max_logits, compared)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        sink: torch.Tensor | None,
        route: Route,
        settings: AttentionSettings,
        return_max_logits: bool,
        compared: Mapping[str, object],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with route.guard.exchange(CALL, compared):
            head_dim, exchange = q.shape[2], route.exchange
            kv = torch.cat([k, v], 2)
            kv[route.keys :] = 0
            if exchange is not None:
                q, kv = exchange.enter(q, kv)
            merger = Merger(q.shape[0], q.shape[1], kv.shape[2] - head_dim, compute_dtype(q.dtype), q.device)
            for block in route.mover.forward(kv):
                if block.mask is not None:
                    keys, values = block.kv[..., :head_dim], block.kv[..., head_dim:]
                    merger.add(*attend(q, keys, values, block.mask, settings, return_max_logits))
            if sink is not None:
                merger.add_sinks(_own(sink, exchange))
            here = merger.out.to(q.dtype), merger.lse
            out, lse = here if exchange is None else exchange.leave(*here)
            max_logits = lse.new_empty(0)
            if return_max_logits:
                max_logits = max_over_ranks(
                    _for_all_heads(merger.max_logits, -torch.inf, lse.shape[0], exchange), route.group
                )
            ctx.save_for_backward(q, kv, sink, *here)
            ctx.route, ctx.settings, ctx.head_dim, ctx.number = route, settings, head_dim, route.guard.number()
            ctx.mark_non_differentiable(max_logits)
            return out, lse, max_logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: torch.Tensor, dlse: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        compared = {"the number of the call": ctx.number, "requires_grad": ctx.needs_input_grad[:4]}
        with ctx.route.guard.exchange(f"the backward of {CALL}", compared):
            return *_backward(ctx, dout, dlse), None, None, None, None


def _backward(ctx: Any, dout: torch.Tensor, dlse: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """Gradients of q, k, v and sink; of out and lse they come as zeros where they are missing, so that every rank
    communicates the same whatever its loss reads."""
    q, kv, sink, out, lse = ctx.saved_tensors
    route, head_dim = ctx.route, ctx.head_dim
    needs_q, needs_k, needs_v, needs_sink = ctx.needs_input_grad[:4]
    dlse = pad(dlse[:, : route.rows], (0, dlse.shape[1] - route.rows))  # that of padding would reach the sinks
    if route.exchange is not None:
        dout, dlse = route.exchange.enter_gradients(dout, dlse)
    dq = dk = dv = dsink = None
    if needs_q or needs_k or needs_v:
        dq, dkv = _query_and_key_gradients(ctx, q, kv, out, lse, dout, dlse, needs_q, needs_k or needs_v)
        if needs_k or needs_v:
            dk, dv = dkv[..., :head_dim], dkv[..., head_dim:]
    if needs_sink:
        mine = _sink_gradient(_own(sink, route.exchange), out, lse, dout, dlse)
        dsink = sum_over_ranks(_for_all_heads(mine, 0.0, sink.shape[1], route.exchange), route.group)
    return dq, dk if needs_k else None, dv if needs_v else None, dsink


def _query_and_key_gradients(
    ctx: Any,
    q: torch.Tensor,
    kv: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    dout: torch.Tensor,
    dlse: torch.Tensor,
    needs_q: bool,
    needs_kv: bool,
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """dq of own rows (None if not needed) and the packed gradient of own keys (empty if not needed)."""
    route, settings, head_dim = ctx.route, ctx.settings, ctx.head_dim
    dtype = compute_dtype(q.dtype)
    dq = torch.zeros_like(q, dtype=dtype) if needs_q else None
    gradients = route.mover.collect(kv, dtype)
    for block in route.mover.backward(kv):
        grad = None
        if block.mask is not None:
            keys, values = block.kv[..., :head_dim], block.kv[..., head_dim:]
            dq_part, dk, dv = attend_backward(
                dout, dlse, q, keys, values, out, lse, block.mask, settings, needs_q, needs_kv
            )
            if dq is not None and dq_part is not None:
                dq += dq_part
            if dk is not None and dv is not None:
                grad = torch.cat([dk, dv], 2)
        if needs_kv:
            gradients.add(block.number, torch.zeros_like(block.kv, dtype=dtype) if grad is None else grad)
    dkv = gradients.finish() if needs_kv else kv.new_empty(0)
    if dq is not None:
        dq = dq.to(q.dtype)
    if route.exchange is None:
        return dq, dkv.to(kv.dtype)
    if dq is not None:
        dq = route.exchange.leave_query_gradient(dq)
    if needs_kv:
        # Copies of a head add up before they are rounded; where there are none, rounding first halves the bytes.
        dkv = route.exchange.leave_key_gradient(dkv if route.exchange.is_replicated else dkv.to(kv.dtype))
    return dq, dkv.to(kv.dtype)


def _sink_gradient(
    sink: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, dout: torch.Tensor, dlse: torch.Tensor
) -> torch.Tensor:
    """Of sinks `(sinks, heads)`, from what all keys of all ranks gave."""
    products = (dout.to(lse.dtype) * out.to(lse.dtype)).masked_fill(out == 0, 0.0)  # rows without keys have any dout
    delta = products.sum(2).T - dlse.masked_fill(lse == -torch.inf, 0.0)
    return sink_gradient(sink[None, None], lse[None], delta[None])[0, 0]


def _own(sink: torch.Tensor, exchange: HeadExchange | None) -> torch.Tensor:
    return sink if exchange is None else sink[:, exchange.own_heads]


def _for_all_heads(mine: torch.Tensor, fill: float, heads: int, exchange: HeadExchange | None) -> torch.Tensor:
    """Values `(..., own heads)` among `fill` for the heads of other ranks."""
    if exchange is None:
        return mine
    whole = mine.new_full((*mine.shape[:-1], heads), fill)
    whole[..., exchange.own_heads] = mine
    return whole
