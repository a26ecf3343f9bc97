"""Every pair of features of the backward together in some case: a covering array, part of `make test-all`."""

import pytest
import torch
from backward_case import Case, check, one_hot, random_inputs, with_gaps
from covering import covering_array

from cute_attn.mask import IntervalMask, causal, full, sliding_window

pytestmark = pytest.mark.slow

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
    "dlse": [False, True],
    "options": [{}, {"deterministic": True}, {"fp32_gradients": True}, {"sm_margin": 130}],
    "needs": [(True, True, True), (True, False, True), (False, True, True), (True, True, False)],
    "heads": [(2, 2), (4, 1)],
    "lengths": [(257, 384), (130, 200)],
    "inputs": [random_inputs, one_hot],
    "schedule": [("eager", 0), ("late", 0), ("random", 1)],
}
ARRAY = covering_array([len(levels) for levels in FACTORS.values()])


@pytest.mark.parametrize("levels", ARRAY, ids=lambda row: "-".join(map(str, row)))
def test_every_two_features_together(levels, runtime):
    chosen = {name: values[level] for (name, values), level in zip(FACTORS.items(), levels, strict=True)}
    masks = [chosen["mask"](*chosen["lengths"], i) for i in range(chosen["masks"])]
    heads, (rows, keys), (mode, seed) = chosen["heads"], chosen["lengths"], chosen["schedule"]
    sinks = {None: None, "sh": (1, 1, 3, heads[0]), "ssh": (BATCH, rows, 2, heads[0])}
    check(
        Case(
            IntervalMask(*(torch.cat([getattr(m, side) for m in masks]) for side in ("lo", "hi")), keys),
            batch=BATCH,
            heads=heads,
            dims=chosen["dims"],
            dtype=chosen["dtype"],
            sink=sinks[chosen["sink"]],
            dlse=chosen["dlse"],
            inputs=chosen["inputs"],
            options={**chosen["options"], "needs": chosen["needs"]},
            mode=mode,
            seed=seed,
            **chosen["score"],
        ),
        runtime,
    )
