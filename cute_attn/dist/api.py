"""Context parallelism as users call it: a key for a mask, dispatch, calc_attn, undispatch.

Every function here is called by all ranks of the group, with equal arguments but for the tensors' values.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..backend import resolve
from ..mask import AttnRanges, IntervalMask
from ..mask.ranges import RangesLike
from ..ops.checks import check_cu_seqlens, check_flag, check_qkv, check_scale, check_sink, check_softcap
from .config import DistAttnConfig
from .cost import CostModel
from .dispatch import place
from .groups import GroupOrMesh, find_groups
from .manager import DistAttnRuntimeKey, Manager, Registry, content_digest, ulysses_size_of
from .partial import AttentionSettings, check_backend
from .rows import dispatch_rows, roll_rows, undispatch_rows
from .runtime import run_attention

__all__ = [
    "calc_attn",
    "clear_cache",
    "dispatch",
    "get_most_recent_key",
    "get_position_ids",
    "magi_attn_flex_dispatch",
    "magi_attn_flex_key",
    "magi_attn_varlen_dispatch",
    "magi_attn_varlen_key",
    "make_flex_key_for_new_mask_after_dispatch",
    "make_varlen_key_for_new_mask_after_dispatch",
    "roll",
    "undispatch",
]

_registry = Registry()
_DEFAULT = DistAttnConfig()


# ---------------------------------------------------------------- keys


def magi_attn_flex_key(
    q_ranges: RangesLike | IntervalMask,
    k_ranges: RangesLike | None,
    attn_mask_type: object,
    total_seqlen_q: int,
    total_seqlen_k: int,
    pad_size: int,
    chunk_size: int,
    cp_group_or_mesh: GroupOrMesh,
    dist_attn_config: DistAttnConfig = _DEFAULT,
    is_same_source: bool = True,
    is_q_permutable: bool = True,
    is_k_permutable: bool = True,
) -> DistAttnRuntimeKey:
    """The key of a mask given as slices, placed on the ranks of a group. Follows MagiAttention.

    Args:
        q_ranges, k_ranges: global ranges of the slices, in any form that IntervalMask.from_slices takes; or an
            IntervalMask as q_ranges, with k_ranges and attn_mask_type None.
        attn_mask_type: one type or one for each slice: AttnMaskType, name or 0..3; None means all full.
        total_seqlen_q, total_seqlen_k: tokens of the whole sequences, without padding.
        pad_size: rows of padding after the queries; `compute_pad_size(total_seqlen_q, ranks, chunk_size)`. Keys of
            another source get the smallest padding of their own.
        chunk_size: rows that stay together on a rank, the unit of balance.
        cp_group_or_mesh: a process group, a 1-D mesh, or a 2-D mesh (ring, ulysses) whose ranks ascend along rows.
        dist_attn_config: dispatch algorithm, overlap, mover.
        is_same_source: queries and keys are one sequence, dispatched alike (self-attention). Otherwise
            (cross-attention) keys have their own placement, `side="k"` of `dispatch`.
        is_q_permutable, is_k_permutable: rows that are not permutable are placed contiguously.

    Equal content gives an equal key and plans once. Raises TypeError or ValueError naming the argument: slices as in
    IntervalMask.from_slices, lengths that differ though the source is the same, a pad_size that does not make equal
    chunks, flags that contradict each other, a mover that the group cannot serve.
    """
    groups = find_groups(cp_group_or_mesh)
    _check_config(dist_attn_config)
    for name, count in (
        ("total_seqlen_q", total_seqlen_q),
        ("total_seqlen_k", total_seqlen_k),
        ("pad_size", pad_size),
        ("chunk_size", chunk_size),
    ):
        _check_int(name, count)
    for name, value in (
        ("is_same_source", is_same_source),
        ("is_q_permutable", is_q_permutable),
        ("is_k_permutable", is_k_permutable),
    ):
        check_flag(name, value)
    content = DistAttnRuntimeKey(
        groups,
        _digest(q_ranges, k_ranges, attn_mask_type),
        total_seqlen_q,
        total_seqlen_k,
        pad_size,
        chunk_size,
        dist_attn_config,
        is_same_source,
        is_q_permutable,
        is_k_permutable,
    )

    def make() -> Manager:
        mask = _mask(q_ranges, k_ranges, attn_mask_type, total_seqlen_q, total_seqlen_k)
        placements = place(
            mask,
            groups.world,
            chunk_size,
            pad_size,
            dist_attn_config.dispatch_config,
            ulysses_size=ulysses_size_of(dist_attn_config.mover, groups),
            is_same_source=is_same_source,
            is_q_permutable=is_q_permutable,
            is_k_permutable=is_k_permutable,
        )
        return Manager(groups, mask, *placements, dist_attn_config)

    return _registry.key(content, make)


def magi_attn_varlen_key(
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    pad_size: int,
    chunk_size: int,
    cp_group_or_mesh: GroupOrMesh,
    causal: bool = False,
    dist_attn_config: DistAttnConfig = _DEFAULT,
) -> DistAttnRuntimeKey:
    """The key of packed documents, self-attention: document i attends itself, causally or fully.

    cu_seqlens_q, cu_seqlens_k: int `(documents + 1,)`, cumulative lengths from 0. The rest as in magi_attn_flex_key.
    """
    q_ranges, k_ranges, kind = _documents(cu_seqlens_q, cu_seqlens_k, causal)
    return magi_attn_flex_key(
        q_ranges,
        k_ranges,
        kind,
        int(cu_seqlens_q[-1]),
        int(cu_seqlens_k[-1]),
        pad_size,
        chunk_size,
        cp_group_or_mesh,
        dist_attn_config,
    )


def make_flex_key_for_new_mask_after_dispatch(
    q_ranges: RangesLike | IntervalMask,
    k_ranges: RangesLike | None,
    attn_mask_type: object,
    key_for_dispatch: DistAttnRuntimeKey,
    dist_attn_config: DistAttnConfig | None = None,
) -> DistAttnRuntimeKey:
    """The key of another mask over tensors that `key_for_dispatch` dispatched, such as of layers with a window.

    Lengths, group and placement are those of key_for_dispatch; dist_attn_config gives the mover and the overlap (None
    means the same), its dispatch_config has no effect. The mover must not need another placement than the first: any
    mover works on any placement. Raises as magi_attn_flex_key does, and ValueError for an unknown key.
    """
    first = _registry.manager(key_for_dispatch)
    config = key_for_dispatch.dist_attn_config if dist_attn_config is None else dist_attn_config
    _check_config(config)
    ulysses_size_of(config.mover, first.groups)
    digest = _digest(q_ranges, k_ranges, attn_mask_type)
    content = replace(
        key_for_dispatch,
        mask_digest=digest,
        dist_attn_config=config,
        placed_by=key_for_dispatch.placed_by or key_for_dispatch,
        manager=None,
    )

    def make() -> Manager:
        lengths = key_for_dispatch.total_seqlen_q, key_for_dispatch.total_seqlen_k
        mask = _mask(q_ranges, k_ranges, attn_mask_type, *lengths)
        return Manager(first.groups, mask, first.placement("q"), first.placement("k"), config)

    return _registry.key(content, make)


def make_varlen_key_for_new_mask_after_dispatch(
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    key_for_dispatch: DistAttnRuntimeKey,
    causal: bool = False,
    dist_attn_config: DistAttnConfig | None = None,
) -> DistAttnRuntimeKey:
    """As make_flex_key_for_new_mask_after_dispatch, for packed documents as in magi_attn_varlen_key."""
    return make_flex_key_for_new_mask_after_dispatch(
        *_documents(cu_seqlens_q, cu_seqlens_k, causal), key_for_dispatch, dist_attn_config
    )


def get_most_recent_key() -> DistAttnRuntimeKey:
    """The key that was made, or asked for again, last. ValueError if there is none."""
    return _registry.most_recent()


def clear_cache() -> None:
    """Forgets all plans; keys made before are unknown from here on. Every rank must call it at the same point."""
    _registry.clear()


# ---------------------------------------------------------------- rows


def magi_attn_flex_dispatch(
    x: torch.Tensor,
    q_ranges: RangesLike | IntervalMask,
    k_ranges: RangesLike | None,
    attn_mask_type: object,
    total_seqlen_q: int,
    total_seqlen_k: int,
    pad_size: int,
    chunk_size: int,
    cp_group_or_mesh: GroupOrMesh,
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


def magi_attn_varlen_dispatch(
    x: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    pad_size: int,
    chunk_size: int,
    cp_group_or_mesh: GroupOrMesh,
    causal: bool = False,
    dist_attn_config: DistAttnConfig = _DEFAULT,
) -> tuple[torch.Tensor, DistAttnRuntimeKey]:
    """`(dispatch(x, key), key)` with the key that magi_attn_varlen_key makes of the other arguments."""
    key = magi_attn_varlen_key(
        cu_seqlens_q, cu_seqlens_k, pad_size, chunk_size, cp_group_or_mesh, causal, dist_attn_config
    )
    return dispatch(x, key), key


def dispatch(x: torch.Tensor, key: DistAttnRuntimeKey, side: str = "q") -> torch.Tensor:
    """This rank's rows of a global tensor that every rank holds, padded with zeros.

    Args:
        x: `(total_seqlen, ...)`, any dtype; without padding.
        side: "q" or "k": whose placement. Only cross-attention has two.

    Returns `(rows per rank, ...)`. The backward all-gathers: **every rank ends with the complete gradient of x**, as if
    one device had computed it. So do not sum x.grad over the ranks of this group afterwards (nor gradients of what made
    x): that would be world-size times too much. Weights used *after* dispatch see local rows only: sum theirs.
    """
    manager = _registry.manager(key)
    placement = manager.placement(_check_side(side))
    _check_rows("x", x, placement.length, f"the length of side {side!r} without padding")
    return dispatch_rows(x, placement, manager.groups.whole)


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
    check_flag("is_partial_grad", is_partial_grad)
    manager = _registry.manager(key)
    placement = manager.placement(_check_side(side))
    _check_rows("x", x, placement.rows_per_rank, f"the rows of side {side!r} on each rank")
    return undispatch_rows(x, placement, manager.groups.whole, is_partial_grad)


def get_position_ids(key: DistAttnRuntimeKey, side: str = "q") -> torch.Tensor:
    """int64 `(rows per rank,)`: the global position of each local row; of padding the last valid position.

    On the CPU where the group uses gloo or there is no GPU, else on the current GPU. No communication.
    """
    manager = _registry.manager(key)
    placement = manager.placement(_check_side(side))
    positions = placement.positions(manager.groups.rank).clamp(max=max(placement.length - 1, 0))
    return positions.to(manager.groups.device)


def roll(x: torch.Tensor, shift: int, dim: int, key: DistAttnRuntimeKey, side: str = "q") -> torch.Tensor:
    """`torch.roll` of the global tensor on dispatched rows: `undispatch(roll(x)) == undispatch(x).roll(shift)`.

    Args:
        x: a tensor whose dimension `dim` is the rows of this rank. Only rows that change rank travel.
        shift: places by which rows move towards the end; padding stays where it is.

    The gradient rolls back.
    """
    manager = _registry.manager(key)
    placement = manager.placement(_check_side(side))
    _check_int("shift", shift)
    _check_int("dim", dim)
    _check_tensor("x", x)
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"dim must be in [{-x.ndim}, {x.ndim}), got {dim}")
    rows = x.movedim(dim, 0)
    _check_rows(f"x along dim {dim}", rows, placement.rows_per_rank, f"the rows of side {side!r} on each rank")
    there, back = (manager.roll_plan(side, s, x.device) for s in (shift, -shift))
    return roll_rows(rows, there, back, manager.groups.whole).movedim(0, dim)


# ---------------------------------------------------------------- attention


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
        sink: `(sinks, heads_q)` fp32 (fp64 with fp64 inputs), equal on every rank; logits without values. They count
            once; every rank gets their whole gradient, summed over all rows.
        softmax_scale: None means `1 / sqrt(head_dim)`.
        softcap: c > 0 makes scores `c * tanh(score / c)`; 0 is off.
        deterministic: gradients of the local attention are bitwise equal from run to run; sums over ranks always are.
        return_max_logits: also return max_logits.

    Returns `(out, lse)` or `(out, lse, max_logits)`: out `(rows of side q, heads_q, head_dim_v)` in q's dtype, lse
    `(heads_q, rows of side q)` natural log in fp32 (fp64), differentiable, max_logits `(heads_q,)` over all ranks.
    Padding and rows without keys: out 0, lse -inf (of the sinks alone if there are sinks).

    Every rank must run the backward, with gradients asked for by the same inputs. Raises TypeError or ValueError naming
    the argument, before any communication; ValueError for an unknown key and for heads that the mover cannot split.
    """
    manager = _registry.manager(key)
    check_qkv(q, k, v, "(rows, heads, head_dim)")
    for name, x, side in (("q", q, "q"), ("k and v", k, "k")):
        _check_rows(name, x, manager.placement(side).rows_per_rank, f"the rows of side {side!r} on each rank")
    check_sink(sink, "sh", q)
    check_flag("deterministic", deterministic)
    check_flag("return_max_logits", return_max_logits)
    settings = AttentionSettings(
        softmax_scale=check_scale(softmax_scale, q.shape[2]),
        softcap=check_softcap(softcap),
        deterministic=deterministic,
        sm_margin=manager.config.overlap_config.sm_margin,
        backend=check_backend(resolve(q.device)),
    )
    shape = CostModel(q.shape[1], k.shape[1], q.shape[2], v.shape[2], q.element_size())
    route = manager.route(shape, q.device)
    results = run_attention(q, k, v, sink, route, settings, return_max_logits)
    return results if return_max_logits else results[:2]


# ---------------------------------------------------------------- checks


def _digest(q_ranges: RangesLike | IntervalMask, k_ranges: RangesLike | None, types: object) -> str:
    if isinstance(q_ranges, IntervalMask):
        if k_ranges is not None or types is not None:
            raise ValueError("k_ranges and attn_mask_type must be None where q_ranges is an IntervalMask")
    elif k_ranges is None:
        raise ValueError("k_ranges must be given with q_ranges, got None")
    return content_digest(q_ranges, k_ranges, types)


def _mask(
    q_ranges: RangesLike | IntervalMask,
    k_ranges: RangesLike | None,
    types: object,
    total_seqlen_q: int,
    total_seqlen_k: int,
) -> IntervalMask:
    """The mask on the CPU, where it is planned."""
    if not isinstance(q_ranges, IntervalMask):
        assert k_ranges is not None  # _digest has checked it
        return IntervalMask.from_slices(q_ranges, k_ranges, types, total_seqlen_q, total_seqlen_k, "cpu")
    if (q_ranges.seqlen_q, q_ranges.seqlen_k) != (total_seqlen_q, total_seqlen_k):
        raise ValueError(
            f"total_seqlen_q and total_seqlen_k must be those of the mask, {q_ranges.seqlen_q} and "
            f"{q_ranges.seqlen_k}, got {total_seqlen_q} and {total_seqlen_k}"
        )
    return q_ranges.to("cpu")


def _documents(
    cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor, causal: bool
) -> tuple[AttnRanges, AttnRanges, str]:
    """Cumulative lengths as slices."""
    check_cu_seqlens(cu_seqlens_q, cu_seqlens_k)
    check_flag("causal", causal)
    ranges = []
    for name, value in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        ends = value.tolist()
        if ends[0] != 0 or ends != sorted(ends):
            raise ValueError(f"{name} must start at 0 and never fall, got {ends}")
        ranges.append(AttnRanges.from_cu_seqlens(ends))
    return ranges[0], ranges[1], "causal" if causal else "full"


def _check_config(config: object) -> None:
    if not isinstance(config, DistAttnConfig):
        raise TypeError(f"dist_attn_config must be a DistAttnConfig, got {type(config).__name__}")


def _check_int(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")


def _check_side(side: str) -> str:
    if side not in ("q", "k"):
        raise ValueError(f"side must be 'q' or 'k', got {side!r}")
    return side


def _check_tensor(name: str, x: object) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")


def _check_rows(name: str, x: torch.Tensor, rows: int, meaning: str) -> None:
    _check_tensor(name, x)
    if x.ndim < 1 or x.shape[0] != rows:
        raise ValueError(f"{name} must have {rows} rows, {meaning}, got shape {tuple(x.shape)}")
