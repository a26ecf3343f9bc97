"""Rows of the tables that a CTA walks: see `cute_attn.columns`."""

import cutlass.cute as cute
from cutlass import Int32

from cute_attn.columns import RunRow

__all__ = ["read_run"]


def read_run(runs: cute.Tensor, number: Int32) -> RunRow:
    """What is not used of it is not read."""
    return RunRow(*(runs[number, i] for i in range(len(RunRow._fields))))
