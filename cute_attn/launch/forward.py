"""From checked tensors and a mask to one launch of the forward kernel."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from cute_attn.mask import IntervalMask
from cute_attn.mask.thinned import tested_bounds
from cute_attn.mods.trace import Traced
from cute_attn.spec.forward import ForwardSpec, Softmax
from cute_attn.spec.score import ScoreForm
from cute_attn.spec.tiles import Tile

from .captured import captured_by, text_of
from .packing import can_share, check_heads, choose_heads, positions
from .run import KernelBackend, Order, run
from .shapes import PlanForm, score_of_call, spec_of_call
from .tensors import DTYPE_NAMES, free_multiprocessors, in_kernel_form, rows_contiguous
from .tiles import tile_of_call

__all__ = ["Asked", "ForwardPlan", "ask", "fill_without_keys", "forward", "is_without_keys", "plan_forward"]


class ForwardPlan(NamedTuple):
    """What a forward reads of its mask, for one tile.

    lo, hi: the intervals as they are tested, see `cute_attn.mask.thinned`. items, runs: the forward table of its
    schedule, whose idle_keys these are.
    """

    form: PlanForm
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
    tile: Tile | None = None,
    *,
    has_graph: bool = False,
    fp32_out: bool = False,
    heads_in_tile: int | None = None,
) -> ForwardPlan:
    """The plan for tensors of such head dims (of q and v) and numbers of heads (of q and k) on the mask's device.

    tile: None takes that of `tile_of_call`. has_graph: whether a score_mod or a predicate comes with the mask.
    fp32_out: see `forward`. heads_in_tile: None chooses by shape, see `cute_attn.launch.packing`.
    """
    if tile is None:
        is_exact = softmax == "exact"
        tile = tile_of_call("fwd", dtype, head_dims, heads, mask, has_graph=has_graph, is_exact=is_exact)
    if heads_in_tile is None:
        shares = can_share(has_graph, softmax=softmax, fp32_out=fp32_out)
        heads_in_tile = choose_heads(mask, heads, tile.m) if shares else 1
    check_heads(heads_in_tile, mask, heads)
    schedule = mask.schedule((positions(tile.m, heads_in_tile), tile.n))
    form, table = PlanForm.of(mask, tile, heads_in_tile), schedule.forward
    lo, hi = map(rows_contiguous, tested_bounds(mask))
    return ForwardPlan(form, lo, hi, table.items, table.runs, schedule.idle_keys)


class _Results(NamedTuple):
    """What a forward writes; of the last two one at most is there."""

    out: torch.Tensor
    lse: torch.Tensor
    max_logits: torch.Tensor | None
    max_scores: torch.Tensor | None

    @classmethod
    def of(
        cls, q: torch.Tensor, v: torch.Tensor, fp32_out: bool, return_max_logits: bool, return_max_scores: bool
    ) -> _Results:
        batch, seqlen_q, heads_q, _ = q.shape
        out = q.new_empty(batch, seqlen_q, heads_q, v.shape[3], dtype=torch.float32 if fp32_out else q.dtype)
        lse = q.new_empty(batch, heads_q, seqlen_q, dtype=torch.float32)
        max_logits = q.new_full((batch, heads_q), -math.inf, dtype=torch.float32) if return_max_logits else None
        return cls(out, lse, max_logits, torch.empty_like(lse) if return_max_scores else None)

    def returned(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        return self.out, self.lse, self.max_logits if self.max_scores is None else self.max_scores


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
    tile: Tile | None = None,
    heads_in_tile: int | None = None,
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
        tile, heads_in_tile: as in plan_forward, where mask is an IntervalMask.

    Returns:
        out (batch, seqlen_q, heads_q, head_dim_v) like q or fp32, lse (batch, heads_q, seqlen_q) fp32 with sinks
        included, and max_logits (batch, heads_q), max_scores (batch, heads_q, seqlen_q), fp32, or None.
    """
    results = _Results.of(q, v, fp32_out, return_max_logits, return_max_scores)
    if results.out.numel() == 0:
        return results.returned()
    if return_max_logits or return_max_scores:
        softmax = "exact"
    plan = mask
    if isinstance(plan, IntervalMask):
        has_graph = score_mod is not None or predicate is not None
        heads, head_dims = (q.shape[2], k.shape[2]), (q.shape[3], v.shape[3])
        plan = plan_forward(
            plan,
            q.dtype,
            head_dims,
            heads,
            softmax,
            tile,
            has_graph=has_graph,
            fp32_out=fp32_out,
            heads_in_tile=heads_in_tile,
        )
    if is_without_keys(plan, k):
        fill_without_keys(results.out, results.lse, sink_lse)
        if results.max_scores is not None:
            results.max_scores.fill_(-math.inf)
        return results.returned()
    asked = ask(
        plan,
        q,
        k,
        v,
        softmax_scale=softmax_scale,
        softcap=softcap,
        score_mod=score_mod,
        predicate=predicate,
        has_sink=sink_lse is not None,
        return_max_logits=return_max_logits,
        return_max_scores=return_max_scores,
        sm_margin=sm_margin,
        softmax=softmax,
        fp32_out=fp32_out,
    )
    q, k, v = in_kernel_form("q", q), in_kernel_form("k", k), in_kernel_form("v", v)
    captured = *captured_by(score_mod, q.device), *captured_by(predicate, q.device)
    arguments = asked.arguments(q, k, v, *results[:2], sink_lse, results[2:], captured)
    run(asked.spec, arguments, backend, (results.out, results.lse, results.max_scores), order)
    return results.returned()


class Asked(NamedTuple):
    """A launch but for its tensors: the kernel, and what it reads and is told of the mask and the scores."""

    spec: ForwardSpec
    bounds: tuple[torch.Tensor | None, torch.Tensor | None]
    schedule: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    scalars: tuple[float | int, ...]

    def arguments(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
        sink_lse: torch.Tensor | None,
        largest: tuple[torch.Tensor | None, ...] = (None, None),
        captured: tuple[Any, ...] = (None,) * 4,
    ) -> tuple[tuple[Any, ...], ...]:
        """The argument structs. q, k, v: in kernel form. out, lse, largest (max_logits, max_scores): what is written.
        captured: as `captured_by` has what the score_mod and the predicate captured."""
        if sink_lse is not None:
            sink_lse = sink_lse.expand(lse.shape)
        tensors = q, k, v, out, lse, *self.bounds, sink_lse, *largest, *captured, None
        return tensors, self.schedule, self.scalars


def ask(
    plan: ForwardPlan,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    softmax_scale: float,
    softcap: float,
    score_mod: Traced | None = None,
    predicate: Traced | None = None,
    has_sink: bool = False,
    return_max_logits: bool = False,
    return_max_scores: bool = False,
    sm_margin: int = 0,
    softmax: Softmax = "stale",
    fp32_out: bool = False,
) -> Asked:
    """The launch of a `forward` with these arguments on tensors of such shapes, whose values are not read."""
    batch, seqlen_q, heads_q, head_dim = q.shape
    sizes = batch, heads_q, seqlen_q, k.shape[1]
    spec: ForwardSpec = spec_of_call(
        "fwd",
        plan.form,
        DTYPE_NAMES[q.dtype],
        (head_dim, v.shape[3]),
        score_of_call(softmax_scale, softcap) if score_mod is None else ScoreForm("graph", text_of(score_mod, sizes)),
        text_of(predicate, sizes),
        sink=has_sink,
        max_logits=return_max_logits,
        max_scores=return_max_scores,
        softmax=softmax,
        fp32_out=fp32_out,
    )
    bounds = (plan.lo, plan.hi) if spec.mask.is_bounded else (None, None)
    mask_heads = plan.form.heads
    groups = heads_q // plan.form.heads_in_tile
    sharing = batch if plan.lo.shape[0] == mask_heads else 1, groups if mask_heads == 1 else 1, mask_heads
    scalars = (*spec.score.factors(softmax_scale, softcap), *sharing, free_multiprocessors(q.device, sm_margin))
    return Asked(spec, bounds, (plan.items, plan.runs, plan.idle_keys), scalars)


def is_without_keys(plan: ForwardPlan, k: torch.Tensor) -> bool:
    """Whether no row attends anything, and no kernel is needed."""
    return k.shape[1] == 0 or plan.runs.shape[0] == 0


def fill_without_keys(out: torch.Tensor, lse: torch.Tensor, sink_lse: torch.Tensor | None) -> None:
    """out and lse as they are where no row attends anything."""
    out.zero_()
    lse.copy_(sink_lse) if sink_lse is not None else lse.fill_(-math.inf)
