"""Masks as rows of key intervals: slices, builders, tile schedules, pictures."""

from . import draw as _draw  # noqa: F401  (gives masks their pictures)
from .builders import (
    block_causal,
    block_diffusion,
    causal,
    chunked_causal,
    full,
    global_tokens,
    prefix_lm,
    shared_prefix,
    sliding_window,
)
from .intervals import IntervalMask
from .named import BUILDERS, from_spec
from .packed import bidirectional_runs, causal_documents, documents
from .ranges import AttnMaskType, AttnRange, AttnRanges
from .tiles import TileSchedule

__all__ = [
    "BUILDERS",
    "AttnMaskType",
    "AttnRange",
    "AttnRanges",
    "IntervalMask",
    "TileSchedule",
    "bidirectional_runs",
    "block_causal",
    "block_diffusion",
    "causal",
    "causal_documents",
    "chunked_causal",
    "documents",
    "from_spec",
    "full",
    "global_tokens",
    "prefix_lm",
    "shared_prefix",
    "sliding_window",
]
