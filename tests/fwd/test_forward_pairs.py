"""Every pair of features together in some case: a covering array, part of `make test-all`."""

import itertools

import pytest
import torch
from forward_case import Case, check, falling, random_inputs, with_gaps

from cute_attn.mask import IntervalMask, causal, full, sliding_window

pytestmark = pytest.mark.slow


def several(rows: int, keys: int) -> IntervalMask:
    each = [causal(rows, keys), sliding_window(rows, keys, left=50, right=30)]
    return IntervalMask(*(torch.cat([getattr(m, side) for m in each]) for side in ("lo", "hi")), keys)


FACTORS = {
    "mask": [
        lambda rows, keys: full(rows, keys),
        lambda rows, keys: causal(rows, keys),
        lambda rows, keys: sliding_window(rows, keys, left=70, right=10),
        lambda rows, keys: with_gaps(rows, keys, 2),
        lambda rows, keys: with_gaps(rows, keys, 6),
        several,
    ],
    "dims": [(64, 64), (80, 96), (128, 128), (192, 128), (192, 192), (256, 256)],
    "dtype": [torch.bfloat16, torch.float16],
    "score": [{}, {"softcap": 8.0}, {"scale": -0.2}],
    "sink": [None, "sh", "ssh"],
    "options": [{}, {"softmax": "exact"}, {"return_max_logits": True}],
    "heads": [(2, 2), (4, 1)],
    "lengths": [(257, 384), (130, 200)],
    "inputs": [random_inputs, falling],
    "schedule": [("eager", 0), ("late", 0), ("random", 1)],
}


def covering_array(sizes: list[int]) -> list[tuple[int, ...]]:
    """Rows of levels in which every two factors meet at every two levels: each row takes, factor by factor, the level
    that covers most pairs not met so far."""
    missing = {
        (a, x, b, y)
        for a, b in itertools.combinations(range(len(sizes)), 2)
        for x, y in itertools.product(range(sizes[a]), range(sizes[b]))
    }
    rows = []
    while missing:
        a, x, b, y = min(missing)
        row = {a: x, b: y}
        for factor in sorted(set(range(len(sizes))) - {a, b}, key=lambda f: -sizes[f]):
            row[factor] = max(range(sizes[factor]), key=lambda level: _new_pairs({**row, factor: level}, missing))
        missing -= _pairs(row)
        rows.append(tuple(row[f] for f in range(len(sizes))))
    return rows


def _pairs(row: dict[int, int]) -> set[tuple[int, int, int, int]]:
    return {(a, row[a], b, row[b]) for a, b in itertools.combinations(sorted(row), 2)}


def _new_pairs(row: dict[int, int], missing: set[tuple[int, int, int, int]]) -> int:
    return len(_pairs(row) & missing)


@pytest.mark.parametrize(
    "levels", covering_array([len(v) for v in FACTORS.values()]), ids=lambda r: "-".join(map(str, r))
)
def test_every_two_features_together(levels, runtime):
    chosen = {name: values[level] for (name, values), level in zip(FACTORS.items(), levels, strict=True)}
    mask = chosen["mask"](*chosen["lengths"])
    mode, seed = chosen["schedule"]
    check(
        Case(
            mask,
            batch=2,
            heads=chosen["heads"],
            dims=chosen["dims"],
            dtype=chosen["dtype"],
            sink=chosen["sink"],
            inputs=chosen["inputs"],
            options=chosen["options"],
            mode=mode,
            seed=seed,
            **chosen["score"],
        ),
        runtime,
    )
