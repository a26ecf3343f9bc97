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
    search = LocalSearch(areas, needs, owner, world, None, chunk_size)
    area_limit = max(limit, float(search.area.max()))
    rows = int(search.needed.sum())
    most = rows + MOST_EXTRA * rows
    own = search.members.shape[1] * chunk_size
    movable = np.ones(len(search.owner))
    popular, sent = _sent(search)
    for _ in range(len(search.owner)):
        rank, goal = int(sent.argmax()), float(search.needed.max()) - own
        if sent[rank] <= goal:
            break
        pairs = search.pairs(rank, sent)
        price, mine, theirs = search.lowering(pairs, popular * movable, sent, goal, area_limit).best()
        if price == np.inf:
            break
        search.exchange(mine, theirs)
        popular_now, sent_now = _sent(search)
        if sent_now[rank] >= sent[rank] or search.needed.sum() > most:  # it may bring new needs of the rank's own rows
            search.exchange(mine, theirs)
            movable[mine] = 0
            continue
        popular, sent = popular_now, sent_now
    return torch.from_numpy(search.owner)


def _sent(search: LocalSearch) -> tuple[np.ndarray, np.ndarray]:
    """Rows that leave each chunk, and each rank."""
    popular = search.leaving()
    return popular, np.bincount(search.owner, popular, minlength=len(search.area))
