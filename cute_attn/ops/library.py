"""The arguments that several custom ops have."""

from __future__ import annotations

from ..backends.plan import Plan

__all__ = ["PLAN_SCHEMA", "SOURCE_SCHEMA"]

# The fields of a Plan, and of a MaskSource, one argument each.
PLAN_SCHEMA = ", ".join(f"Tensor{'' if name in ('lo', 'hi', 'form') else '?'} {name}" for name in Plan._fields)
SOURCE_SCHEMA = (
    "str kind, Tensor? first, Tensor? second, Tensor? third, SymInt window_left, SymInt window_right, SymInt heads, "
    "SymInt chunk, SymInt offset"
)
