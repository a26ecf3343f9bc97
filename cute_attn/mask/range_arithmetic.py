"""Sets of positions as pairs (start, end): united, cut, taken from one another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

__all__ = ["chunks", "differences", "overlaps", "united"]

Pair = tuple[int, int]


def united(pairs: Iterable[Pair]) -> list[Pair]:
    """The same positions as ascending pairs that neither overlap nor touch, none of them empty."""
    found: list[Pair] = []
    for start, end in sorted(pair for pair in pairs if pair[0] < pair[1]):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


def overlaps(first: list[Pair], second: list[Pair]) -> Iterator[Pair]:
    """Positions of both, of united pairs."""
    i = j = 0
    while i < len(first) and j < len(second):
        start, end = max(first[i][0], second[j][0]), min(first[i][1], second[j][1])
        if start < end:
            yield start, end
        if first[i][1] <= second[j][1]:
            i += 1
        else:
            j += 1


def differences(first: list[Pair], second: list[Pair]) -> list[Pair]:
    """Positions of the first that are not in the second, of united pairs."""
    if not first:
        return []
    edges = [
        first[0][0],
        *(edge for pair in second for edge in pair),
        max(first[-1][1], second[-1][1] if second else 0),
    ]
    gaps = [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]
    return list(overlaps(first, gaps))


def chunks(pairs: Iterable[Pair], size: int) -> Iterator[list[Pair]]:
    """Pieces of `size` positions in the order of the pairs, the last one perhaps shorter."""
    piece: list[Pair] = []
    room = size
    for start, end in pairs:
        while start < end:
            cut = min(end, start + room)
            piece.append((start, cut))
            room -= cut - start
            start = cut
            if not room:
                yield piece
                piece, room = [], size
    if piece:
        yield piece
