"""From a mask to a key: who holds which rows. Plans on the CPU and sends nothing but a digest of the arguments.

Every function here is called by all ranks of the group, with equal arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ..checks import check_flag, takes_keywords_of
from ..eager import outside_of_graphs
from ..elsewhere import HINTS_OF_KEYS, KEYWORDS_IN_DIST
from ..mask import IntervalMask
from ..mask.ranges import RangesLike, slice_tensors
from ..mask.source import MaskSource
from .agreement import agree, refusing
from .checks import END, check_int, check_kind
from .config import DispatchConfig, DistAttnConfig
from .functional import compute_pad_size, infer_attn_mask_from_cu_seqlens
from .groups import GroupOrMesh, find_groups
from .manager import Manager, ulysses_size_of
from .placing.place import place
from .registry import DistAttnRuntimeKey, registry
from .soundness import REFUSALS, marking

__all__ = [
    "magi_attn_flex_key",
    "magi_attn_varlen_key",
    "make_flex_key_for_new_mask_after_dispatch",
    "make_varlen_key_for_new_mask_after_dispatch",
]

CALL = "making a key"
CHUNKS_A_RANK = 8  # at least, where nobody says how many
_DEFAULT = DistAttnConfig()


@outside_of_graphs
@takes_keywords_of(KEYWORDS_IN_DIST, HINTS_OF_KEYS)
def magi_attn_flex_key(
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
) -> DistAttnRuntimeKey:
    """The key of a mask given as slices, placed on the ranks of a group. Follows MagiAttention.

    Args:
        q_ranges, k_ranges: global ranges of the slices, in any form that IntervalMask.from_slices takes; or an
            IntervalMask as q_ranges, with k_ranges and attn_mask_type None.
        attn_mask_type: one type or one for each slice: AttnMaskType, name or 0..3; None means all full.
        total_seqlen_q, total_seqlen_k: tokens of the whole sequences, without padding.
        pad_size: rows of padding after the queries; 0 means as few as make equal chunks, which are
            `compute_pad_size(total_seqlen_q, ranks, chunk_size)`. Keys of another source get the fewest of their own.
        chunk_size: rows that stay together on a rank, the unit of balance; 512 to 1,024 suit long sequences. None:
            an eighth of a rank's, `ceil(total_seqlen_q / (8 * ranks))`, or those of the DispatchConfig if fewer.
        cp_group_or_mesh: a process group, a 1-D mesh, or a 2-D mesh (ring, ulysses) whose ranks ascend along rows; to
            be given, though pad_size and chunk_size before it need not be.
        dist_attn_config: dispatch algorithm, overlap, mover.
        is_same_source: queries and keys are one sequence, dispatched alike (self-attention). Otherwise
            (cross-attention) keys have their own placement, `side="k"` of `dispatch`.
        is_q_permutable, is_k_permutable: rows that are not permutable are placed contiguously.
        num_heads_q, num_heads_kv, head_dim, head_dim_v: by keyword, hints of newer versions that change nothing.

    Equal content gives an equal key and plans once. Raises TypeError or ValueError naming the argument: slices as in
    IntervalMask.from_slices, lengths that differ though the source is the same, a pad_size that does not make equal
    chunks, flags that contradict each other, a mover that the group cannot serve. Ranks compare their arguments each
    time, found again or not, whatever `check_ranks` is: where they differ, or are bad on some rank, every rank raises
    ValueError, naming the argument and the ranks.
    """
    groups = find_groups(cp_group_or_mesh)
    with refusing(groups, CALL):
        check_kind("dist_attn_config", dist_attn_config, DistAttnConfig)
        total_seqlen_q = check_int("total_seqlen_q", total_seqlen_q, 0, END)
        total_seqlen_k = check_int("total_seqlen_k", total_seqlen_k, 0, END)
        chunk_size = _chunk_size(chunk_size, dist_attn_config.dispatch_config, total_seqlen_q, groups.world)
        pad_size = check_int("pad_size", pad_size, 0) or compute_pad_size(total_seqlen_q, groups.world, chunk_size)
        dist_attn_config = _without_chunk_size(dist_attn_config)
        for name, value in (
            ("is_same_source", is_same_source),
            ("is_q_permutable", is_q_permutable),
            ("is_k_permutable", is_k_permutable),
        ):
            check_flag(name, value)
        source = _source(q_ranges, k_ranges, attn_mask_type)
    content = DistAttnRuntimeKey(
        groups,
        source.content().hex(),
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
        mask = _mask(source, q_ranges, total_seqlen_q, total_seqlen_k)
        placements = place(
            mask,
            groups.world,
            chunk_size,
            pad_size,
            dist_attn_config.dispatch_config,
            dist_attn_config.cost,
            ulysses_size=ulysses_size_of(dist_attn_config.mover, groups),
            is_same_source=is_same_source,
            is_q_permutable=is_q_permutable,
            is_k_permutable=is_k_permutable,
        )
        return Manager(groups, mask, *placements, dist_attn_config, content.digest)

    return _agreed_key(content, make)


@outside_of_graphs
@takes_keywords_of(KEYWORDS_IN_DIST, HINTS_OF_KEYS)
def magi_attn_varlen_key(
    cu_seqlens_q: torch.Tensor | Sequence[int],
    cu_seqlens_k: torch.Tensor | Sequence[int],
    pad_size: int = 0,
    chunk_size: int | None = None,
    cp_group_or_mesh: GroupOrMesh | None = None,
    causal: bool = False,
    dist_attn_config: DistAttnConfig = _DEFAULT,
    *,
    window_size: Sequence[int] = (-1, -1),
) -> DistAttnRuntimeKey:
    """The key of packed documents, self-attention: document i attends itself, causally, fully or within a window.

    cu_seqlens_q, cu_seqlens_k: int `(documents + 1,)` in a tensor, an array or a list, cumulative lengths from 0.
    causal, window_size: as infer_attn_mask_from_cu_seqlens takes them. The rest as in magi_attn_flex_key.
    """
    with refusing(find_groups(cp_group_or_mesh), CALL):
        slices = infer_attn_mask_from_cu_seqlens(cu_seqlens_q, cu_seqlens_k, causal, window_size)
    return magi_attn_flex_key(*slices, pad_size, chunk_size, cp_group_or_mesh, dist_attn_config)


@outside_of_graphs
@takes_keywords_of(KEYWORDS_IN_DIST, HINTS_OF_KEYS)
def make_flex_key_for_new_mask_after_dispatch(
    q_ranges: RangesLike | IntervalMask,
    k_ranges: RangesLike | None,
    attn_mask_type: object,
    key_for_dispatch: DistAttnRuntimeKey,
    dist_attn_config: DistAttnConfig | None = None,
) -> DistAttnRuntimeKey:
    """The key of another mask over tensors that `key_for_dispatch` dispatched, such as of layers with a window.

    Lengths, group and placement are those of key_for_dispatch; dist_attn_config gives the mover and the overlap (None
    means the same), its dispatch_config has no effect. Any mover works on any placement. Raises as magi_attn_flex_key
    does, and ValueError for an unknown key.
    """
    first = registry.manager(key_for_dispatch, "key_for_dispatch")
    config = key_for_dispatch.dist_attn_config if dist_attn_config is None else dist_attn_config
    with refusing(first.groups, CALL):
        check_kind("dist_attn_config", config, DistAttnConfig)
        config = _without_chunk_size(config)
        ulysses_size_of(config.mover, first.groups)
        source = _source(q_ranges, k_ranges, attn_mask_type)
    content = replace(
        key_for_dispatch,
        mask_digest=source.content().hex(),
        dist_attn_config=config,
        placed_by=key_for_dispatch.placed_by or key_for_dispatch,
        manager=None,
    )

    def make() -> Manager:
        lengths = key_for_dispatch.total_seqlen_q, key_for_dispatch.total_seqlen_k
        mask = _mask(source, q_ranges, *lengths)
        return Manager(first.groups, mask, first.placement("q"), first.placement("k"), config, content.digest)

    return _agreed_key(content, make)


@outside_of_graphs
@takes_keywords_of(KEYWORDS_IN_DIST, HINTS_OF_KEYS)
def make_varlen_key_for_new_mask_after_dispatch(
    cu_seqlens_q: torch.Tensor | Sequence[int],
    cu_seqlens_k: torch.Tensor | Sequence[int],
    key_for_dispatch: DistAttnRuntimeKey,
    causal: bool = False,
    dist_attn_config: DistAttnConfig | None = None,
    *,
    window_size: Sequence[int] = (-1, -1),
) -> DistAttnRuntimeKey:
    """As make_flex_key_for_new_mask_after_dispatch, for packed documents as in magi_attn_varlen_key."""
    with refusing(registry.manager(key_for_dispatch, "key_for_dispatch").groups, CALL):
        slices = infer_attn_mask_from_cu_seqlens(cu_seqlens_q, cu_seqlens_k, causal, window_size)
    return make_flex_key_for_new_mask_after_dispatch(*slices[:3], key_for_dispatch, dist_attn_config)


def _agreed_key(content: DistAttnRuntimeKey, make: Callable[[], Manager]) -> DistAttnRuntimeKey:
    """The key of this content once every rank asks for it. Ranks compare each time: what one finds, another may not."""
    agree(content.groups, CALL, content.compared)
    with marking(content.groups, CALL, but=REFUSALS):  # arguments are equal by now, so all ranks refuse them or none
        return registry.key(content, make)


def _source(q_ranges: RangesLike | IntervalMask, k_ranges: RangesLike | None, types: object) -> MaskSource:
    """What describes the mask, parsed, on the CPU, where it is planned."""
    if isinstance(q_ranges, IntervalMask):
        if k_ranges is not None or types is not None:
            raise ValueError("k_ranges and attn_mask_type must be None where q_ranges is an IntervalMask")
        return MaskSource("intervals", q_ranges.lo.cpu(), q_ranges.hi.cpu())
    if k_ranges is None:
        raise ValueError("k_ranges must be given with q_ranges, got None")
    return MaskSource("slices", *slice_tensors(q_ranges, k_ranges, types, "cpu", "attn_mask_type"))


def _mask(source: MaskSource, given: object, total_seqlen_q: int, total_seqlen_k: int) -> IntervalMask:
    """given: what the source was made of; an IntervalMask has lengths of its own."""
    if isinstance(given, IntervalMask) and (given.seqlen_q, given.seqlen_k) != (total_seqlen_q, total_seqlen_k):
        raise ValueError(
            f"total_seqlen_q and total_seqlen_k must be those of the mask, {given.seqlen_q} and {given.seqlen_k}, "
            f"got {total_seqlen_q} and {total_seqlen_k}"
        )
    return source.build(total_seqlen_q, total_seqlen_k, torch.device("cpu"))


def _chunk_size(chunk_size: int | None, config: DispatchConfig, rows: int, world: int) -> int:
    """Rows that stay together, as the argument of a key says it, else the config, else the number of rows."""
    if chunk_size is not None:
        chunk_size = check_int("chunk_size", chunk_size, 1)
        if config.chunk_size not in (None, chunk_size):
            raise ValueError(f"chunk_size must be that of the DispatchConfig, {config.chunk_size}, got {chunk_size}")
        return chunk_size
    most = max(1, -(-rows // (CHUNKS_A_RANK * world)))
    return most if config.chunk_size is None else min(most, config.chunk_size)


def _without_chunk_size(config: DistAttnConfig) -> DistAttnConfig:
    """A key has it for itself, whoever said it."""
    return replace(config, dispatch_config=replace(config.dispatch_config, chunk_size=None))
