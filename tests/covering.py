"""Covering arrays: few cases in which every two features still meet."""

import itertools
from collections import Counter


def covering_array(sizes: list[int]) -> list[tuple[int, ...]]:
    """Rows of levels in which every two factors meet at every two levels; `sizes` says how many levels each has.

    Each row starts from a pair not met so far and takes, factor by factor, the level that covers most of the others,
    of those that cover as many the one used least.
    """
    missing = {
        (a, x, b, y)
        for a, b in itertools.combinations(range(len(sizes)), 2)
        for x, y in itertools.product(range(sizes[a]), range(sizes[b]))
    }
    used: Counter[tuple[int, int]] = Counter()
    rows = []
    while missing:
        a, x, b, y = min(missing)
        row = {a: x, b: y}
        for factor in sorted(set(range(len(sizes))) - {a, b}, key=lambda f: -sizes[f]):
            row[factor] = max(
                range(sizes[factor]),
                key=lambda level: (len(_pairs({**row, factor: level}) & missing), -used[factor, level]),
            )
        missing -= _pairs(row)
        used.update(row.items())
        rows.append(tuple(row[f] for f in range(len(sizes))))
    return rows


def _pairs(row: dict[int, int]) -> set[tuple[int, int, int, int]]:
    return {(a, row[a], b, row[b]) for a, b in itertools.combinations(sorted(row), 2)}
