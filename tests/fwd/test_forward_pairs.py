"""Every pair of features together in some case: a covering array.

With narrow tiles, which compile in half the time, it is part of `make test`; with the default ones of `make test-all`.
"""

import pytest
import torch
from covering import covering_array
from forward_case import NARROW, Case, check, falling, random_inputs, with_gaps

from cute_attn.mask import IntervalMask, causal, full, sliding_window

BATCH = 2
FACTORS = {
    "mask": [
        lambda rows, keys, i: full(rows, keys),
        lambda rows, keys, i: causal(rows, keys, offset=-30 * i),
        lambda rows, keys, i: sliding_window(rows, keys, left=70 - 20 * i, right=10),
        lambda rows, keys, i: with_gaps(rows, keys, 2),
        lambda rows, keys, i: with_gaps(rows, keys, 6),
    ],
    "masks": [1, BATCH],
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


ARRAY = covering_array([len(levels) for levels in FACTORS.values()])


@pytest.mark.parametrize("levels", ARRAY, ids=lambda row: "-".join(map(str, row)))
@pytest.mark.parametrize("tile", [NARROW, pytest.param(None, marks=pytest.mark.slow)], ids=["narrow", "default"])
def test_every_two_features_together(levels, tile, runtime):
    chosen = {name: values[level] for (name, values), level in zip(FACTORS.items(), levels, strict=True)}
    masks = [chosen["mask"](*chosen["lengths"], i) for i in range(chosen["masks"])]
    mode, seed = chosen["schedule"]
    check(
        Case(
            IntervalMask(*(torch.cat([getattr(m, side) for m in masks]) for side in ("lo", "hi")), masks[0].seqlen_k),
            batch=BATCH,
            heads=chosen["heads"],
            dims=chosen["dims"],
            dtype=chosen["dtype"],
            sink=chosen["sink"],
            inputs=chosen["inputs"],
            options={**chosen["options"], "tile": tile},
            mode=mode,
            seed=seed,
            **chosen["score"],
        ),
        runtime,
    )
