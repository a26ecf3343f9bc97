"""Local search for placements: balance the area at the least cost in rows, then save rows at that balance.

The cost of a rank is the number of distinct keys its chunks need. Two kinds of steps, both exchanging one chunk of a
rank with one of another, so that numbers of chunks never change:

- while the fullest rank is over the limit, the exchange that lowers it at the fewest extra rows per area moved;
- then, rank after rank, any exchange that saves rows within the limit, until a sweep finds none.

The key axis is cut into segments at all ends of needs; `count[rank, segment]` says how many chunks of a rank need a
segment. A chunk's needs are a few runs of segments, so that what it costs to add a chunk anywhere is a difference of
prefix sums, for all pairs at once.
"""

from __future__ import annotations

import numpy as np
import torch

from .needs import Spans

__all__ = ["LocalSearch", "local_search"]

RUNS = 8  # runs of needed keys kept for a chunk; smaller gaps are closed, which only makes the search less exact
PAIRS = 1 << 13  # pairs of chunks tried at a time, which limits the ranks tried as partners of one rank
SWEEPS = 4
EXACT = 4  # exchanges whose cost is counted exactly before the best is made


def local_search(
    areas: torch.Tensor,
    needs: Spans,
    owner: torch.Tensor,
    world: int,
    limit: float,
    key_owner: torch.Tensor | None,
    chunk_size: int,
) -> torch.Tensor:
    """A better placement: int64 `(chunks,)`, the rank of each chunk.

    areas: int64 `(chunks,)`. needs: by chunk. owner: where the search begins. limit: what a rank's area should not
    pass; where the search finds no way there, as little above as it found. key_owner: int64, rank of each key chunk of
    `chunk_size` rows where keys stay; None where they follow queries.
    """
    search = LocalSearch(areas, needs, owner, world, key_owner, chunk_size)
    search.balance(limit)
    search.save_rows(max(limit, search.area.max()))
    return torch.from_numpy(search.owner)


class LocalSearch:
    """The state of a search; arrays are indexed by chunk, rank and segment."""

    def __init__(
        self,
        areas: torch.Tensor,
        needs: Spans,
        owner: torch.Tensor,
        world: int,
        key_owner: torch.Tensor | None,
        chunk_size: int,
        places: torch.Tensor | None = None,
    ) -> None:
        """places: int64 `(chunks,)`, ascending: where the chunks are in the sequence, if they are not all of it."""
        chunks = len(areas)
        self.chunk_size = chunk_size
        self.owner = owner.numpy().copy()
        self.chunk_area = areas.numpy().astype(np.float64)
        self.area = np.bincount(self.owner, weights=self.chunk_area, minlength=world)
        self.members = np.argsort(self.owner, kind="stable").reshape(world, -1)
        group, lo, hi = (x.numpy() for x in _few_runs(needs, RUNS))
        own = np.arange(chunks if key_owner is None else len(key_owner)) if places is None else places.numpy()
        edges = np.unique(np.concatenate([lo, hi, own * chunk_size, (own + 1) * chunk_size]))
        self.length = np.diff(edges).astype(np.int32)
        # The chunk whose rows a segment is, -1 if it is none of these.
        self.key_chunk = np.searchsorted(own * chunk_size, edges[:-1], side="right") - 1
        self.key_chunk[edges[:-1] >= (own[self.key_chunk] + 1) * chunk_size] = -1
        self.held = None if key_owner is None else key_owner.numpy()[self.key_chunk]
        runs = np.bincount(group, minlength=chunks)
        slot = np.arange(len(group)) - (runs.cumsum() - runs)[group]
        # Chunk c needs segments [begin[c, j], end[c, j)) for each j; missing runs are [0, 0).
        self.begin = np.zeros((chunks, max(1, int(runs.max(initial=0)))), np.int64)
        self.end = np.zeros_like(self.begin)
        self.begin[group, slot] = np.searchsorted(edges, lo)
        self.end[group, slot] = np.searchsorted(edges, hi)
        first = self.owner[:, None] * len(edges)
        shape = world * len(edges)
        steps = np.bincount((first + self.begin).ravel(), minlength=shape)
        steps -= np.bincount((first + self.end).ravel(), minlength=shape)
        self.count = steps.reshape(world, -1).cumsum(1)[:, :-1].astype(np.int32)
        # missing[r, s]: rows of the segments before s that no chunk of rank r needs.
        self.missing = np.zeros((world, len(edges)), np.int32)
        self.saving = np.zeros(chunks, np.int64)  # rows that only this chunk of its rank needs
        for rank in range(world):
            self._refresh(rank)

    def balance(self, limit: float) -> None:
        """Brings every rank's area to the limit, or as near as exchanges can."""
        for _ in range(4 * len(self.owner)):
            rank = int(self.area.argmax())
            if self.area[rank] <= limit:
                return
            partners = self.partners(rank, self.area)
            price, mine, theirs = self.cheapest(rank, partners, self.chunk_area, self.area, limit)
            if price == np.inf:
                return
            partner = np.array([self.owner[theirs]])
            # What made the first exchange cheap often makes more cheap: rows are there now that others need too.
            first = price
            while price <= first < np.inf:
                self.exchange(mine, theirs)
                if self.area[rank] <= limit:
                    break
                price, mine, theirs = self.cheapest(rank, partner, self.chunk_area, self.area, limit)

    def cheapest(
        self,
        rank: int,
        partners: np.ndarray,
        weight: np.ndarray,
        load: np.ndarray,
        goal: float,
        area_limit: float = np.inf,
        rows: np.ndarray | None = None,
        most_rows: float = np.inf,
    ) -> tuple[float, int, int]:
        """The exchange that lowers a rank's load towards the goal at the least price in rows per load moved.

        weight, load: of chunks and of ranks, the area or another. rows: that ranks need; where there are exchanges
        after which neither rank needs more than `most_rows`, it is one of these. Returns `(price, mine, theirs)`; price
        inf if there is none.
        """
        mine, theirs, here, there = self._exchanges(rank, partners)
        extra = here + there
        moved = weight[mine] - weight[theirs][:, None]
        after = load[self.owner[theirs]][:, None] + moved
        fits = (moved > 0) & self._within(rank, mine, theirs, area_limit)
        if rows is not None:
            few = (rows[rank] + here <= most_rows) & (rows[self.owner[theirs]][:, None] + there <= most_rows)
            fits = fits & few if (fits & few & (after <= goal)).any() else fits
        allowed = fits & (after <= goal)
        if not allowed.any():
            allowed = fits & (after < load[rank])
        useful = np.minimum(moved, load[rank] - goal)
        price = np.full(extra.shape, np.inf)
        np.divide(extra + self.chunk_size, useful, out=price, where=allowed)
        at = int(price.argmin())
        return float(price.flat[at]), int(mine[at % len(mine)]), int(theirs[at // len(mine)])

    def _within(self, rank: int, mine: np.ndarray, theirs: np.ndarray, limit: float) -> np.ndarray:
        """Whether both areas stay within the limit in each exchange, bool `(theirs, mine)`."""
        moved = self.chunk_area[mine] - self.chunk_area[theirs][:, None]
        return (self.area[self.owner[theirs]][:, None] + moved <= limit) & (self.area[rank] - moved <= limit)

    def save_rows(self, limit: float) -> None:
        """Exchanges that save rows while no area passes the limit, until there are none (or SWEEPS sweeps)."""
        for _ in range(SWEEPS):
            changed = [self._save_rows_of(rank, limit) for rank in range(len(self.area))]
            if not any(changed):
                return

    def _save_rows_of(self, rank: int, limit: float) -> bool:
        changed = False
        while True:
            mine, theirs, here, there = self._exchanges(rank, self.partners(rank))
            extra = np.where(self._within(rank, mine, theirs, limit), here + there, np.iinfo(np.int64).max).ravel()
            # The cheapest, the first among equals: which of these a partial sort takes differs between processors.
            worst = np.partition(extra, min(EXACT, len(extra)) - 1)[min(EXACT, len(extra)) - 1]
            nearest = (extra <= min(worst, 0)).nonzero()[0]
            nearest = nearest[extra[nearest].argsort(kind="stable")][:EXACT]
            pairs = [(mine[at % len(mine)], theirs[at // len(mine)]) for at in nearest if extra[at] <= 0]
            counted = [(self._extra_rows(a, b), a, b) for a, b in pairs]
            best = min(counted, default=(0, 0, 0))
            if best[0] >= 0:
                return changed
            self.exchange(best[1], best[2])
            changed = True

    def partners(self, rank: int, load: np.ndarray | None = None) -> np.ndarray:
        """Ranks worth an exchange with this one, ascending: where one of its chunks costs least, or least loaded."""
        world, size = self.members.shape
        others = np.arange(world) != rank
        limit = max(8, PAIRS // size**2)
        if world > limit + 1:
            added = self._added(np.arange(world)[:, None], self.members[rank]).min(1)
            added[rank] = np.iinfo(added.dtype).max
            chosen = added.argsort(kind="stable")[:limit]
            if load is not None:
                chosen = np.concatenate([chosen[: limit // 2], load.argsort(kind="stable")[: limit // 2]])
            picked = np.zeros(world, bool)
            picked[chosen] = True
            others &= picked
        return others.nonzero()[0]

    def fewest(self, rank: int, load: np.ndarray, limit: float, movable: np.ndarray) -> tuple[int, int] | None:
        """The exchange after which a rank and its partner need fewest rows, if that is fewer than the rank needs now.

        load: rows that ranks need. limit: of areas. movable: bool by chunk, which of the rank's may leave.
        """
        mine, theirs, here, there = self._exchanges(rank, self.partners(rank))
        after = np.maximum(load[rank] + here, load[self.owner[theirs]][:, None] + there)
        allowed = self._within(rank, mine, theirs, limit) & movable[mine]
        after = np.where(allowed, after, np.iinfo(np.int64).max)
        at = int(after.argmin())
        if after.flat[at] >= load[rank]:
            return None
        return int(mine[at % len(mine)]), int(theirs[at // len(mine)])

    def _exchanges(self, rank: int, partners: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """All exchanges of a chunk of `rank` with one of `partners`: `(mine, theirs, extra here, extra there)`.

        Extra rows of the rank and of the partner, `(theirs, mine)`, treat what leaves and what comes as independent.
        """
        mine, theirs = self.members[rank], self.members[partners].reshape(-1)
        here = self._added(np.array(rank), theirs)[:, None] - self.saving[mine]
        added = self._added(partners[:, None], mine)
        there = np.repeat(added, self.members.shape[1], axis=0) - self.saving[theirs][:, None]
        return mine, theirs, here, there

    def _added(self, ranks: np.ndarray, chunks: np.ndarray) -> np.ndarray:
        """Rows that a rank would need besides if it got a chunk; the two index arrays broadcast."""
        added = self.missing[ranks, self.end[chunks, 0]] - self.missing[ranks, self.begin[chunks, 0]]
        for run in range(1, self.begin.shape[1]):
            added += self.missing[ranks, self.end[chunks, run]] - self.missing[ranks, self.begin[chunks, run]]
        return added

    def _extra_rows(self, a: int, b: int) -> int:
        """Exact number of extra rows if chunks a and b of two ranks change places."""
        extra = 0
        for rank, leaves, comes in ((self.owner[a], a, b), (self.owner[b], b, a)):
            row = self.count[rank].copy()
            self._move(row, leaves, comes)
            change = (row > 0).view(np.int8) - (self.count[rank] > 0).view(np.int8)
            extra += int(change @ self._lengths(rank))
        return extra

    def exchange(self, a: int, b: int) -> None:
        ranks = self.owner[a], self.owner[b]
        for rank, leaves, comes in ((ranks[0], a, b), (ranks[1], b, a)):
            self._move(self.count[rank], leaves, comes)
            members = self.members[rank]
            members[members == leaves] = comes
            self.area[rank] += self.chunk_area[comes] - self.chunk_area[leaves]
        self.owner[a], self.owner[b] = ranks[1], ranks[0]
        for rank in ranks:
            self._refresh(rank)

    def _move(self, row: np.ndarray, leaves: int, comes: int) -> None:
        for chunk, step in ((leaves, -1), (comes, 1)):
            for begin, end in zip(self.begin[chunk], self.end[chunk], strict=True):
                row[begin:end] += step

    def _refresh(self, rank: int) -> None:
        """Recomputes what depends on the needs of one rank."""
        lengths, count = self._lengths(rank), self.count[rank]
        np.cumsum(lengths * (count == 0), out=self.missing[rank, 1:])
        alone = np.zeros(len(lengths) + 1, np.int32)
        np.cumsum(lengths * (count == 1), out=alone[1:])
        members = self.members[rank]
        self.saving[members] = (alone[self.end[members]] - alone[self.begin[members]]).sum(1)

    def _lengths(self, rank: int) -> np.ndarray:
        return self.length if self.held is None else self.length * (self.held != rank)


def _few_runs(needs: Spans, limit: int) -> Spans:
    """At most `limit` spans a group: the smallest gaps are closed."""
    group, lo, hi = needs
    if len(group) <= limit or int(torch.bincount(group).max()) <= limit:
        return needs
    starts = torch.ones_like(group, dtype=torch.bool)
    starts[1:] = group[1:] != group[:-1]
    gap = lo.clone()
    gap[1:] -= hi[:-1]
    gap[starts] = torch.iinfo(torch.int64).max  # the first span of a group always begins a run
    widest = gap.argsort(descending=True, stable=True)
    widest = widest[group[widest].argsort(stable=True)]
    runs = torch.bincount(group)
    place = torch.arange(len(group), device="cpu") - (runs.cumsum(0) - runs)[group]
    begins = torch.zeros_like(starts)
    begins[widest[place < limit]] = True
    first = begins.nonzero().squeeze(1)
    last = torch.cat([first[1:], torch.tensor([len(group)], device="cpu")]) - 1
    return Spans(group[first], lo[first], hi[last])
