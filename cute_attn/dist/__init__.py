"""Context parallelism: one sequence on many ranks, for any mask."""

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
from .dispatch import place
from .functional import (
    apply_padding,
    compute_pad_size,
    infer_attn_mask_from_sliding_window,
    infer_varlen_mask_from_batch,
    pad_at_dim,
    squash_batch_dim,
    unpad_at_dim,
)
from .placement import Placement
from .plan import CastPlan, CastStage, plan_group_cast
from .ring import RingPlan, RingStep, UlyssesHeads, plan_ring, ulysses_heads

__all__ = [
    "AttnOverlapMode",
    "AutoDispatchAlg",
    "CastPlan",
    "CastStage",
    "ContiguousDispatchAlg",
    "CostModel",
    "DispatchConfig",
    "DistAttnConfig",
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
    "compute_pad_size",
    "infer_attn_mask_from_sliding_window",
    "infer_varlen_mask_from_batch",
    "pad_at_dim",
    "place",
    "plan_group_cast",
    "plan_ring",
    "squash_batch_dim",
    "ulysses_heads",
    "unpad_at_dim",
]
