"""Names of accesses, as numbers: who made them, when on the clock of that warp or mbarrier, at which instruction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .order import Order

_SITE_BITS, _CLOCK_BITS = 17, 21
_PROXY = 1 << _SITE_BITS
CLOCK_SHIFT = _SITE_BITS + 1
AGENT_SHIFT = CLOCK_SHIFT + _CLOCK_BITS
IN_FLIGHT = (1 << _CLOCK_BITS) - 1  # when: it is not over for anybody yet
NONE = 0  # no access


class Epoch(NamedTuple):
    """One access. agent: a warp or an mbarrier, numbered through the launch. proxy: whether it was asynchronous."""

    agent: int
    clock: int
    proxy: bool
    site: int


def packed(agent: Any, clock: Any, site: Any, *, proxy: bool = False) -> Any:
    """An access as one number, above NONE; of arrays, many."""
    return (agent << AGENT_SHIFT) | (clock << CLOCK_SHIFT) | (_PROXY if proxy else 0) | site


def unpacked(epoch: int) -> Epoch:
    return Epoch(epoch >> AGENT_SHIFT, epoch >> CLOCK_SHIFT & IN_FLIGHT, bool(epoch & _PROXY), epoch & (_PROXY - 1))


def first_agent(order: Order) -> int:
    """What to add to the number of a warp, or of an mbarrier, of a cluster."""
    return order.number * len(order.clock)


def ends(order: Order, barriers: Sequence[Any], site: int) -> tuple[int, ...]:
    """A copy that will report to these mbarriers: by each, for whoever sees one of them knows that it is over.

    () if not all of them have a clock.
    """
    if any(barrier.order is None for barrier in barriers):
        return ()
    clocks = [barrier.clock for barrier in barriers]
    return tuple(packed(first_agent(order) + x, int(order.clock[x]) + 1, site, proxy=True) for x in clocks)


def unordered(order: Order, warps: np.ndarray, epochs: np.ndarray, *, table: int = 0) -> np.ndarray:
    """Which of these accesses, none of them NONE, nothing orders before what a warp each does now. Flat arrays.

    table: of the order. In table 0 a warp's own accesses are ordered; in others asynchronous accesses count as there.
    """
    agents, when = epochs >> AGENT_SHIFT, epochs >> CLOCK_SHIFT & IN_FLIGHT
    clusters, who = np.divmod(agents, len(order.clock))
    tables = np.where(epochs & _PROXY, 0, table)
    own = clusters == order.number
    late = when > order.seen[warps, tables, np.where(own, who, 0)]
    late &= ~(own & (who == warps) & (tables == 0)) | (when == IN_FLIGHT)
    if not own.all():
        for warp, cluster in set(zip(warps[~own].tolist(), clusters[~own].tolist(), strict=True)):
            here = (warps == warp) & (clusters == cluster)
            seen = order.elsewhere[warp].get(cluster)
            late[here] = True if seen is None else when[here] > seen[-(tables[here] != 0).astype(np.intp), who[here]]
    return late
