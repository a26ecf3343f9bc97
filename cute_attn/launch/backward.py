"""From checked tensors and a mask to one launch of the backward kernels."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from cute_attn.mask import IntervalMask
from cute_attn.mask.thinned import tested_bounds
from cute_attn.mods.trace import Traced
from cute_attn.spec.backward import BackwardSpec
from cute_attn.spec.score import ScoreForm
from cute_attn.spec.tiles import Tile

from .by_head import idle_for_all, items_of_key_heads
from .captured import NOTHING_CAPTURED, CapturedGradients, captured_by, text_of
from .order import in_turns, upwards
from .rows import pack_bounds, unpack_rows
from .run import KernelBackend, Order, run
from .shapes import PlanForm, score_of_call, spec_of_call
from .tensors import DTYPE_NAMES, free_multiprocessors, in_kernel_form
from .tiles import tile_of_call

__all__ = ["BackwardPlan", "KernelGradients", "backward", "plan_backward", "row_terms", "without_keys"]


class KernelGradients(NamedTuple):
    """dq, dk, dv like q, k, v (or fp32), and delta; None where not asked for.

    delta: rowsum(dout * out) - dlse, (batch, heads_q, seqlen_q) fp32, zero in rows whose lse is -inf. Rows without keys
        but with sinks have -dlse, whatever dout and out hold.
    """

    dq: torch.Tensor | None
    dk: torch.Tensor | None
    dv: torch.Tensor | None
    delta: torch.Tensor | None


class BackwardPlan(NamedTuple):
    """What a backward reads of its mask, for one tile.

    lo, hi: the intervals as they are tested, see `cute_attn.mask.thinned`.
    items, runs: the transposed table of the mask's schedule, whose idle_rows and idle_keys these are; in the order of
        turns where dQ has turns (see `cute_attn.launch.order`). Where heads have planes of their own, items and
        idle_keys are of key heads (see `cute_attn.launch.by_head`).
    bounds: the intervals, as `pack_bounds` lays them out.
    turn_rows, turn_runs: with turns, what `cute_attn.columns.TurnRow` names of each query tile, int32
        `(planes, q_tiles, 4)`, and the runs of key tiles; else None.
    """

    form: PlanForm
    lo: torch.Tensor
    hi: torch.Tensor
    items: torch.Tensor
    runs: torch.Tensor
    bounds: torch.Tensor
    idle_rows: torch.Tensor
    idle_keys: torch.Tensor
    turn_rows: torch.Tensor | None
    turn_runs: torch.Tensor | None


def plan_backward(
    mask: IntervalMask,
    dtype: torch.dtype,
    head_dims: tuple[int, int],
    heads: tuple[int, int],
    has_turns: bool,
    tile: Tile | None = None,
    *,
    has_graph: bool = False,
) -> BackwardPlan:
    """The plan for tensors of such head dims (of q and v) and numbers of heads (of q and k) on the mask's device; made
    once and kept with the mask.

    has_turns: whether the sums of dQ have a fixed order. tile: None takes that of `tile_of_call`. has_graph: whether a
    score_mod or a predicate comes with the mask.
    """
    if tile is None:
        tile = tile_of_call("bwd", dtype, head_dims, heads, mask, has_graph=has_graph)
    heads_k = heads[1] if mask.heads > 1 else 1
    key = tile, has_turns, heads_k
    if key not in mask._derived:
        mask._derived[key] = _planned(mask, tile, has_turns, mask.heads // heads_k)
    return mask._derived[key]


def _planned(mask: IntervalMask, tile: Tile, has_turns: bool, heads_per_key: int) -> BackwardPlan:
    """heads_per_key: how many query heads with planes of their own share a key head."""
    schedule = mask.schedule((tile.m, tile.n))
    lo, hi = tested_bounds(mask)
    idle_keys = schedule.idle_keys
    table = schedule.backward
    turns: tuple[torch.Tensor | None, torch.Tensor | None] = None, None
    if has_turns:
        ordered = in_turns(schedule)
        table = ordered.table if mask.heads == 1 else upwards(schedule.backward, schedule.layers)
        turns = ordered.turns, schedule.forward.runs
    items = table.items
    if mask.heads > 1:
        items = items_of_key_heads(table, schedule.k_tiles, heads_per_key, has_turns)
        idle_keys = idle_for_all(idle_keys, heads_per_key)
    bounds = mask._derived.get(("bounds", tile.m))
    if bounds is None:
        bounds = mask._derived["bounds", tile.m] = pack_bounds(lo, hi, tile.m)
    form = PlanForm.of(mask, tile)
    return BackwardPlan(form, lo, hi, items, table.runs, bounds, schedule.idle_rows, idle_keys, *turns)


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
    needs_delta: bool = True,
    captured: CapturedGradients | None = None,
    predicate: Traced | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    fp32_gradients: bool = False,
    backend: KernelBackend = "sm90",
    order: Order | None = None,
    tile: Tile | None = None,
) -> KernelGradients:
    """Gradients of attention on the kernels.

    Args:
        q, k, v, mask, softmax_scale, softcap: as for `launch.forward.forward`, whose results out and lse are,
            with the sinks in them if there are any. A plan has turns where `deterministic` says so.
        dout: gradient of out, like it. dlse: of lse, (batch, heads_q, seqlen_q) fp32, or None for zero.
        needs: which of dq, dk and dv are wanted; at least one, or one of `captured`. needs_delta: whether delta is.
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
    seqlen_k, heads_k = k.shape[1], k.shape[2]
    has_turns = deterministic and needs[0]
    plan = mask
    if isinstance(plan, IntervalMask):
        has_graph = captured is not None or predicate is not None
        head_dims = head_dim, v.shape[3]
        plan = plan_backward(plan, q.dtype, head_dims, (heads_q, heads_k), has_turns, tile, has_graph=has_graph)
    tile, mask_heads = plan.form.tile, plan.form.heads
    dtype = torch.float32 if fp32_gradients else q.dtype
    dq, dk, dv = (x.new_empty(x.shape, dtype=dtype) if need else None for x, need in zip((q, k, v), needs, strict=True))
    if q.numel() == 0 or k.numel() == 0 or plan.runs.shape[0] == 0:
        for gradient in (dq, dk, dv):
            if gradient is not None:
                gradient.zero_()
        if not needs_delta:
            return KernelGradients(dq, dk, dv, None)
        is_empty = without_keys(plan.lo, plan.hi, mask_heads)
        return KernelGradients(dq, dk, dv, row_terms(dout, out, lse, is_empty, dlse))
    sizes = batch, heads_q, -(-seqlen_q // tile.m) * tile.m, seqlen_k  # kernels ask of rows past the end too
    spec = spec_of_gradients(
        plan,
        q,
        v,
        softmax_scale,
        softcap,
        graph="" if captured is None else captured.text(sizes),
        predicate=text_of(predicate, sizes),
        needs=needs,
        has_dlse=dlse is not None,
        has_turns=has_turns,
        fp32_gradients=fp32_gradients,
    )
    named = (("q", q), ("k", k), ("v", v), ("out", out), ("dout", dout))
    inputs = [in_kernel_form(name, x) for name, x in named]
    shapes = _workspace(spec, batch, seqlen_q, heads_q)
    statistics = q.new_empty(shapes[0], dtype=torch.float32)
    dq_sum = q.new_empty(shapes[1], dtype=torch.float32) if spec.dq else None
    turns = q.new_empty(shapes[2], dtype=torch.int32) if has_turns else None
    written = (statistics, dq_sum, turns, dq, dk, dv)
    of_mod = NOTHING_CAPTURED if captured is None else captured.targets(batch, heads_q, seqlen_k, tile)
    bounds = plan.bounds if spec.mask.is_bounded else None
    tensors = (*inputs, lse, dlse, bounds, *written, *of_mod, *captured_by(predicate, q.device))
    ordered = (plan.turn_rows, plan.turn_runs) if has_turns else (None, None)
    factors = (*spec.score.factors(softmax_scale, softcap), softmax_scale)
    sharing = batch if plan.bounds.shape[0] == mask_heads else 1, heads_q // heads_k
    schedule = (plan.items, plan.runs, *ordered, plan.idle_rows, plan.idle_keys)
    run(spec, (tensors, schedule, (*factors, *sharing, _ctas(q.device, sm_margin))), backend, written, order)
    if not needs_delta:
        return KernelGradients(dq, dk, dv, None)
    delta = unpack_rows(statistics[:, :, :, 1], seqlen_q)
    if dlse is not None and plan.idle_rows.numel():  # of their sinks alone: the kernels leave zero there
        delta = torch.where(without_keys(plan.lo, plan.hi, mask_heads) & (lse > -math.inf), -dlse, delta)
    return KernelGradients(dq, dk, dv, delta)


def spec_of_gradients(
    plan: BackwardPlan,
    q: torch.Tensor,
    v: torch.Tensor,
    softmax_scale: float,
    softcap: float,
    *,
    graph: str = "",
    predicate: str = "",
    needs: tuple[bool, bool, bool] = (True, True, True),
    has_dlse: bool = False,
    has_turns: bool,
    fp32_gradients: bool = False,
) -> BackwardSpec:
    """The spec of a `backward` of tensors like q and v. graph, predicate: texts, of a score_mod and of what thins the
    mask."""
    spec: BackwardSpec = spec_of_call(
        "bwd",
        plan.form,
        DTYPE_NAMES[q.dtype],
        (q.shape[3], v.shape[3]),
        ScoreForm("graph", graph) if graph else score_of_call(softmax_scale, softcap),
        predicate,
        dq=needs[0],
        dk=needs[1],
        dv=needs[2],
        dlse=has_dlse,
        deterministic=has_turns,
        fp32_gradients=fp32_gradients,
    )
    return spec


def workspace_bytes(spec: BackwardSpec, batch: int, seqlen_q: int, heads_q: int) -> int:
    """What `backward` allocates beside its results where nothing is captured and delta is not asked for."""
    statistics, dq_sum, turns = map(math.prod, _workspace(spec, batch, seqlen_q, heads_q))
    return 4 * (statistics + dq_sum * spec.dq + turns * spec.deterministic)


def _workspace(spec: BackwardSpec, batch: int, seqlen_q: int, heads_q: int) -> tuple[tuple[int, ...], ...]:
    """The shapes of statistics, dq_sum and turns (see `cute_attn.bwd.arguments.Tensors`): 4 bytes an element."""
    m = spec.tile.m
    tiles = batch, heads_q, -(-seqlen_q // m)
    return (*tiles, 2, m), (*tiles, m * spec.head_dim), (*tiles, 2)


def _ctas(device: torch.device, sm_margin: int) -> int:
    """One CTA an item is best balanced; where some multiprocessors are to stay free, each of the others has one CTA."""
    return 2**31 - 1 if sm_margin == 0 else free_multiprocessors(device, sm_margin)


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
