"""From checked tensors and a mask to one launch of the forward kernel."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from cute_attn.fwd.config import default_tile, graph_tile
from cute_attn.mask import IntervalMask
from cute_attn.mods.trace import Traced
from cute_attn.spec.forward import ForwardSpec, Softmax
from cute_attn.spec.mask import MaskForm
from cute_attn.spec.score import ScoreForm
from cute_attn.spec.tiles import TileConfig

from .captured import captured_by, text_of
from .dims import kernel_dims
from .run import KernelBackend, Order, run
from .shapes import spec_of
from .tensors import DTYPE_NAMES, in_kernel_form, multiprocessors, rows_contiguous
from .tuned import tuned_tile

__all__ = ["ForwardPlan", "forward", "plan_forward"]


class ForwardPlan(NamedTuple):
    """What a forward reads of its mask, for one tile.

    is_marked, lo, hi: the intervals as they are tested, see `cute_attn.mask.thinned`. heads: of the mask.
    items, runs: the forward table of its schedule, whose layers, has_lower, has_upper and idle_keys these are.
    """

    tile: TileConfig
    layers: int
    has_lower: bool
    has_upper: bool
    is_marked: bool
    heads: int
    lo: torch.Tensor
    hi: torch.Tensor
    items: torch.Tensor
    runs: torch.Tensor
    idle_keys: torch.Tensor


def plan_forward(
    mask: IntervalMask,
    dtype: torch.dtype,
    head_dims: tuple[int, int],
    heads: tuple[int, int],
    softmax: Softmax,
    tile: TileConfig | None = None,
    *,
    has_graph: bool = False,
) -> ForwardPlan:
    """The plan for tensors of such head dims (of q and v) and numbers of heads (of q and k) on the mask's device.

    tile: None takes what was measured fastest for such a problem, else the default. has_graph: whether a score_mod or a
        predicate comes with the mask, with which nothing was measured.
    """
    if tile is None:
        dims = kernel_dims(*head_dims)
        tile = graph_tile(*dims) if has_graph else default_tile(*dims)
        if softmax == "stale" and not has_graph:  # tables hold what was measured with it
            tile = tuned_tile("fwd", DTYPE_NAMES[dtype], dims, heads, mask, mask.device, tile)
    schedule = mask.schedule((tile.m, tile.n))
    facts = schedule.layers, schedule.has_lower, schedule.has_upper
    table = schedule.forward
    thinning = mask._thinning
    lo, hi = (mask.lo, mask.hi) if thinning is None else (thinning.lo, thinning.tested.hi)
    bounds = rows_contiguous(lo), rows_contiguous(hi)
    is_marked = thinning is not None and thinning.is_marked
    return ForwardPlan(tile, *facts, is_marked, mask.heads, *bounds, table.items, table.runs, schedule.idle_keys)


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: IntervalMask | ForwardPlan,
    *,
    softmax_scale: float,
    softcap: float = 0.0,
    score_mod: Traced | None = None,
    predicate: Traced | None = None,
    sink_lse: torch.Tensor | None = None,
    return_max_logits: bool = False,
    return_max_scores: bool = False,
    sm_margin: int = 0,
    backend: KernelBackend = "sm90",
    order: Order | None = None,
    softmax: Softmax = "stale",
    fp32_out: bool = False,
    tile: TileConfig | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Attention forward on the kernel.

    Args:
        q: (batch, seqlen_q, heads_q, head_dim), bf16 or fp16; k, v: (batch, seqlen_k, heads_k, head_dim or head_dim_v).
            Checked by the caller; strides as in `in_kernel_form`, else a copy is made.
        mask: over (seqlen_q, seqlen_k), its batch 1 or the tensors', its heads 1 or q's; or a plan made of it for such
            tensors.
        softmax_scale: any finite number; zero and negative ones take a variant that scales the scores first.
        score_mod: what changes the scaled scores, and softcap is 0. Its captured tensors lie on the device of q.
        predicate: what thins the mask, which is one of `cute_attn.mask.thinned`, or its plan.
        sink_lse: fp32, broadcastable to (batch, heads_q, seqlen_q): logsumexp of the sinks of a row.
        backend, order: see `cute_attn.launch.run.run`.
        softmax: how the maximum is kept, see `cute_attn.fwd.softmax`; always "exact" with return_max_logits or
            return_max_scores, one of which may be asked for.
        fp32_out: whether out is fp32, unrounded, to be merged with that over other keys.
        tile: as in plan_forward, where mask is an IntervalMask.

    Returns:
        out (batch, seqlen_q, heads_q, head_dim_v) like q or fp32, lse (batch, heads_q, seqlen_q) fp32 with sinks
        included, and max_logits (batch, heads_q), max_scores (batch, heads_q, seqlen_q), fp32, or None.
    """
    batch, seqlen_q, heads_q, head_dim = q.shape
    seqlen_k, head_dim_v = v.shape[1], v.shape[3]
    out = q.new_empty(batch, seqlen_q, heads_q, head_dim_v, dtype=torch.float32 if fp32_out else q.dtype)
    lse = q.new_empty(batch, heads_q, seqlen_q, dtype=torch.float32)
    max_logits = q.new_full((batch, heads_q), -math.inf, dtype=torch.float32) if return_max_logits else None
    max_scores = torch.empty_like(lse) if return_max_scores else None
    if sink_lse is not None:
        sink_lse = sink_lse.expand(batch, heads_q, seqlen_q)
    if out.numel() == 0:
        return out, lse, max_logits if max_scores is None else max_scores
    dims = kernel_dims(head_dim, head_dim_v)
    if return_max_logits or return_max_scores:
        softmax = "exact"
    plan = mask
    if isinstance(plan, IntervalMask):
        has_graph = score_mod is not None or predicate is not None
        heads = heads_q, k.shape[2]
        plan = plan_forward(plan, q.dtype, (head_dim, head_dim_v), heads, softmax, tile, has_graph=has_graph)
    if seqlen_k == 0 or plan.runs.shape[0] == 0:
        lse.copy_(sink_lse) if sink_lse is not None else lse.fill_(-math.inf)
        return out.zero_(), lse, max_logits if max_scores is None else max_scores.fill_(-math.inf)
    sizes = batch, heads_q, seqlen_q, seqlen_k
    asked = "" if predicate is None else text_of(predicate, sizes)
    form = MaskForm.of(plan.layers, plan.has_lower, plan.has_upper, asked, plan.is_marked)
    score = ScoreForm.of(softmax_scale, softcap) if score_mod is None else ScoreForm("graph", text_of(score_mod, sizes))
    spec = spec_of(
        ForwardSpec,
        dtype=DTYPE_NAMES[q.dtype],
        head_dim=dims[0],
        head_dim_v=dims[1],
        mask=form,
        score=score,
        sink=sink_lse is not None,
        max_logits=return_max_logits,
        max_scores=return_max_scores,
        softmax=softmax,
        fp32_out=fp32_out,
        tile=plan.tile,
    )
    q, k, v = (in_kernel_form(name, x) for name, x in (("q", q), ("k", k), ("v", v)))
    bounds = (plan.lo, plan.hi) if form.is_bounded else (None, None)
    captured = *captured_by(score_mod, q.device), *captured_by(predicate, q.device)
    tensors = (q, k, v, out, lse, *bounds, sink_lse, max_logits, max_scores, *captured, None)
    sharing = batch if plan.lo.shape[0] == plan.heads else 1, heads_q if plan.heads == 1 else 1
    ctas = max(1, multiprocessors(q.device) - sm_margin)
    scalars = (*score.factors(softmax_scale, softcap), *sharing, plan.heads, ctas)
    arguments = (tensors, (plan.items, plan.runs, plan.idle_keys), scalars)
    run(spec, arguments, backend, (out, lse, max_scores), order)
    return out, lse, max_logits if max_scores is None else max_scores
