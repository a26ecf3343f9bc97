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

__all__ = ["LocalSearch", "Offers", "local_search"]

RUNS = 8  # runs of needed keys kept for a chunk; smaller gaps are closed, which only makes the search less exact
PAIRS = 1 << 13  # pairs of chunks tried at a time, which limits the ranks tried as partners of one rank
SWEEPS = 4
NEVER = (1 << 31) - 1  # rows: more than there are
ALONE = np.arange(2, dtype=np.int32)[:, None, None]  # chunks of a rank that need a segment: none, or one alone
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
        self.slot = np.empty(chunks, np.int64)  # of each chunk among those of its rank
        self.slot[self.members.ravel()] = np.tile(np.arange(self.members.shape[1]), world)
        group, lo, hi = (x.numpy() for x in _few_runs(needs, RUNS))
        own = np.arange(chunks if key_owner is None else len(key_owner)) if places is None else places.numpy()
        edges = np.unique(np.concatenate([lo, hi, own * chunk_size, (own + 1) * chunk_size]))
        self.length = np.diff(edges).astype(np.int32)
        # The chunk whose rows a segment is, -1 if it is none of these.
        self.key_chunk = np.searchsorted(own * chunk_size, edges[:-1], side="right") - 1
        self.key_chunk[edges[:-1] >= (own[self.key_chunk] + 1) * chunk_size] = -1
        self.inside = (self.key_chunk >= 0).nonzero()[0]  # segments that are rows of these chunks, chunk after chunk
        self.chunk_inside = self.key_chunk[self.inside]
        self.length_inside = self.length[self.inside].astype(np.float64)
        self.first_inside = np.searchsorted(self.chunk_inside, np.arange(len(own)))
        # What each rank must be sent of each segment if it needs it.
        self.lengths = np.broadcast_to(self.length, (world, len(self.length)))
        if key_owner is not None:
            self.lengths = self.length * (key_owner.numpy()[self.key_chunk] != np.arange(world)[:, None])
        runs = np.bincount(group, minlength=chunks)
        slot = np.arange(len(group)) - (runs.cumsum() - runs)[group]
        # Chunk c needs segments [begin[j, c], end[j, c]) for each j; missing runs are [0, 0).
        self.begin = np.zeros((max(1, int(runs.max(initial=0))), chunks), np.int64)
        self.end = np.zeros_like(self.begin)
        self.begin[slot, group] = np.searchsorted(edges, lo)
        self.end[slot, group] = np.searchsorted(edges, hi)
        first = self.owner * len(edges)
        shape = world * len(edges)
        steps = np.bincount((first + self.begin).ravel(), minlength=shape)
        steps -= np.bincount((first + self.end).ravel(), minlength=shape)
        self.count = steps.reshape(world, -1).cumsum(1)[:, :-1].astype(np.int32)
        self.users = (self.count > 0).sum(0, dtype=np.int32)  # ranks that need each segment
        # rows[n, r, s]: rows of the segments before s that no chunk, or exactly one, of rank r needs.
        self.rows = np.zeros((2, world, len(edges)), np.int32)
        self.missing, self.alone = self.rows
        self.saving = np.zeros(chunks, np.int32)  # rows that only this chunk of its rank needs
        self._refresh(slice(world))

    @property
    def needed(self) -> np.ndarray:
        """Rows that each rank needs, its own included, where keys follow queries."""
        return self.length.sum() - self.missing[:, -1]

    def leaving(self) -> np.ndarray:
        """Rows that leave each chunk, once to each other rank that needs them, where keys follow queries."""
        holder = self.owner[self.chunk_inside]
        others = self.users[self.inside] - (self.count[holder, self.inside] > 0)
        rows: np.ndarray = np.add.reduceat(self.length_inside * others, self.first_inside)
        return rows

    def balance(self, limit: float) -> None:
        """Brings every rank's area to the limit, or as near as exchanges can."""
        for _ in range(4 * len(self.owner)):
            rank = int(self.area.argmax())
            if self.area[rank] <= limit:
                return
            price, mine, theirs = self.lowering(self.pairs(rank, self.area), self.chunk_area, self.area, limit).best()
            if price == np.inf:
                return
            partner = np.array([self.owner[theirs]])
            # What made the first exchange cheap often makes more cheap: rows are there now that others need too.
            first = price
            while price <= first < np.inf:
                self.exchange(mine, theirs)
                if self.area[rank] <= limit:
                    break
                pairs = self.pairs_with(rank, partner)
                price, mine, theirs = self.lowering(pairs, self.chunk_area, self.area, limit).best()

    def lowering(
        self,
        pairs: Pairs,
        weight: np.ndarray,
        load: np.ndarray,
        goal: float,
        area_limit: float = np.inf,
        rows: np.ndarray | None = None,
        most_rows: float = np.inf,
    ) -> Offers:
        """Exchanges that lower a rank's load towards the goal, their price in rows per load moved.

        weight, load: of chunks and of ranks, the area or another. rows: that ranks need; where there are exchanges
        after which neither rank needs more than `most_rows`, it is these.
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
        price = (pairs.extra.ravel()[at] + self.chunk_size) / np.minimum(moved.ravel()[at], load[rank] - goal)
        return Offers(pairs, at, price)

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
            at, mine, extra = pairs.of_extra(-1)  # counted exactly, none saves more
            leave, come = pairs.mine[mine], pairs.theirs.reshape(-1)[at]
            kept = self._keeps(rank, leave, come, limit).nonzero()[0]
            if not len(kept):
                break
            extra = extra[kept]
            if len(extra) > EXACT:  # the first among equals: which a partial sort takes differs between processors
                few = extra <= np.partition(extra, EXACT - 1)[EXACT - 1]
                kept, extra = kept[few], extra[few]
            first = extra.argsort(kind="stable")[:EXACT]
            leave, come = leave[kept[first]], come[kept[first]]
            counted = extra[first] + self._kept(leave, come)
            best = min(zip(*(x.tolist() for x in (counted, leave, come)), strict=True))
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
        added = self._rows_of(self.missing, self.members[rank])
        limit = max(8, PAIRS // size**2)
        picked = np.full(world, world <= limit + 1)
        if world > limit + 1:
            least = added.min(1)
            least[rank] = NEVER
            cheap = limit if load is None else limit // 2
            picked[least.argsort(kind="stable")[:cheap]] = True
            if load is not None:
                picked[load.argsort(kind="stable")[: limit // 2]] = True
        picked[rank] = False
        partners = picked.nonzero()[0]
        return self._pairs(rank, partners, added[partners])

    def pairs_with(self, rank: int, partners: np.ndarray) -> Pairs:
        return self._pairs(rank, partners, self._rows_of(self.missing[partners], self.members[rank]))

    def _pairs(self, rank: int, partners: np.ndarray, go: np.ndarray) -> Pairs:
        mine, theirs = self.members[rank], self.members[partners]
        come = self._rows_of(self.missing[rank], theirs)
        return Pairs(rank, partners, mine, theirs, come, self.saving[mine], go, self.saving[theirs])

    def fewest(self, rank: int, load: np.ndarray, limit: float, movable: np.ndarray) -> Offers:
        """Exchanges after which a rank and its partner need fewer rows than the rank does now, their price.

        load: rows that ranks need. limit: of areas. movable: bool by chunk, which of the rank's may leave.
        """
        pairs = self.pairs(rank)
        after = np.maximum(pairs.here + load[rank], pairs.there + load[pairs.partners][:, None, None])
        allowed = self._within(pairs, limit) & movable[pairs.mine] & (after < load[rank])
        at = allowed.ravel().nonzero()[0]
        return Offers(pairs, at, after.ravel()[at].astype(np.float64))

    def _rows_of(self, before: np.ndarray, chunks: np.ndarray) -> np.ndarray:
        """Of the rows before each segment, `(segments,)` or by rank, those that each chunk needs, by rank and chunk:
        with those that a rank is missing, what it would need besides if it got the chunk."""
        rows: np.ndarray = before.take(self.end[0].take(chunks), axis=-1)
        rows -= before.take(self.begin[0].take(chunks), axis=-1)
        for begin, end in zip(self.begin[1:], self.end[1:], strict=True):
            rows += before.take(end.take(chunks), axis=-1)
            rows -= before.take(begin.take(chunks), axis=-1)
        return rows

    def _kept(self, leave: np.ndarray, come: np.ndarray) -> np.ndarray:
        """Rows that each two chunks' ranks go on to need when the chunks are exchanged, though one alone needed them:
        the other needs them too."""
        lo = np.maximum(self.begin[:, None, leave], self.begin[None, :, come])
        hi = np.maximum(np.minimum(self.end[:, None, leave], self.end[None, :, come]), lo)
        here, there = self.owner[leave], self.owner[come]
        rows: np.ndarray = self.alone[here, hi] - self.alone[here, lo] + self.alone[there, hi] - self.alone[there, lo]
        return rows.sum((0, 1))

    def _runs(self, chunk: int) -> list[tuple[int, int]]:
        """The runs of segments that a chunk needs."""
        return list(zip(self.begin[:, chunk].tolist(), self.end[:, chunk].tolist(), strict=True))

    def exchange(self, a: int, b: int) -> None:
        here, there = int(self.owner[a]), int(self.owner[b])
        self._move(a, here, there)
        self._move(b, there, here)
        moved = self.chunk_area[a] - self.chunk_area[b]
        self.area[here] -= moved
        self.area[there] += moved
        self.owner[a], self.owner[b] = there, here
        self.slot[a], self.slot[b] = self.slot[b], self.slot[a]
        self.members[there, self.slot[a]], self.members[here, self.slot[b]] = a, b
        first, last = sorted((here, there))
        self._refresh(slice(first, last + 1, last - first))

    def _move(self, chunk: int, source: int, target: int) -> None:
        for begin, end in self._runs(chunk):
            users = self.users[begin:end]
            left, came = self.count[source, begin:end], self.count[target, begin:end]
            left -= 1
            users -= left == 0
            users += came == 0
            came += 1

    def _refresh(self, ranks: slice) -> None:
        """Recomputes what depends on the needs of some ranks."""
        rows = self.lengths[ranks] * (self.count[ranks] == ALONE)
        np.add.accumulate(rows, axis=2, out=self.rows[:, ranks, 1:])
        for alone, members in zip(self.alone[ranks], self.members[ranks], strict=True):
            self.saving[members] = self._rows_of(alone, members)


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

    def of_extra(self, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Exchanges of at most so many extra rows of both: the places of `theirs` and of `mine`, and these rows."""
        come, go = (self.come - self.free).reshape(-1), self.go - self.stay
        some = (come <= most - go.min(1).repeat(self.theirs.shape[1])).nonzero()[0]
        extra = come[some, None] + go[some // self.theirs.shape[1]]
        at, mine = (extra <= most).nonzero()
        return some[at], mine, extra[at, mine]

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


class Offers(NamedTuple):
    """Some exchanges of pairs, by their places in a flat array of all, and what they cost."""

    pairs: Pairs
    at: np.ndarray
    price: np.ndarray

    def best(self) -> tuple[float, int, int]:
        """The cheapest: `(price, mine, theirs)`; price inf if there is none."""
        if not len(self.at):
            return np.inf, 0, 0
        best = int(self.price.argmin())
        return float(self.price[best]), *self.pairs.one(int(self.at[best]))

    def without(self, chunk: int) -> Offers:
        """Those of the rank's other chunks."""
        kept = self.pairs.mine[self.at % len(self.pairs.mine)] != chunk
        return Offers(self.pairs, self.at[kept], self.price[kept])


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
