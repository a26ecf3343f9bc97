"""Context parallelism: one sequence on many ranks, for any mask."""

from ..elsewhere import INSTEAD_IN_DIST
from .api import (
    calc_attn,
    clear_cache,
    dispatch,
    get_most_recent_key,
    get_position_ids,
    magi_attn_flex_dispatch,
    magi_attn_varlen_dispatch,
    roll,
    undispatch,
)
from .config import (
    AttnOverlapMode,
    AutoDispatchAlg,
    ContiguousDispatchAlg,
    DispatchConfig,
    DistAttnConfig,
    LocalityDispatchAlg,
    MinHeapDispatchAlg,
    OverlapAlgType,
    OverlapConfig,
    ZigzagDispatchAlg,
)
from .cost import CostModel
from .functional import (
    apply_padding,
    compute_pad_size,
    infer_attn_mask_from_cu_seqlens,
    infer_attn_mask_from_sliding_window,
    infer_varlen_mask_from_batch,
    pad_at_dim,
    squash_batch_dim,
    unpad_at_dim,
)
from .make_key import (
    magi_attn_flex_key,
    magi_attn_varlen_key,
    make_flex_key_for_new_mask_after_dispatch,
    make_varlen_key_for_new_mask_after_dispatch,
)
from .placing.place import place
from .placing.placement import Placement
from .plans.group_cast import CastPlan, CastStage, plan_group_cast
from .plans.heads import UlyssesHeads, ulysses_heads
from .plans.ring import RingPlan, RingStep, plan_ring
from .registry import DistAttnRuntimeKey

__all__ = [
    "AttnOverlapMode",
    "AutoDispatchAlg",
    "CastPlan",
    "CastStage",
    "ContiguousDispatchAlg",
    "CostModel",
    "DispatchConfig",
    "DistAttnConfig",
    "DistAttnRuntimeKey",
    "LocalityDispatchAlg",
    "MinHeapDispatchAlg",
    "OverlapAlgType",
    "OverlapConfig",
    "Placement",
    "RingPlan",
    "RingStep",
    "UlyssesHeads",
    "ZigzagDispatchAlg",
    "apply_padding",
    "calc_attn",
    "clear_cache",
    "compute_pad_size",
    "dispatch",
    "get_most_recent_key",
    "get_position_ids",
    "infer_attn_mask_from_cu_seqlens",
    "infer_attn_mask_from_sliding_window",
    "infer_varlen_mask_from_batch",
    "magi_attn_flex_dispatch",
    "magi_attn_flex_key",
    "magi_attn_varlen_dispatch",
    "magi_attn_varlen_key",
    "make_flex_key_for_new_mask_after_dispatch",
    "make_varlen_key_for_new_mask_after_dispatch",
    "pad_at_dim",
    "place",
    "plan_group_cast",
    "plan_ring",
    "roll",
    "squash_batch_dim",
    "ulysses_heads",
    "undispatch",
    "unpad_at_dim",
]


def __getattr__(name: str) -> object:
    if name in INSTEAD_IN_DIST:  # of an AttributeError `from cute_attn.dist import ...` would not show the sentence
        raise ImportError(f"cute_attn.dist has no {name}: {INSTEAD_IN_DIST[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
