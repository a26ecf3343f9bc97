"""calc_attn as autograd sees it: blocks of keys come, are attended and merge; their gradients return the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from ..mask import IntervalMask
from ..merge import Merger
from ..reference import compute_dtype, sink_gradient
from .comm import Arrival, max_over_ranks, sum_over_ranks
from .guard import Guard
from .movers.blocks import Mover
from .movers.heads import HeadExchange
from .movers.query_cast import QueryCast
from .partial import AttentionSettings, attend, attend_backward

__all__ = ["CALL", "Kept", "Route", "backward", "forward", "kept_again", "run_attention"]

CALL = "calc_attn"
Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Route:
    """How the tensors of one call move: which mover brings keys, which queries go to keys beside it, and the exchange
    of heads around it, if any.

    group: all ranks. rows, keys: how many of this rank's rows are not padding; padding comes last.
    """

    mover: Mover
    exchange: HeadExchange | None
    group: dist.ProcessGroup
    guard: Guard
    rows: int
    keys: int
    queries: QueryCast | None = None


class Kept(NamedTuple):
    """What a backward needs of its forward, in the layout in which blocks are attended: kv is packed, out and lse are
    those of all keys."""

    q: Tensor
    kv: Tensor
    sink: Tensor | None
    out: Tensor
    lse: Tensor


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
            out, lse, max_logits, kept = forward(q, k, v, sink, route, settings, return_max_logits)
            ctx.save_for_backward(*kept)
            ctx.route, ctx.settings, ctx.number = route, settings, route.guard.number()
            ctx.mark_non_differentiable(max_logits)
            return out, lse, max_logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: torch.Tensor, dlse: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        needs = ctx.needs_input_grad[:4]
        with ctx.route.guard.backward_exchange(CALL, ctx.number, needs):
            kept = Kept(*ctx.saved_tensors)  # once: a checkpoint gives them out no second time
            dq, dkv, dsink = backward(kept, dout, dlse, ctx.route, ctx.settings, needs)
            head_dim = kept.q.shape[2]
            dk = dkv[..., :head_dim] if needs[1] and dkv is not None else None
            dv = dkv[..., head_dim:] if needs[2] and dkv is not None else None
            return dq, dk, dv, dsink, None, None, None, None


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None,
    route: Route,
    settings: AttentionSettings,
    return_max_logits: bool,
) -> tuple[Tensor, Tensor, Tensor, Kept]:
    """As run_attention, without gradients; and what they need."""
    head_dim, exchange = q.shape[2], route.exchange
    q, kv = _entered(q, k, v, route)
    merger = Merger(q.shape[0], q.shape[1], kv.shape[2] - head_dim, compute_dtype(q.dtype), q.device)
    visiting = route.queries.leave(q) if route.queries is not None else None
    for block in route.mover.forward(kv):
        if block.mask is not None:
            keys, values = block.kv[..., :head_dim], block.kv[..., head_dim:]
            merger.add(*attend(q, keys, values, block.mask, settings, return_max_logits))
        if visiting is not None and block.number == 0:
            visiting = _attend_visitors(visiting, kv, route, settings, merger, head_dim, return_max_logits)
    if visiting is not None and route.queries is not None:
        route.queries.merge(visiting, merger)
    if sink is not None:
        merger.add_sinks(_own(sink, exchange))
    here = merger.out.to(q.dtype), merger.lse
    out, lse = here if exchange is None else exchange.leave(*here)
    max_logits = lse.new_empty(0)
    if return_max_logits:
        max_logits = max_over_ranks(_for_all_heads(merger.max_logits, -torch.inf, lse.shape[0], exchange), route.group)
    return out, lse, max_logits, Kept(q, kv, sink, *here)


def _attend_visitors(
    visiting: Arrival,
    kv: Tensor,
    route: Route,
    settings: AttentionSettings,
    merger: Merger,
    head_dim: int,
    return_max_logits: bool,
) -> Arrival:
    """Rows of other ranks over own keys; their results on the way home, their largest logits with those of own rows."""
    assert route.queries is not None
    keys, values = kv[..., :head_dim], kv[..., head_dim:]

    def attend_rows(q: Tensor, mask: IntervalMask) -> tuple[Tensor, Tensor]:
        out, lse, max_logits = attend(q, keys, values, mask, settings, return_max_logits)
        if max_logits is not None:
            merger.max_logits = torch.maximum(merger.max_logits, max_logits)
        return out, lse

    return route.queries.attend(visiting, attend_rows, merger.out.dtype, values.shape[2])


def kept_again(q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, out: Tensor, lse: Tensor, route: Route) -> Kept:
    """What a forward kept, of its inputs and results: with an exchange of heads they are exchanged again."""
    q, kv = _entered(q, k, v, route)
    here = (out, lse) if route.exchange is None else route.exchange.enter_gradients(out, lse)
    return Kept(q, kv, sink, *here)


def _entered(q: Tensor, k: Tensor, v: Tensor, route: Route) -> tuple[Tensor, Tensor]:
    """Queries and packed keys in the layout in which blocks are attended, padding zero."""
    kv = torch.cat([k, v], 2)
    kv[route.keys :] = 0
    return (q, kv) if route.exchange is None else route.exchange.enter(q, kv)


def backward(
    kept: Kept, dout: Tensor, dlse: Tensor, route: Route, settings: AttentionSettings, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of q, of k and v packed, and of sink, None where none of them `needs` any, of (q, k, v, sink).

    dout, dlse: zeros where they are missing, so that every rank communicates the same whatever its loss reads.
    """
    needs_q, needs_k, needs_v, needs_sink = needs
    dlse = pad(dlse[:, : route.rows], (0, dlse.shape[1] - route.rows))  # that of padding would reach the sinks
    if route.exchange is not None:
        dout, dlse = route.exchange.enter_gradients(dout, dlse)
    dq = dkv = dsink = None
    if needs_q or needs_k or needs_v:
        dq, dkv = _query_and_key_gradients(kept, dout, dlse, route, settings, needs_q, needs_k or needs_v)
    if needs_sink and kept.sink is not None:
        mine = _sink_gradient(_own(kept.sink, route.exchange), kept.out, kept.lse, dout, dlse)
        dsink = sum_over_ranks(_for_all_heads(mine, 0.0, kept.sink.shape[1], route.exchange), route.group)
    return dq, dkv, dsink


def _query_and_key_gradients(
    kept: Kept,
    dout: torch.Tensor,
    dlse: torch.Tensor,
    route: Route,
    settings: AttentionSettings,
    needs_q: bool,
    needs_kv: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """dq of own rows and the packed gradient of own keys, None where not needed."""
    q, kv, _, out, lse = kept
    head_dim, dtype = q.shape[2], compute_dtype(q.dtype)
    dq = torch.zeros_like(q, dtype=dtype) if needs_q else None
    gradients = route.mover.collect(kv, dtype)
    queries, visiting, returning, of_visitors = route.queries, None, None, None
    if queries is not None:
        sums = (dout.to(dtype) * out.to(dtype)).sum(2).T  # of rows that attend nothing too: those visit nobody
        visiting = queries.leave_backward(q, dout, lse, dlse.to(dtype) - sums)

    def attend_rows(
        q: Tensor, dout: Tensor, lse: Tensor, dlse: Tensor, mask: IntervalMask
    ) -> tuple[Tensor | None, Tensor | None]:
        keys, values = kv[..., :head_dim], kv[..., head_dim:]
        nothing = torch.zeros_like(dout)  # the rows' sums of dout * out have come with dlse
        dq, dk, dv = attend_backward(dout, dlse, q, keys, values, nothing, lse, mask, settings, needs_q, needs_kv)
        return dq, None if dk is None or dv is None else torch.cat([dk, dv], 2)

    for block in route.mover.backward(kv):
        if queries is not None and visiting is not None and block.number == 0:
            returning, of_visitors = queries.attend_backward(visiting, attend_rows, head_dim, needs_q)
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
    dkv = gradients.finish() if needs_kv else None
    if dkv is not None and of_visitors is not None:
        dkv = dkv + of_visitors
    if queries is not None and returning is not None and dq is not None:
        queries.add(returning, dq)
    if dq is not None:
        dq = dq.to(q.dtype)
    exchange = route.exchange
    if exchange is not None and dq is not None:
        dq = exchange.leave_query_gradient(dq)
    if exchange is not None and dkv is not None:
        # Copies of a head add up before they are rounded; where there are none, rounding first halves the bytes.
        dkv = exchange.leave_key_gradient(dkv if exchange.is_replicated else dkv.to(kv.dtype))
    return dq, None if dkv is None else dkv.to(kv.dtype)


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
