"""Masks as rows of key intervals: slices, builders, tile schedules, pictures."""

from .intervals import IntervalMask
from .ranges import AttnMaskType, AttnRange, AttnRanges
from .tiles import RunTable, TileSchedule

__all__ = ["AttnMaskType", "AttnRange", "AttnRanges", "IntervalMask", "RunTable", "TileSchedule"]
