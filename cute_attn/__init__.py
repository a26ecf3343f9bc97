"""Exact attention under irregular masks on NVIDIA Hopper, on one GPU or many."""

import importlib
import os
from typing import TYPE_CHECKING

from .backend import backend
from .elsewhere import INSTEAD
from .launch import operations as _operations  # noqa: F401  (fills the table of operations)
from .mask import AttnMaskType, AttnRange, AttnRanges, IntervalMask, TileSchedule
from .mods.block_mask import BlockMask, noop_mask
from .mods.masks import and_masks, create_block_mask, create_mask, or_masks
from .ops import chosen as _chosen  # noqa: F401  (registers an op that exported graphs name)
from .ops.flex_attention import AuxOutput, AuxRequest, flex_attention
from .ops.flex_flash import flex_flash_attn_func
from .ops.kvcache import flash_attn_with_kvcache
from .ops.prepared import PreparedAttention, prepare
from .ops.sink import (
    fa2_func_with_sink,
    fa2_kvpacked_func_with_sink,
    fa2_qkvpacked_func_with_sink,
    fa2_varlen_func_with_sink,
    fa2_varlen_kvpacked_func_with_sink,
    fa2_varlen_qkvpacked_func_with_sink,
    fa3_func_with_sink,
    fa3_qkvpacked_func_with_sink,
    fa3_varlen_func_with_sink,
)

if TYPE_CHECKING:
    from .jit.bundle import load_bundle
    from .jit.record import record_specs
    from .modules import (
        AttentionOp,
        AttentionType,
        ChunkedCausalMask,
        KVQuant,
        KVTensor,
        LoadBalancedCausalMask,
        StripedMask,
        balanced_order,
        normalize_attention,
        normalize_cudnn_attention,
    )

__version__ = "0.1.0.dev0"

__all__ = [
    "AttentionOp",
    "AttentionType",
    "AttnMaskType",
    "AttnRange",
    "AttnRanges",
    "AuxOutput",
    "AuxRequest",
    "BlockMask",
    "ChunkedCausalMask",
    "IntervalMask",
    "KVQuant",
    "KVTensor",
    "LoadBalancedCausalMask",
    "PreparedAttention",
    "StripedMask",
    "TileSchedule",
    "and_masks",
    "backend",
    "balanced_order",
    "create_block_mask",
    "create_mask",
    "fa2_func_with_sink",
    "fa2_kvpacked_func_with_sink",
    "fa2_qkvpacked_func_with_sink",
    "fa2_varlen_func_with_sink",
    "fa2_varlen_kvpacked_func_with_sink",
    "fa2_varlen_qkvpacked_func_with_sink",
    "fa3_func_with_sink",
    "fa3_qkvpacked_func_with_sink",
    "fa3_varlen_func_with_sink",
    "flash_attn_with_kvcache",
    "flex_attention",
    "flex_flash_attn_func",
    "load_bundle",
    "noop_mask",
    "normalize_attention",
    "normalize_cudnn_attention",
    "or_masks",
    "prepare",
    "record_specs",
]

# Names that not every program uses, and what they come from: loaded when first asked for, so that importing stays fast.
_LAZY = {"load_bundle": "jit.bundle", "record_specs": "jit.record"}
_LAZY |= dict.fromkeys(
    (
        "AttentionOp",
        "AttentionType",
        "ChunkedCausalMask",
        "KVQuant",
        "KVTensor",
        "LoadBalancedCausalMask",
        "StripedMask",
        "balanced_order",
        "normalize_attention",
        "normalize_cudnn_attention",
    ),
    "modules",
)


if os.environ.get("CUTE_ATTN_LOG"):
    importlib.import_module(f"{__name__}.log").show(os.environ["CUTE_ATTN_LOG"])


def __getattr__(name: str) -> object:
    if name in INSTEAD:  # of an AttributeError `from cute_attn import ...` would not show the sentence
        raise ImportError(f"cute_attn has no {name}: {INSTEAD[name]}")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
