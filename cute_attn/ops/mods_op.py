"""Attention under a score_mod and a thinned mask as custom ops: what torch.compile, autograd and the dispatcher see.

A function travels as the text of its graph with the tensors and numbers that it captured, so that a compiled graph
knows of no Python function, and gradients flow to the tensors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..backends.find import find
from ..backends.plan import Plan
from ..custom_ops import register
from ..mask import IntervalMask
from ..mask.source import MaskSource
from ..mods.blockwise import Thinned
from ..mods.trace import Traced
from ..mods.watched import check_ticket
from ..reference import compute_dtype
from ..renamed import OPS
from .library import PLAN_SCHEMA
from .plans import plan_of

__all__ = ["attention_with_mods"]

Tensor = torch.Tensor


def attention_with_mods(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: IntervalMask | MaskSource,
    thinned: Thinned | None,
    score: Traced | None,
    softmax_scale: float,
    deterministic: bool,
    return_max_scores: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of checked arguments, as `attention_op.attention` takes them.

    Returns out `(b, sq, heads_q, dv)`, lse and max_scores `(b, heads_q, sq)`, the last empty if not asked for.
    Gradients flow through out and lse, to q, k, v and to the tensors that the score_mod captured.
    """
    has_graph = thinned is not None or score is not None
    captured = () if score is None else tuple(score.tensors)
    plan = plan_of(mask, q, k, v, backend, deterministic, return_max_scores, captured, has_graph)
    predicate, full, ticket = (None, None, None) if thinned is None else thinned
    bounds = (None, None, 1) if full is None else (full.lo, full.hi, full.heads)
    functions = *_written(predicate), ticket, *bounds, *_written(score)
    return OPS.mods(q, k, v, *plan, *functions, softmax_scale, deterministic, backend, return_max_scores)


class _Functions(NamedTuple):
    """A predicate and a score_mod as arguments of an op; an empty text for none."""

    predicate: str
    predicate_tensors: list[Tensor]
    predicate_ints: list[int]
    predicate_floats: list[float]
    ticket: Tensor | None
    full_lo: Tensor | None
    full_hi: Tensor | None
    full_heads: int
    score: str
    score_tensors: list[Tensor]
    score_ints: list[int]
    score_floats: list[float]

    def thinned(self, seqlen_k: int) -> Thinned | None:
        predicate = _read(self.predicate, self.predicate_tensors, self.predicate_ints, self.predicate_floats)
        if predicate is None:
            return None
        if self.full_lo is None or self.full_hi is None:
            return Thinned(predicate)
        return Thinned(predicate, IntervalMask._made(self.full_lo, self.full_hi, seqlen_k, self.full_heads))

    def check_unchanged(self) -> None:
        """ValueError where what the predicate captured is no longer what it was."""
        if self.ticket is not None:
            check_ticket(self.ticket, self.predicate_tensors)

    def score_mod(self) -> Traced | None:
        return _read(self.score, self.score_tensors, self.score_ints, self.score_floats)


def _written(function: Traced | None) -> tuple[str, list[Tensor], list[int], list[float]]:
    if function is None:
        return "", [], [], []
    text, tensors, scalars = function
    ints = [x for x in scalars if isinstance(x, (int, torch.SymInt))]
    floats = [x for x in scalars if not isinstance(x, (int, torch.SymInt))]
    return text, tensors, ints, floats


def _read(text: str, tensors: list[Tensor], ints: list[int], floats: list[float]) -> Traced | None:
    if not text:
        return None
    function = Traced(text, tensors, [])
    numbers = {True: iter(floats), False: iter(ints)}
    function.scalars.extend(next(numbers[dtype == "f32"]) for dtype in function.graph.scalars)
    return function


_FUNCTIONS_SCHEMA = (
    "str predicate, Tensor[] predicate_tensors, SymInt[] predicate_ints, float[] predicate_floats, "
    "Tensor? ticket, Tensor? full_lo, Tensor? full_hi, SymInt full_heads, "
    "str score, Tensor[] score_tensors, SymInt[] score_ints, float[] score_floats"
)
_SCALARS_SCHEMA = "float softmax_scale, bool deterministic, str backend"
_SCHEMA = (
    f"(Tensor q, Tensor k, Tensor v, {PLAN_SCHEMA}, {_FUNCTIONS_SCHEMA}, {_SCALARS_SCHEMA}, bool return_max_scores) "
    "-> (Tensor, Tensor, Tensor)"
)
_BACKWARD_SCHEMA = (
    "(Tensor? dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
    f"{PLAN_SCHEMA}, {_FUNCTIONS_SCHEMA}, {_SCALARS_SCHEMA}, bool[] needs, bool[] wanted) "
    "-> (Tensor, Tensor, Tensor, Tensor[])"
)
_FIELDS = len(Plan._fields)
_END = _FIELDS + len(_Functions._fields)


def _forward(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    plan, functions = Plan(*rest[:_FIELDS]), _Functions(*rest[_FIELDS:_END])
    softmax_scale, _, backend, return_max_scores = rest[_END:]
    functions.check_unchanged()
    out, lse, max_scores = find(backend).mods_forward(
        q,
        k,
        v,
        plan,
        functions.thinned(k.shape[1]),
        functions.score_mod(),
        softmax_scale=softmax_scale,
        return_max_scores=return_max_scores,
    )
    return out, lse, lse.new_empty(0) if max_scores is None else max_scores


def _fake_forward(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(q.dtype)
    batch, rows, heads, _ = q.shape
    rowwise = (batch, heads, rows)
    return (
        q.new_empty(batch, rows, heads, v.shape[3]),
        q.new_empty(rowwise, dtype=dtype),
        q.new_empty(rowwise if rest[-1] else 0, dtype=dtype),
    )


def _backward(
    dout: Tensor | None, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Gradients of q, k, v and of the tensors that the score_mod captured; an empty tensor stands for none."""
    plan, functions = Plan(*rest[:_FIELDS]), _Functions(*rest[_FIELDS:_END])
    softmax_scale, deterministic, backend, needs, wanted = rest[_END:]
    found = find(backend).mods_backward(
        dout,
        dlse,
        q,
        k,
        v,
        out,
        lse,
        plan,
        functions.thinned(k.shape[1]),
        functions.score_mod(),
        softmax_scale=softmax_scale,
        deterministic=deterministic,
        needs=needs,
        wanted=wanted,
    )
    grads = (found.q, found.k, found.v, *found.captured)
    dq, dk, dv, *captured = (q.new_empty(0) if grad is None else grad for grad in grads)
    return dq, dk, dv, captured


def _fake_backward(
    dout: Tensor | None, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    needs, wanted = rest[-2:]
    tensors = _Functions(*rest[_FIELDS:_END]).score_tensors
    dq, dk, dv, *captured = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device) if need else q.new_empty(0)
        for x, need in zip((q, k, v, *tensors), (*needs, *wanted), strict=True)
    )
    return dq, dk, dv, captured


class _AttentionWithMods(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, rest: tuple[Any, ...], *captured: Tensor) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            out, lse, max_scores = OPS.mods(q, k, v, *rest)
        ctx.mark_non_differentiable(max_scores)
        ctx.set_materialize_grads(False)
        functions = _Functions(*rest[_FIELDS:_END])
        asked = functions.predicate_tensors
        # Saved, all that were captured are known to be what they were; inference tensors cannot be.
        ctx.save_for_backward(q, k, v, out, lse, *(None if x.is_inference() else x for x in asked), *captured)
        ctx.asked = [x if x.is_inference() else None for x in asked]
        ctx.plan = Plan(*rest[:_FIELDS])._replace(seal=None)  # as in attention_op
        ctx.functions, ctx.scalars = (
            functions._replace(predicate_tensors=[], ticket=None, score_tensors=[]),
            rest[_END:-1],
        )
        return out, lse, max_scores

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        dout, dlse, _ = grads
        needs, wanted = list(ctx.needs_input_grad[:3]), list(ctx.needs_input_grad[4:])
        if dout is None and dlse is None:
            return (None,) * (4 + len(wanted))
        q, k, v, out, lse, *tensors = ctx.saved_tensors
        asked, captured = tensors[: len(ctx.asked)], tensors[len(ctx.asked) :]
        asked = [saved if kept is None else kept for saved, kept in zip(asked, ctx.asked, strict=True)]
        functions = ctx.functions._replace(predicate_tensors=asked, score_tensors=captured)
        *found, by_captured = OPS.mods_backward(
            dout, dlse, q, k, v, out, lse, *ctx.plan, *functions, *ctx.scalars, needs, wanted
        )
        dq, dk, dv, *by_captured = (
            grad if need else None for grad, need in zip((*found, *by_captured), (*needs, *wanted), strict=True)
        )
        return dq, dk, dv, None, *by_captured


def _differentiable(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Any:
    captured = _Functions(*rest[_FIELDS:_END]).score_tensors
    return _AttentionWithMods.apply(q, k, v, rest, *captured)


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            *grads, captured = OPS.mods_backward(*inputs)
        return *grads, *captured

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        raise NotImplementedError(
            "flex_attention has no second derivative: the gradients that cute_attn gives cannot be differentiated"
        )


def _backward_once(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    dq, dk, dv, *captured = _Backward.apply(*inputs)
    return dq, dk, dv, captured


register("mods", _SCHEMA, _forward, _fake_forward, _differentiable)
register("mods_backward", _BACKWARD_SCHEMA, _backward, _fake_backward, _backward_once)
