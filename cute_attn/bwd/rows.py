"""The order in memory of what the main kernel reads of each query row: -lse, delta, and the bounds of its intervals.

A thread of S^T holds the columns (query rows) 8j + 2t + e with t = lane % 4 and e = 0, 1. Of 16 rows of a tile, those
of one t lie together, so that a thread reads four with one instruction: row 16i + 8b + 2t + e is at 16i + 4t + 2b + e.
"""

from __future__ import annotations

from typing import Any

__all__ = ["place_of_row"]


def place_of_row(row: Any) -> Any:
    """Where a row of a tile is; for ints and for the DSL's."""
    return (row & ~15) | ((row & 6) << 1) | ((row & 8) >> 2) | (row & 1)
