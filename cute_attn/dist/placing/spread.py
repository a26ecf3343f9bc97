"""After the search: chunks that many ranks read go to different ranks, so that no sender is the bottleneck."""

from __future__ import annotations

import numpy as np
import torch

from .locality import LocalSearch
from .needs import Spans

__all__ = ["spread_senders"]

MOST_EXTRA = 0.1  # of the rows that all ranks need, what all exchanges together may add


def spread_senders(
    areas: torch.Tensor, needs: Spans, owner: torch.Tensor, world: int, limit: float, chunk_size: int
) -> torch.Tensor:
    """A placement of self-attention in which the busiest rank sends no more than the busiest receives, if that can be.

    Exchanges chunks at the least cost in rows per row that the busiest sender sends less, while areas stay within the
    limit (or the largest area, if that is above). Arguments and result as for `local_search`.
    """
    state = _Traffic(LocalSearch(areas, needs, owner, world, None, chunk_size))
    search = state.search
    area_limit = max(limit, float(search.area.max()))
    budget = MOST_EXTRA * float(state.needed.sum())
    movable = np.ones(len(search.owner))
    popular, sent = state.sent()
    for _ in range(len(search.owner)):
        rank, goal = int(sent.argmax()), float(state.needed.max()) - search.members.shape[1] * chunk_size
        if sent[rank] <= goal:
            break
        partners = search.partners(rank, sent)
        price, mine, theirs = search.cheapest(rank, partners, popular * movable, sent, goal, area_limit)
        if price == np.inf:
            break
        extra = state.exchange(mine, theirs)
        popular_now, sent_now = state.sent()
        if sent_now[rank] >= sent[rank] or extra > budget:  # a chunk may bring new needs of the rank's own rows
            state.exchange(mine, theirs)
            movable[mine] = 0
            continue
        budget -= extra
        popular, sent = popular_now, sent_now
    return torch.from_numpy(search.owner)


class _Traffic:
    """Rows needed and sent, kept up to date with a search. Each chunk's keys are its own rows.

    users: ranks that need each segment. needed: rows that each rank needs, its own included.
    """

    def __init__(self, search: LocalSearch) -> None:
        self.search = search
        used = search.count > 0
        self.users = used.sum(0)
        self.needed = used @ search.length

    def exchange(self, a: int, b: int) -> int:
        """Exchanges two chunks; returns how many more rows are needed."""
        ranks = [self.search.owner[a], self.search.owner[b]]
        before = self.search.count[ranks] > 0
        self.search.exchange(a, b)
        after = self.search.count[ranks] > 0
        self.users += after.sum(0) - before.sum(0)
        extra: np.ndarray = after @ self.search.length - before @ self.search.length
        self.needed[ranks] += extra
        return int(extra.sum())

    def sent(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows that leave each chunk, and each rank."""
        search = self.search
        holder = search.owner[search.key_chunk]
        others = self.users - (search.count[holder, np.arange(len(holder))] > 0)
        popular = np.bincount(search.key_chunk, search.length * others, minlength=len(search.owner))
        return popular, np.bincount(search.owner, popular, minlength=len(search.area))
