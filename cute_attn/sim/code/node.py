"""One step of a warp through a kernel: a compiled segment, a branch, a synchronising operation, or the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .ptx import Instruction
from .template import Group

SEGMENT, BRANCH, SYSTEM, EXIT = range(4)


@dataclass
class Node:
    """One step of a warp. `touched`, `written` and `constant` are sets of wgmma registers as bits."""

    kind: int
    instruction: Instruction
    next: int = -1
    # segments
    groups: list[Group] = field(default_factory=list)
    function: Any = None
    file_rows: Any = None  # what it touches and writes, when it was asked for
    touched: int = 0
    written: int = 0
    constant: int = 0  # to which a constant is moved last
    weight: int = 0
    warpgroup: bool = False  # has wgmmas: four warps together
    polls: bool = False  # re-reads what others may change
    publishes: bool = False  # tells those who poll
    # branches
    target: int = -1
    row: int = -1
    negated: bool = False
    join: int | None = None
    # synchronising operations: called with (cta, group, node), true if the group goes on
    operation: Callable[..., bool] | None = None
    detail: Any = None
    spins: bool = False
