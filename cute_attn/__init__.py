"""Exact attention under irregular masks on NVIDIA Hopper, on one GPU or many."""

from .backend import backend
from .mask import AttnMaskType, AttnRange, AttnRanges, IntervalMask, TileSchedule
from .ops.flex_flash import flex_flash_attn_func
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

__version__ = "0.1.0.dev0"

__all__ = [
    "AttnMaskType",
    "AttnRange",
    "AttnRanges",
    "IntervalMask",
    "TileSchedule",
    "backend",
    "fa2_func_with_sink",
    "fa2_kvpacked_func_with_sink",
    "fa2_qkvpacked_func_with_sink",
    "fa2_varlen_func_with_sink",
    "fa2_varlen_kvpacked_func_with_sink",
    "fa2_varlen_qkvpacked_func_with_sink",
    "fa3_func_with_sink",
    "fa3_qkvpacked_func_with_sink",
    "fa3_varlen_func_with_sink",
    "flex_flash_attn_func",
]
