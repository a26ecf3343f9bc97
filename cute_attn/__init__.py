"""Exact attention under irregular masks on NVIDIA Hopper, on one GPU or many."""

from .backend import backend
from .mask import AttnMaskType, AttnRange, AttnRanges, IntervalMask, TileSchedule
from .ops.flex_flash import flex_flash_attn_func

__version__ = "0.1.0.dev0"

__all__ = [
    "AttnMaskType",
    "AttnRange",
    "AttnRanges",
    "IntervalMask",
    "TileSchedule",
    "backend",
    "flex_flash_attn_func",
]
