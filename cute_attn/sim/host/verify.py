"""Runs a case under every schedule and searches, from what its warps did to synchronise, all other orders too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import SimError
from ..launch import Launch, Report
from ..skeleton.check import Checked, check
from ..skeleton.program import Refused, difference, skeleton_of
from ..state.steps import Recorder
from .capture import recorded
from .strict import SCHEDULES, strict

Record = tuple[Launch, Recorder]


@dataclass
class Verified:
    """What the search says of one launch: checked, or why there is nothing to search.

    kernel: its name. ctas: how many. checked: what was found. refused: why it was not searched.
    """

    kernel: str
    ctas: int
    checked: Checked | None
    refused: str = ""

    @property
    def holds(self) -> bool:
        return self.checked is not None and self.checked.verified

    def __str__(self) -> str:
        if self.checked is None:
            return f"not searched: {self.refused}"
        if self.checked.found:
            return str(self.checked.found)
        return "no deadlock in any order" if self.holds else f"undecided: {'; '.join(self.checked.races.values())}"


def verify(
    function: Any,
    *args: Any,
    deterministic: bool = False,
    ptx: str | None = None,
    fresh: Sequence[torch.Tensor | None] = (),
    warn: Sequence[type[SimError]] | None = None,
) -> tuple[Report, list[Verified]]:
    """Runs `function(*args)` as `strict` does, then searches all orders of what its warps did to synchronise.

    What it proves and what not: docs/simulator.md.

    Args: as for `strict`.

    Returns:
        The report of `strict`, and of each launch whether it holds in all orders.

    Raises:
        What `strict` does.
        ValueError: for a function that launches nothing.
    """
    with recorded() as records:
        report = strict(function, *args, deterministic=deterministic, ptx=ptx, fresh=fresh, warn=warn)
    if not records:
        raise ValueError("function launched no kernel: there is nothing to verify")
    launches = [(launch.kernel, launch.grid, launch.block) for launch, _ in records]
    count, left = divmod(len(records), len(SCHEDULES))
    if left or launches != launches[:count] * len(SCHEDULES):
        return report, [Verified("all", 0, None, "two schedules launched different kernels")]
    return report, [verified(records[i::count]) for i in range(count)]


def verified(runs: Sequence[Record]) -> Verified:
    """The search for one launch, recorded in several schedules."""
    (launch, _), *_ = runs
    found = Verified(launch.kernel, launch.grid[0] * launch.grid[1] * launch.grid[2], None)
    try:
        first, *others = (skeleton_of(recorder) for _, recorder in runs)
        for other in others:
            if different := difference(first, other):
                raise Refused(different)
        found.checked = check(first)
    except Refused as refused:
        found.refused = str(refused)
    return found
