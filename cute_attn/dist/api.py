"""Context parallelism as users call it, given a key: dispatch, calc_attn, undispatch, and what goes with them.

Every function here is called by all ranks of the group, with equal arguments but for the tensors' values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..checks import check_flag, takes_keywords_of
from ..eager import outside_of_graphs
from ..elsewhere import HINTS_OF_KEYS, KEYWORDS_IN_DIST
from ..mask import IntervalMask
from ..mask.ranges import RangesLike
from .call import check_call
from .checks import check_fill, check_int, check_rows, check_side, check_tensor
from .config import DistAttnConfig
from .graph import attention_in_graph
from .groups import GroupOrMesh, find_groups
from .make_key import magi_attn_flex_key, magi_attn_varlen_key
from .registry import DistAttnRuntimeKey, registry
from .rows import dispatch_rows, roll_rows, undispatch_rows
from .runtime import run_attention

__all__ = [
    "calc_attn",
    "clear_cache",
    "dispatch",
    "get_most_recent_key",
    "get_position_ids",
    "magi_attn_flex_dispatch",
    "magi_attn_varlen_dispatch",
    "roll",
    "undispatch",
]

_DEFAULT = DistAttnConfig()


@outside_of_graphs
@takes_keywords_of(KEYWORDS_IN_DIST, HINTS_OF_KEYS)
def magi_attn_flex_dispatch(
    x: torch.Tensor,
    q_ranges: RangesLike | IntervalMask,
    k_ranges: RangesLike | None,
    attn_mask_type: object,
    total_seqlen_q: int,
    total_seqlen_k: int,
    pad_size: int = 0,
    chunk_size: int | None = None,
    cp_group_or_mesh: GroupOrMesh | None = None,
    dist_attn_config: DistAttnConfig = _DEFAULT,
    is_same_source: bool = True,
    is_q_permutable: bool = True,
    is_k_permutable: bool = True,
) -> tuple[torch.Tensor, DistAttnRuntimeKey]:
    """`(dispatch(x, key), key)` with the key that magi_attn_flex_key makes of the other arguments."""
    key = magi_attn_flex_key(
        q_ranges,
        k_ranges,
        attn_mask_type,
        total_seqlen_q,
        total_seqlen_k,
        pad_size,
        chunk_size,
        cp_group_or_mesh,
        dist_attn_config,
        is_same_source,
        is_q_permutable,
        is_k_permutable,
    )
    return dispatch(x, key), key


@outside_of_graphs
@takes_keywords_of(KEYWORDS_IN_DIST, HINTS_OF_KEYS)
def magi_attn_varlen_dispatch(
    x: torch.Tensor,
    cu_seqlens_q: torch.Tensor | Sequence[int],
    cu_seqlens_k: torch.Tensor | Sequence[int],
    pad_size: int = 0,
    chunk_size: int | None = None,
    cp_group_or_mesh: GroupOrMesh | None = None,
    causal: bool = False,
    dist_attn_config: DistAttnConfig = _DEFAULT,
    *,
    window_size: Sequence[int] = (-1, -1),
) -> tuple[torch.Tensor, DistAttnRuntimeKey]:
    """`(dispatch(x, key), key)` with the key that magi_attn_varlen_key makes of the other arguments."""
    key = magi_attn_varlen_key(
        cu_seqlens_q,
        cu_seqlens_k,
        pad_size,
        chunk_size,
        cp_group_or_mesh,
        causal,
        dist_attn_config,
        window_size=window_size,
    )
    return dispatch(x, key), key


@outside_of_graphs
@takes_keywords_of(KEYWORDS_IN_DIST)
def dispatch(x: torch.Tensor, key: DistAttnRuntimeKey, side: str = "q", *, pad_value: float = 0) -> torch.Tensor:
    """This rank's rows of a global tensor that every rank holds, padded at its end.

    Args:
        x: `(total_seqlen, ...)`, any dtype; without padding.
        side: "q" or "k": whose placement. Only cross-attention has two.
        pad_value: what rows of padding hold, such as the label that a loss ignores.

    Returns `(rows per rank, ...)`. The backward all-gathers: **every rank ends with the complete gradient of x**, as if
    one device had computed it. So do not sum x.grad over the ranks of this group afterwards (nor gradients of what made
    x): that would be world-size times too much. Weights used *after* dispatch see local rows only: sum theirs.
    """
    manager = registry.manager(key)
    with manager.guard.checks("dispatch"):
        placement = manager.placement(check_side(side, "pad_value"))
        check_rows("x", x, placement.length, f"the length of side {side!r} without padding")
        pad_value = check_fill("pad_value", pad_value, x.dtype)
    return dispatch_rows(x, placement, manager.guard, pad_value)


@outside_of_graphs
def undispatch(
    x: torch.Tensor, key: DistAttnRuntimeKey, side: str = "q", is_partial_grad: bool = False
) -> torch.Tensor:
    """The global tensor, without padding, of every rank's rows: the inverse of dispatch, on every rank.

    Args:
        x: `(rows per rank, ...)`, any dtype.
        side: as in dispatch.
        is_partial_grad: what the gradient of the result is on each rank. False: every rank holds it in full, and the
            backward takes this rank's rows of it. True: ranks hold parts, and the backward first sums over ranks (in
            fp32, in the order of ranks).

    Returns `(total_seqlen, ...)`. A wrong is_partial_grad is a silent factor of the world size:

        total = undispatch(local, key)                          # every rank computes the same loss
        loss = criterion(total, targets)

        total = undispatch(local, key, is_partial_grad=True)    # each rank computes its own share of the loss,
        loss = criterion(total[mine], targets[mine])            # and the true loss is the sum of the shares
    """
    manager = registry.manager(key)
    with manager.guard.checks("undispatch"):
        check_flag("is_partial_grad", is_partial_grad)
        placement = manager.placement(check_side(side, "is_partial_grad"))
        check_rows("x", x, placement.rows_per_rank, f"the rows of side {side!r} on each rank")
    return undispatch_rows(x, placement, manager.guard, is_partial_grad)


@outside_of_graphs
def get_position_ids(key: DistAttnRuntimeKey, side: str = "q") -> torch.Tensor:
    """int64 `(rows per rank,)`: the global position of each local row; of padding the last valid position.

    On the CPU where the group uses gloo or there is no GPU, else on the current GPU. No communication.
    """
    manager = registry.manager(key)
    placement = manager.placement(check_side(side))
    return placement.position_ids(manager.groups.rank).to(manager.groups.device)


@outside_of_graphs
def roll(x: torch.Tensor, shift: int, dim: int, key: DistAttnRuntimeKey, side: str = "q") -> torch.Tensor:
    """`torch.roll` of the global tensor on dispatched rows: `undispatch(roll(x)) == undispatch(x).roll(shift)`.

    Args:
        x: a tensor whose dimension `dim` is the rows of this rank. Only rows that change rank travel.
        shift: places by which rows move towards the end; padding stays where it is.

    The gradient rolls back.
    """
    manager = registry.manager(key)
    with manager.guard.checks("roll"):
        placement = manager.placement(check_side(side))
        shift, dim = check_int("shift", shift), check_int("dim", dim)
        check_tensor("x", x)
        if x.ndim == 0:
            raise ValueError("x must have at least one dimension, got shape ()")
        if not -x.ndim <= dim < x.ndim:
            raise ValueError(f"dim must be in [{-x.ndim}, {x.ndim}), got {dim}")
        rows = x.movedim(dim, 0)
        check_rows(f"x along dim {dim}", rows, placement.rows_per_rank, f"the rows of side {side!r} on each rank")
        there, back = (manager.roll_plan(side, s % max(placement.length, 1), x.device) for s in (shift, -shift))
    return roll_rows(rows, there, back, manager.guard).movedim(0, dim)


def calc_attn(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key: DistAttnRuntimeKey,
    sink: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    softcap: float = 0.0,
    deterministic: bool = False,
    return_max_logits: bool = False,
) -> tuple[torch.Tensor, ...]:
    """Attention of the global sequence under the key's mask, on local rows.

    Args:
        q: `(rows of side q, heads_q, head_dim)`; k: `(rows of side k, heads_k, head_dim)`;
            v: `(rows of side k, heads_k, head_dim_v)`; bf16, fp16, fp32 or fp64, what `dispatch` and projections give.
        key: the mask and its placement.
        sink: `(sinks, heads_q)`, or `(heads_q,)` for one, of any floating dtype, computed in fp32 (fp64 with fp64
            inputs), equal on every rank; logits without values. They count once; every rank gets their whole gradient,
            summed over all rows, in their own dtype.
        softmax_scale: None means `1 / sqrt(head_dim)`.
        softcap: c > 0 makes scores `c * tanh(score / c)`; 0 is off.
        deterministic: gradients of the local attention are bitwise equal from run to run; sums over ranks always are.
        return_max_logits: also return max_logits.

    Returns `(out, lse)` or `(out, lse, max_logits)`: out `(rows of side q, heads_q, head_dim_v)` in q's dtype, lse
    `(heads_q, rows of side q)` natural log in fp32 (fp64), differentiable, max_logits `(heads_q,)` over all ranks.
    Padding and rows without keys: out 0, lse -inf (of the sinks alone if there are sinks). Padding may hold anything,
    NaN too, and so may its gradients: it gives nothing to anybody.

    Every rank must run the backward, with gradients asked for by the same inputs. Raises TypeError or ValueError naming
    the argument; ValueError for an unknown key, for heads that the mover cannot split, and, with check_ranks, on every
    rank where the ranks differ in anything but the numbers in their tensors; NotImplementedError for a dtype, head dim
    or device that the backend has no kernels for. All of these come before any row is sent, and the ranks may go on.
    RuntimeError where another rank does not come or is lost, and wherever an earlier call failed half-way: the process
    group cannot be used any more then, forward or backward, until it is destroyed and made anew.
    """
    if torch.compiler.is_compiling():
        results = attention_in_graph(q, k, v, key, sink, softmax_scale, softcap, deterministic, return_max_logits)
        return results if return_max_logits else results[:2]
    manager = registry.manager(key)
    requires_grad = [torch.is_grad_enabled() and getattr(x, "requires_grad", False) for x in (q, k, v, sink)]
    call = check_call(
        manager, q, k, v, sink, softmax_scale, softcap, deterministic, return_max_logits, None, requires_grad
    )
    results = run_attention(q, k, v, call.sink, call.route, call.settings, return_max_logits, call.compared)
    return results if return_max_logits else results[:2]


@outside_of_graphs
@takes_keywords_of(KEYWORDS_IN_DIST)
def get_most_recent_key(cp_group_or_mesh: GroupOrMesh | None = None) -> DistAttnRuntimeKey:
    """The key that was made, or asked for again, last, of a group if one is given. ValueError if there is none."""
    return registry.most_recent(None if cp_group_or_mesh is None else find_groups(cp_group_or_mesh))


@outside_of_graphs
@takes_keywords_of(KEYWORDS_IN_DIST)
def clear_cache(cp_group_or_mesh: GroupOrMesh | None = None) -> None:
    """Forgets all plans, or those of a group; keys made before are unknown from here on. Every rank, of the group, must
    call it at the same point."""
    registry.clear(None if cp_group_or_mesh is None else find_groups(cp_group_or_mesh))
