"""Features of which every two are to meet in some case: a covering array of cases, for the forward and the backward."""

import pytest
import torch
from cases import DIMS, Case, random_inputs, stacked, with_gaps
from covering import covering_array

from cute_attn.mask import causal, full, sliding_window

BATCH = 2


def every_two(late_inputs, **own):
    """Parametrizes a test by the `features` of its case. late_inputs: whose maxima come late. own: further features."""
    factors = {
        "mask": [
            lambda rows, keys, i: full(rows, keys),
            lambda rows, keys, i: causal(rows, keys, offset=-30 * i),
            lambda rows, keys, i: sliding_window(rows, keys, left=70 - 20 * i, right=10),
            lambda rows, keys, i: with_gaps(rows, keys, 2),
            lambda rows, keys, i: with_gaps(rows, keys, 6),
        ],
        "masks": [1, BATCH],
        "dims": [(80, 96) if dims == (96, 96) else dims for dims in DIMS],
        "dtype": [torch.bfloat16, torch.float16],
        "score": [{}, {"softcap": 8.0}, {"scale": -0.2}],
        "sink": [None, "sh", "ssh"],
        **own,
        "heads": [(2, 2), (4, 1)],
        "lengths": [(257, 384), (130, 200)],
        "inputs": [random_inputs, late_inputs],
        "schedule": [("eager", 0), ("late", 0), ("random", 1)],
    }
    array = covering_array([len(levels) for levels in factors.values()])
    chosen = [[x[level] for x, level in zip(factors.values(), row, strict=True)] for row in array]
    ids = ["-".join(map(str, row)) for row in array]
    rows = [dict(zip(factors, row, strict=True)) for row in chosen]
    return pytest.mark.parametrize("features", rows, ids=ids)


def case_of(mask, masks, score, lengths, schedule, options, needs=None, **fields):
    """The case with these features."""
    mode, seed = schedule
    options = options if needs is None else {**options, "needs": needs}
    mask = stacked(*(mask(*lengths, i) for i in range(masks)))
    return Case(mask, BATCH, mode=mode, seed=seed, options=options, **score, **fields)
