"""From checked tensors and a mask to one launch of the backward kernels."""

from __future__ import annotations

import math
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch

from cute_attn.fwd.launch import DTYPES, in_kernel_form, kernel_dims, mask_kind, multiprocessors
from cute_attn.jit.backward_spec import BackwardSpec, BackwardTile
from cute_attn.jit.load import Runtime, kernel
from cute_attn.jit.spec import Layers
from cute_attn.jit.tuned import tuned_tile
from cute_attn.mask import IntervalMask, TileSchedule

from .config import default_tile
from .order import in_turns
from .rows import pack_bounds, unpack_rows

__all__ = ["KernelGradients", "backward", "backward_mask_kind", "row_terms"]

LOG2_E = math.log2(math.e)


class KernelGradients(NamedTuple):
    """dq, dk, dv like q, k, v (or fp32), None where not asked for.

    delta: rowsum(dout * out) - dlse, (batch, heads_q, seqlen_q) fp32, zero in rows whose lse is -inf. Rows without keys
        but with sinks have -dlse, whatever dout and out hold.
    """

    dq: torch.Tensor | None
    dk: torch.Tensor | None
    dv: torch.Tensor | None
    delta: torch.Tensor


class _Plan(NamedTuple):
    """What the kernels read of a mask besides its transposed schedule; made once for a schedule."""

    bounds: torch.Tensor
    query_runs: torch.Tensor


_plans: WeakKeyDictionary[TileSchedule, _Plan] = WeakKeyDictionary()


def backward(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    mask: IntervalMask,
    *,
    softmax_scale: float,
    softcap: float = 0.0,
    dlse: torch.Tensor | None = None,
    needs: tuple[bool, bool, bool] = (True, True, True),
    deterministic: bool = False,
    sm_margin: int = 0,
    fp32_gradients: bool = False,
    runtime: Runtime = "sm90",
    tile: BackwardTile | None = None,
) -> KernelGradients:
    """Gradients of attention on the kernels.

    Args:
        q, k, v, mask, softmax_scale, softcap: as for `cute_attn.fwd.launch.forward`, whose results out and lse are,
            with the sinks in them if there are any.
        dout: gradient of out, like it. dlse: of lse, (batch, heads_q, seqlen_q) fp32, or None for zero.
        needs: which of dq, dk and dv are wanted; at least one.
        deterministic: whether two runs give the same bits.
        sm_margin: how many multiprocessors the main kernel leaves free.
        fp32_gradients: whether dq, dk and dv are fp32, unrounded, to be added to what other keys and queries
            contribute.
        tile: None takes what was measured fastest for such a problem, else the default.

    Allocates, beside the results, 4 bytes for every element of q (none without dq) and 8 bytes for every row of every
    head, rounded up to whole tiles.
    """
    batch, seqlen_q, heads_q, head_dim = q.shape
    dims = kernel_dims(head_dim, v.shape[3])
    if tile is None:
        heads = (heads_q, k.shape[2])
        tile = tuned_tile("bwd", DTYPES[q.dtype], dims, heads, mask, q.device, default_tile(*dims))
    dtype = torch.float32 if fp32_gradients else q.dtype
    dq, dk, dv = (x.new_empty(x.shape, dtype=dtype) if need else None for x, need in zip((q, k, v), needs, strict=True))
    schedule = mask.schedule((tile.m, tile.n))
    if q.numel() == 0 or k.numel() == 0 or schedule.backward.runs.shape[0] == 0:
        for gradient in (dq, dk, dv):
            if gradient is not None:
                gradient.zero_()
        return KernelGradients(dq, dk, dv, row_terms(dout, out, lse, mask, dlse))
    layers, has_lower, has_upper = backward_mask_kind(schedule, softcap > 0.0)
    spec = BackwardSpec(
        dtype=DTYPES[q.dtype],  # type: ignore[arg-type]
        head_dim=dims[0],
        head_dim_v=dims[1],
        layers=layers,
        has_lower=has_lower,
        has_upper=has_upper,
        score="softcap" if softcap > 0.0 else "plain",
        dq=needs[0],
        dk=needs[1],
        dv=needs[2],
        dlse=dlse is not None,
        deterministic=deterministic and needs[0],
        fp32_gradients=fp32_gradients,
        tile=tile,
    )
    named = (("q", q), ("k", k), ("v", v), ("out", out), ("dout", dout))
    inputs = [in_kernel_form(name, x) for name, x in named]
    tiles = schedule.q_tiles
    statistics = q.new_empty(batch, heads_q, tiles, 2, tile.m, dtype=torch.float32)
    dq_sum = q.new_empty(batch, heads_q, tiles, tile.m * dims[0], dtype=torch.float32) if spec.dq else None
    turns = q.new_empty(batch, heads_q, tiles, 2, dtype=torch.int32) if spec.deterministic else None
    plan = _plan(mask, schedule)
    outputs = [x if x is None else in_kernel_form("gradient", x) for x in (dq, dk, dv)]
    bounds = plan.bounds if layers != 0 else None
    tensors = (*inputs, lse, dlse, bounds, statistics, dq_sum, turns, *outputs)
    table = schedule.backward
    ordered: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
    if spec.deterministic:
        table, ordered = in_turns(schedule), (plan.query_runs, schedule.forward.runs)
    scalars = (
        *_factors(softmax_scale, softcap),
        softmax_scale,
        batch if mask.batch == 1 else 1,
        heads_q // k.shape[2],
        _ctas(q.device, sm_margin),
    )
    found = kernel(spec, runtime)
    arguments = (tensors, (table.items, table.runs, *ordered, schedule.idle_rows, schedule.idle_keys), scalars)
    if runtime == "sim":
        from cute_attn.sim import run

        run(found.function, *arguments, ptx=found.ptx, fresh=(statistics, dq_sum, turns, *outputs))
    else:
        found.function(*arguments)
    delta = unpack_rows(statistics[:, :, :, 1], seqlen_q)
    if dlse is not None and schedule.idle_rows.numel():  # of their sinks alone: the kernels leave zero there
        delta = torch.where(_without_keys(mask) & (lse > -math.inf), -dlse, delta)
    return KernelGradients(dq, dk, dv, delta)


def _ctas(device: torch.device, sm_margin: int) -> int:
    """One CTA an item is best balanced; where some multiprocessors are to stay free, each of the others has one CTA."""
    return 2**31 - 1 if sm_margin == 0 else max(1, multiprocessors(device) - sm_margin)


def backward_mask_kind(schedule: TileSchedule, softcap: bool) -> tuple[Layers, bool, bool]:
    """A schedule's mask as specs name it: layers, has_lower, has_upper."""
    kind = mask_kind(schedule.layers, schedule.has_lower, schedule.has_upper)
    # The arithmetic of a softcap leaves registers for one way to test bounds only.
    return ("many", True, True) if softcap and kind[0] != 0 else kind


def row_terms(
    dout: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, mask: IntervalMask, dlse: torch.Tensor | None
) -> torch.Tensor:
    """The delta of KernelGradients where no kernel runs."""
    delta = (dout.float() * out.float()).sum(3).transpose(1, 2).masked_fill(_without_keys(mask), 0.0)
    delta = delta if dlse is None else delta - dlse
    return delta.masked_fill(lse == -math.inf, 0.0)


def _without_keys(mask: IntervalMask) -> torch.Tensor:
    """bool (batch of the mask, 1, seqlen_q)."""
    return (mask.lo >= mask.hi).all(1)[:, None]


def _factors(scale: float, softcap: float) -> tuple[float, float]:
    """What scores are multiplied with before tanh, and what the exponential multiplies."""
    return (scale / softcap, softcap * LOG2_E) if softcap > 0.0 else (1.0, scale * LOG2_E)


def _plan(mask: IntervalMask, schedule: TileSchedule) -> _Plan:
    plan = _plans.get(schedule)
    if plan is None:
        items = schedule.forward.items
        order = (items[:, 0].long() * schedule.q_tiles + items[:, 1]).argsort()
        query_runs = items[order][:, [2, 4]].view(schedule.batch, schedule.q_tiles, 2).contiguous()
        plan = _plans[schedule] = _Plan(pack_bounds(mask, schedule.tile[0]), query_runs)
    return plan
