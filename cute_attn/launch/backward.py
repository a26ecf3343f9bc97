"""From checked tensors and a mask to one launch of the backward kernels."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from cute_attn.bwd.config import default_tile
from cute_attn.columns import ItemRow
from cute_attn.mask import IntervalMask, TileSchedule
from cute_attn.mods.trace import Traced
from cute_attn.spec.backward import BackwardSpec, backward_forms
from cute_attn.spec.mask import MaskForm
from cute_attn.spec.score import ScoreForm
from cute_attn.spec.tiles import BackwardTile

from .by_head import by_place, idle_for_all, items_of_key_heads
from .captured import NOTHING_CAPTURED, CapturedGradients, captured_by, text_of
from .dims import kernel_dims
from .order import in_turns
from .rows import pack_bounds, unpack_rows
from .run import KernelBackend, Order, run
from .shapes import spec_of
from .tensors import DTYPE_NAMES, in_kernel_form, multiprocessors
from .tuned import tuned_tile

__all__ = ["BackwardPlan", "KernelGradients", "backward", "plan_backward", "row_terms", "without_keys"]


class KernelGradients(NamedTuple):
    """dq, dk, dv like q, k, v (or fp32), None where not asked for.

    delta: rowsum(dout * out) - dlse, (batch, heads_q, seqlen_q) fp32, zero in rows whose lse is -inf. Rows without keys
        but with sinks have -dlse, whatever dout and out hold.
    """

    dq: torch.Tensor | None
    dk: torch.Tensor | None
    dv: torch.Tensor | None
    delta: torch.Tensor


class BackwardPlan(NamedTuple):
    """What a backward reads of its mask, for one tile.

    heads: of the mask. is_marked, lo, hi: the intervals as they are tested, see `cute_attn.mask.thinned`.
    items, runs: the transposed table of the mask's schedule, whose layers, has_lower, has_upper, idle_rows and
        idle_keys these are; in the order of turns where dQ has turns (see `cute_attn.launch.order`). Where heads have
        planes of their own, items and idle_keys are of key heads (see `cute_attn.launch.by_head`).
    bounds: the intervals, as `pack_bounds` lays them out.
    turn_ranges, turn_runs: with turns, the runs of key tiles of each query tile, int32 `(planes, q_tiles, 2)`, and
        these runs; else None.
    """

    tile: BackwardTile
    layers: int
    has_lower: bool
    has_upper: bool
    is_marked: bool
    heads: int
    lo: torch.Tensor
    hi: torch.Tensor
    items: torch.Tensor
    runs: torch.Tensor
    bounds: torch.Tensor
    idle_rows: torch.Tensor
    idle_keys: torch.Tensor
    turn_ranges: torch.Tensor | None
    turn_runs: torch.Tensor | None


def plan_backward(
    mask: IntervalMask,
    dtype: torch.dtype,
    head_dims: tuple[int, int],
    heads: tuple[int, int],
    has_turns: bool,
    tile: BackwardTile | None = None,
) -> BackwardPlan:
    """The plan for tensors of such head dims (of q and v) and numbers of heads (of q and k) on the mask's device; made
    once and kept with the mask.

    has_turns: whether the sums of dQ have a fixed order. tile: None takes what was measured fastest for such a problem,
    else the default.
    """
    if tile is None:
        dims = kernel_dims(*head_dims)
        tile = tuned_tile("bwd", DTYPE_NAMES[dtype], dims, heads, mask, mask.device, default_tile(*dims))
    heads_k = heads[1] if mask.heads > 1 else 1
    key = tile, has_turns, heads_k
    if key not in mask._derived:
        mask._derived[key] = _planned(mask, mask.schedule((tile.m, tile.n)), tile, has_turns, mask.heads // heads_k)
    return mask._derived[key]


def _planned(
    mask: IntervalMask, schedule: TileSchedule, tile: BackwardTile, has_turns: bool, heads_per_key: int
) -> BackwardPlan:
    """heads_per_key: how many query heads with planes of their own share a key head."""
    thinning = mask._thinning
    is_marked = thinning is not None and thinning.is_marked
    facts = schedule.layers, schedule.has_lower, schedule.has_upper, is_marked, mask.heads
    lo, hi = (mask.lo, mask.hi) if thinning is None else (thinning.lo, thinning.tested.hi)
    idle_keys = schedule.idle_keys
    table = in_turns(schedule) if has_turns else schedule.backward
    items = table.items
    if mask.heads > 1:
        items = items_of_key_heads(table, schedule.k_tiles, heads_per_key, has_turns)
        idle_keys = idle_for_all(idle_keys, heads_per_key)
    bounds = mask._derived.get(("bounds", tile.m))
    if bounds is None:
        bounds = mask._derived["bounds", tile.m] = pack_bounds(lo, hi, tile.m)
    turns: tuple[torch.Tensor | None, torch.Tensor | None] = None, None
    if has_turns:
        walks = ItemRow(*by_place(schedule.forward, schedule.q_tiles).unbind(1))
        ranges = torch.stack([walks.partial_begin, walks.end], 1)
        turns = ranges.view(schedule.planes, schedule.q_tiles, 2), schedule.forward.runs
    return BackwardPlan(tile, *facts, lo, hi, items, table.runs, bounds, schedule.idle_rows, idle_keys, *turns)


def backward(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    mask: IntervalMask | BackwardPlan,
    *,
    softmax_scale: float,
    softcap: float = 0.0,
    dlse: torch.Tensor | None = None,
    needs: tuple[bool, bool, bool] = (True, True, True),
    captured: CapturedGradients | None = None,
    predicate: Traced | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    fp32_gradients: bool = False,
    backend: KernelBackend = "sm90",
    order: Order | None = None,
    tile: BackwardTile | None = None,
) -> KernelGradients:
    """Gradients of attention on the kernels.

    Args:
        q, k, v, mask, softmax_scale, softcap: as for `launch.forward.forward`, whose results out and lse are,
            with the sinks in them if there are any. A plan has turns where `deterministic` says so.
        dout: gradient of out, like it. dlse: of lse, (batch, heads_q, seqlen_q) fp32, or None for zero.
        needs: which of dq, dk and dv are wanted; at least one, or one of `captured`.
        captured: the score_mod of the forward; afterwards has the gradients of what it captured.
        predicate: as for the forward.
        deterministic: whether two runs give the same bits. What `cute_attn.launch.captured.in_no_order` names does not.
        sm_margin: how many multiprocessors the main kernel leaves free.
        fp32_gradients: whether dq, dk and dv are fp32, unrounded, to be added to what other keys and queries
            contribute.
        backend, order: see `cute_attn.launch.run.run`.
        tile: as in plan_backward, where mask is an IntervalMask.

    Allocates, beside the results, 4 bytes for every element of q (none without dq) and 8 bytes for every row of every
    head, rounded up to whole tiles; 4 for every element of a wanted captured tensor, and for each read of one that does
    not depend on the row 4 for every key of every query head (8 with 64 keys a tile).
    """
    batch, seqlen_q, heads_q, head_dim = q.shape
    dims = kernel_dims(head_dim, v.shape[3])
    plan = mask
    if isinstance(plan, IntervalMask):
        heads = (heads_q, k.shape[2])
        plan = plan_backward(plan, q.dtype, (head_dim, v.shape[3]), heads, deterministic and needs[0], tile)
    tile = plan.tile
    dtype = torch.float32 if fp32_gradients else q.dtype
    dq, dk, dv = (x.new_empty(x.shape, dtype=dtype) if need else None for x, need in zip((q, k, v), needs, strict=True))
    if q.numel() == 0 or k.numel() == 0 or plan.runs.shape[0] == 0:
        for gradient in (dq, dk, dv):
            if gradient is not None:
                gradient.zero_()
        return KernelGradients(dq, dk, dv, row_terms(dout, out, lse, without_keys(plan.lo, plan.hi, plan.heads), dlse))
    score, of_mod = ScoreForm.of(softmax_scale, softcap), NOTHING_CAPTURED
    sizes = batch, heads_q, -(-seqlen_q // tile.m) * tile.m, k.shape[1]  # kernels ask of rows past the end too
    if captured is not None:
        score = ScoreForm("graph", captured.text(sizes))
        of_mod = captured.targets(batch, heads_q, k.shape[1], tile)
    asked = "" if predicate is None else text_of(predicate, sizes)
    mask_form = MaskForm.of(plan.layers, plan.has_lower, plan.has_upper, asked, plan.is_marked)
    form, score = backward_forms(mask_form, score)
    spec = spec_of(
        BackwardSpec,
        dtype=DTYPE_NAMES[q.dtype],
        head_dim=dims[0],
        head_dim_v=dims[1],
        mask=form,
        score=score,
        dq=needs[0],
        dk=needs[1],
        dv=needs[2],
        dlse=dlse is not None,
        planes_by_head=plan.heads > 1,
        deterministic=deterministic and needs[0],
        fp32_gradients=fp32_gradients,
        tile=tile,
    )
    named = (("q", q), ("k", k), ("v", v), ("out", out), ("dout", dout))
    inputs = [in_kernel_form(name, x) for name, x in named]
    tiles = -(-seqlen_q // tile.m)
    statistics = q.new_empty(batch, heads_q, tiles, 2, tile.m, dtype=torch.float32)
    dq_sum = q.new_empty(batch, heads_q, tiles, tile.m * dims[0], dtype=torch.float32) if spec.dq else None
    turns = q.new_empty(batch, heads_q, tiles, 2, dtype=torch.int32) if spec.deterministic else None
    bounds = plan.bounds if form.is_bounded else None
    tensors = (
        *inputs,
        lse,
        dlse,
        bounds,
        statistics,
        dq_sum,
        turns,
        dq,
        dk,
        dv,
        *of_mod,
        *captured_by(predicate, q.device),
    )
    ordered = (plan.turn_ranges, plan.turn_runs) if spec.deterministic else (None, None)
    scalars = (
        *score.factors(softmax_scale, softcap),
        softmax_scale,
        batch if plan.bounds.shape[0] == plan.heads else 1,
        heads_q // k.shape[2],
        _ctas(q.device, sm_margin),
    )
    arguments = (tensors, (plan.items, plan.runs, *ordered, plan.idle_rows, plan.idle_keys), scalars)
    run(spec, arguments, backend, (statistics, dq_sum, turns, dq, dk, dv), order)
    delta = unpack_rows(statistics[:, :, :, 1], seqlen_q)
    if dlse is not None and plan.idle_rows.numel():  # of their sinks alone: the kernels leave zero there
        delta = torch.where(without_keys(plan.lo, plan.hi, plan.heads) & (lse > -math.inf), -dlse, delta)
    return KernelGradients(dq, dk, dv, delta)


def _ctas(device: torch.device, sm_margin: int) -> int:
    """One CTA an item is best balanced; where some multiprocessors are to stay free, each of the others has one CTA."""
    return 2**31 - 1 if sm_margin == 0 else max(1, multiprocessors(device) - sm_margin)


def row_terms(
    dout: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    is_empty: torch.Tensor,
    dlse: torch.Tensor | None,
) -> torch.Tensor:
    """The delta of KernelGradients where no kernel runs; is_empty: see `without_keys`."""
    delta = (dout.float() * out.float()).sum(3).transpose(1, 2).masked_fill(is_empty, 0.0)
    delta = delta if dlse is None else delta - dlse
    return delta.masked_fill(lse == -math.inf, 0.0)


def without_keys(lo: torch.Tensor, hi: torch.Tensor, heads: int) -> torch.Tensor:
    """Which rows of a mask attend nothing: bool (batch of the mask, heads of the mask, seqlen_q)."""
    return (lo >= hi).all(1).unflatten(0, (-1, heads))
