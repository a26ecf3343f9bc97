"""Exact attention under irregular masks on NVIDIA Hopper, on one GPU or many."""

import importlib
import os
from typing import TYPE_CHECKING

from .backend import backend
from .launch import operations as _operations  # noqa: F401  (fills the table of operations)
from .mask import AttnMaskType, AttnRange, AttnRanges, IntervalMask, TileSchedule
from .ops.flex_attention import AuxOutput, AuxRequest, flex_attention
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

if TYPE_CHECKING:
    from .jit.bundle import load_bundle
    from .jit.record import record_specs

__version__ = "0.1.0.dev0"

__all__ = [
    "AttnMaskType",
    "AttnRange",
    "AttnRanges",
    "AuxOutput",
    "AuxRequest",
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
    "flex_attention",
    "flex_flash_attn_func",
    "load_bundle",
    "record_specs",
]

# Names that few programs use, and what they come from: loaded when first asked for.
_LAZY = {"load_bundle": "jit.bundle", "record_specs": "jit.record"}


if os.environ.get("CUTE_ATTN_LOG"):
    importlib.import_module(f"{__name__}.log").show(os.environ["CUTE_ATTN_LOG"])


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
