"""Masks as rows of key intervals: slices, builders, tile schedules, pictures."""

from .intervals import IntervalMask
from .ranges import AttnMaskType, AttnRange, AttnRanges

__all__ = ["AttnMaskType", "AttnRange", "AttnRanges", "IntervalMask"]
