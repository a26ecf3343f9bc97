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

    kernel: its name. ctas: how many. resident: how many of these, or of their clusters, must be on the GPU together
    that none waits for ever, if they start in the order of their index.
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
        return "no deadlock in any order" if self.checked.complete else "undecided: too many orders"


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
    """
    with recorded() as records:
        report = strict(function, *args, deterministic=deterministic, ptx=ptx, fresh=fresh, warn=warn)
    count, left = divmod(len(records), len(SCHEDULES))
    if left or any(r[0].kernel != records[i % count][0].kernel for i, r in enumerate(records)):
        return report, [Verified("all", 0, None, "two schedules launched different kernels")]
    return report, [verified(records[i::count]) for i in range(count)]


def verified(runs: Sequence[Record], searched_states: int | None = None) -> Verified:
    """The search for one launch, recorded in several schedules."""
    (launch, _), *_ = runs
    found = Verified(launch.kernel, launch.grid[0] * launch.grid[1] * launch.grid[2], None)
    try:
        first, *others = (skeleton_of(recorder) for _, recorder in runs)
        for other in others:
            if different := difference(first, other):
                raise Refused(different)
        found.checked = check(first) if searched_states is None else check(first, searched_states)
    except Refused as refused:
        found.refused = str(refused)
    return found
