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

from typing import NamedTuple

import numpy as np
import torch

from .needs import Spans

__all__ = ["LocalSearch", "local_search"]

RUNS = 8  # runs of needed keys kept for a chunk; smaller gaps are closed, which only makes the search less exact
PAIRS = 1 << 13  # pairs of chunks tried at a time, which limits the ranks tried as partners of one rank
SWEEPS = 4
NEVER = (1 << 31) - 1  # rows: more than there are
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
        self.users = (self.count > 0).sum(0, dtype=np.int32)  # ranks that need each segment
        # missing[r, s]: rows of the segments before s that no chunk of rank r needs.
        self.missing = np.zeros((world, len(edges)), np.int32)
        self.saving = np.zeros(chunks, np.int32)  # rows that only this chunk of its rank needs
        # alone[r, s]: rows of the segments before s that exactly one chunk of rank r needs.
        self.alone = np.zeros((world, len(edges)), np.int32)
        for rank in range(world):
            self._refresh(rank)

    @property
    def needed(self) -> np.ndarray:
        """Rows that each rank needs, its own included, where keys follow queries."""
        return self.length.sum() - self.missing[:, -1]

    def balance(self, limit: float) -> None:
        """Brings every rank's area to the limit, or as near as exchanges can."""
        for _ in range(4 * len(self.owner)):
            rank = int(self.area.argmax())
            if self.area[rank] <= limit:
                return
            price, mine, theirs = self.cheapest(self.pairs(rank, self.area), self.chunk_area, self.area, limit)
            if price == np.inf:
                return
            partner = np.array([self.owner[theirs]])
            # What made the first exchange cheap often makes more cheap: rows are there now that others need too.
            first = price
            while price <= first < np.inf:
                self.exchange(mine, theirs)
                if self.area[rank] <= limit:
                    break
                price, mine, theirs = self.cheapest(self.pairs_with(rank, partner), self.chunk_area, self.area, limit)

    def cheapest(
        self,
        pairs: Pairs,
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
        rank, partners = pairs.rank, pairs.partners
        moved = weight[pairs.mine] - weight[pairs.theirs][:, :, None]
        room = (goal - load[partners])[:, None, None]
        fits = moved > 0
        if area_limit < np.inf:
            fits &= self._within(pairs, area_limit)
        allowed = fits & (moved <= room)
        if rows is not None:
            few = pairs.few_rows(most_rows - rows[rank], most_rows - rows[partners]) & allowed
            allowed = few if few.any() else allowed
        at = allowed.ravel().nonzero()[0]
        if not len(at):
            at = (fits & (moved < (load[rank] - load[partners])[:, None, None])).ravel().nonzero()[0]
        if not len(at):
            return np.inf, 0, 0
        price = (pairs.extra.ravel()[at] + self.chunk_size) / np.minimum(moved.ravel()[at], load[rank] - goal)
        best = int(price.argmin())
        return float(price[best]), *pairs.one(int(at[best]))

    def _within(self, pairs: Pairs, limit: float) -> np.ndarray:
        """Whether both areas stay within the limit in each exchange, bool `(partners, theirs, mine)`."""
        area = self.chunk_area
        moved = area[pairs.mine] - area[pairs.theirs][:, :, None]
        most = limit - self.area[pairs.partners]
        return (moved <= most[:, None, None]) & (moved >= self.area[pairs.rank] - limit)

    def save_rows(self, limit: float) -> None:
        """Exchanges that save rows while no area passes the limit, until there are none (or SWEEPS sweeps)."""
        is_new = np.ones(len(self.area), bool)  # ranks that have changed since they were looked at
        for _ in range(SWEEPS):
            for rank in is_new.nonzero()[0].tolist():
                self._save_rows_of(rank, limit, is_new)
            if not is_new.any():
                return

    def _save_rows_of(self, rank: int, limit: float, is_new: np.ndarray) -> None:
        while True:
            pairs = self.pairs(rank)
            extra = pairs.extra.ravel()
            at = (extra <= 0).nonzero()[0]
            at = at[self._keeps(rank, *pairs.of(at), limit)]
            if len(at) > EXACT:  # the first among equals: which a partial sort takes differs between processors
                at = at[extra[at] <= np.partition(extra[at], EXACT - 1)[EXACT - 1]]
            at = at[extra[at].argsort(kind="stable")][:EXACT]
            chunks = zip(extra[at].tolist(), *(x.tolist() for x in pairs.of(at)), strict=True)
            counted = [(rows + self._kept(a, b) + self._kept(b, a), a, b) for rows, a, b in chunks]
            best = min(counted, default=(0, 0, 0))
            if best[0] >= 0:
                break
            is_new[self.owner[best[2]]] = True
            self.exchange(best[1], best[2])
        is_new[rank] = False

    def _keeps(self, rank: int, mine: np.ndarray, theirs: np.ndarray, limit: float) -> np.ndarray:
        """Whether both areas stay within the limit, bool like the chunks exchanged."""
        moved = self.chunk_area[mine] - self.chunk_area[theirs]
        return (self.area[self.owner[theirs]] + moved <= limit) & (self.area[rank] - moved <= limit)

    def pairs(self, rank: int, load: np.ndarray | None = None) -> Pairs:
        """All exchanges of a chunk of a rank with one of a partner worth it: where one of its chunks costs least, or,
        if `load` is given, least loaded."""
        world, size = self.members.shape
        added = self._added(np.arange(world)[:, None], self.members[rank])
        picked = np.ones(world, bool)
        limit = max(8, PAIRS // size**2)
        if world > limit + 1:
            least = added.min(1)
            least[rank] = NEVER
            chosen = least.argsort(kind="stable")[:limit]
            if load is not None:
                chosen = np.concatenate([chosen[: limit // 2], load.argsort(kind="stable")[: limit // 2]])
            picked[:] = False
            picked[chosen] = True
        picked[rank] = False
        partners = picked.nonzero()[0]
        return self._pairs(rank, partners, added[partners])

    def pairs_with(self, rank: int, partners: np.ndarray) -> Pairs:
        return self._pairs(rank, partners, self._added(partners[:, None], self.members[rank]))

    def _pairs(self, rank: int, partners: np.ndarray, go: np.ndarray) -> Pairs:
        mine, theirs = self.members[rank], self.members[partners]
        come = self._added(np.array(rank), theirs)
        return Pairs(rank, partners, mine, theirs, come, self.saving[mine], go, self.saving[theirs])

    def fewest(self, rank: int, load: np.ndarray, limit: float, movable: np.ndarray) -> tuple[int, int] | None:
        """The exchange after which a rank and its partner need fewest rows, if that is fewer than the rank needs now.

        load: rows that ranks need. limit: of areas. movable: bool by chunk, which of the rank's may leave.
        """
        pairs = self.pairs(rank)
        after = np.maximum(pairs.here + load[rank], pairs.there + load[pairs.partners][:, None, None])
        allowed = self._within(pairs, limit) & movable[pairs.mine]
        after = np.where(allowed, after, NEVER)
        at = int(after.argmin())
        return None if after.flat[at] >= load[rank] else pairs.one(at)

    def _added(self, ranks: np.ndarray, chunks: np.ndarray) -> np.ndarray:
        """Rows that a rank would need besides if it got a chunk; the two index arrays broadcast."""
        missing, first = self.missing.reshape(-1), ranks * self.missing.shape[1]
        added: np.ndarray = missing.take(first + self.end[chunks, 0])
        added -= missing.take(first + self.begin[chunks, 0])
        for run in range(1, self.begin.shape[1]):
            added += missing.take(first + self.end[chunks, run]) - missing.take(first + self.begin[chunks, run])
        return added

    def _kept(self, leaves: int, comes: int) -> int:
        """Rows that a rank goes on to need when `comes` takes the place of `leaves`, which needed them alone."""
        alone, rows = self.alone[self.owner[leaves]], 0
        others = list(zip(self.begin[comes].tolist(), self.end[comes].tolist(), strict=True))
        for begin, end in zip(self.begin[leaves].tolist(), self.end[leaves].tolist(), strict=True):
            for first, last in others:
                if begin < last and first < end:
                    rows += int(alone[min(end, last)] - alone[max(begin, first)])
        return rows

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
        for begin, end in zip(self.begin[leaves].tolist(), self.end[leaves].tolist(), strict=True):
            row[begin:end] -= 1
            self.users[begin:end] -= row[begin:end] == 0
        for begin, end in zip(self.begin[comes].tolist(), self.end[comes].tolist(), strict=True):
            self.users[begin:end] += row[begin:end] == 0
            row[begin:end] += 1

    def _refresh(self, rank: int) -> None:
        """Recomputes what depends on the needs of one rank."""
        lengths, count, alone = self._lengths(rank), self.count[rank], self.alone[rank]
        np.add.accumulate(lengths * (count == 0), out=self.missing[rank, 1:])
        np.add.accumulate(lengths * (count == 1), out=alone[1:])
        members = self.members[rank]
        self.saving[members] = (alone[self.end[members]] - alone[self.begin[members]]).sum(1)

    def _lengths(self, rank: int) -> np.ndarray:
        return self.length if self.held is None else self.length * (self.held != rank)


class Pairs(NamedTuple):
    """Exchanges of chunks `mine` of a rank with chunks `theirs`, `(partners, theirs)`, of its partners.

    come: rows that the rank would need besides with each of `theirs`. stay: that it would need no more without each of
    its own. go, free: the same of partners: `(partners, mine)` and `(partners, theirs)`. What leaves and what comes are
    taken to be independent.
    """

    rank: int
    partners: np.ndarray
    mine: np.ndarray
    theirs: np.ndarray
    come: np.ndarray
    stay: np.ndarray
    go: np.ndarray
    free: np.ndarray

    @property
    def here(self) -> np.ndarray:
        """Extra rows of the rank, int32 `(partners, theirs, mine)`; `there` those of the partner, `extra` of both."""
        return self.come[:, :, None] - self.stay

    @property
    def there(self) -> np.ndarray:
        return self.go[:, None, :] - self.free[:, :, None]

    @property
    def extra(self) -> np.ndarray:
        return (self.come - self.free)[:, :, None] + (self.go - self.stay)[:, None, :]

    def few_rows(self, here: float, there: np.ndarray) -> np.ndarray:
        """Where the rank needs at most so many more rows, and each partner at most so many."""
        most = self.free + there[:, None]
        return (self.come[:, :, None] <= self.stay + here) & (self.go[:, None, :] <= most[:, :, None])

    def of(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The chunks at places of a flat array of all exchanges: its own, and theirs."""
        theirs, mine = np.divmod(places, len(self.mine))
        return self.mine[mine], self.theirs.reshape(-1)[theirs]

    def one(self, place: int) -> tuple[int, int]:
        mine, theirs = self.of(np.array(place))
        return int(mine), int(theirs)


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
