"""The decode kernel on the matrix of shapes, masks and caches: part of `make test-all`.

Levels of a factor are what one machine code serves, so that a covering array of them compiles as few kernels as let
every two levels meet. The members of a level take turns, three calls a kernel: pages of several sizes, groups of heads.
"""

import itertools

import pytest
import torch
from caching import LENGTHS, make
from covering import covering_array
from decode_case import check

from cute_attn.jit.record import record_specs

pytestmark = pytest.mark.slow

BF16, FP16 = torch.bfloat16, torch.float16
SCHEDULES = [("eager", 0), ("late", 0), *(("random", seed) for seed in range(4))]
PAGES = {64: [64, 128, None, 256], 16: [16, 48], 0: [1, 5, 100], 32: [32, 96]}  # by the keys of a box
FACTORS = {
    "rows": [  # of a CTA, by (query heads, key heads) and new tokens
        [((1, 1), 1), ((7, 1), 1), ((8, 1), 1), ((8, 2), 2), ((1, 1), 5), ((8, 2), 1), ((1, 1), 2)],
        [((16, 1), 1), ((8, 1), 2), ((7, 1), 2), ((1, 1), 16)],
        [((8, 2), 5), ((16, 1), 2)],
        [((4, 1), 64), ((7, 1), 5), ((8, 2), 16), ((8, 1), 5), ((16, 1), 5), ((7, 1), 16), ((16, 1), 16), ((8, 1), 16)],
    ],
    "mask": [
        [{"causal": True}, {"window_size": (100, 2)}, {}, {"window_size": (0, -1)}],
        [{"tree": len(LENGTHS)}, {"tree": 1, "window_size": (66, 1)}],
    ],
    "splits": [[1], [2, 7, 3]],
    "sinks": [[0], [1, 2]],
    "dtype": [[BF16], [FP16]],
}
SAME = {
    "dims": [
        [(64, 64), (8, 8)],
        [(128, 128), (96, 96), (80, 72)],
        [(192, 128)],
        [(192, 192), (136, 192)],
        [(256, 256), (40, 256)],
    ],
    "page_size": list(PAGES.values()),
    "score": [[{}], [{"softcap": 5.0}], [{"softmax_scale": -0.1}, {"softmax_scale": 0.0}]],
    **FACTORS,
}
EIGHT = {
    "cached": [[torch.int8], [torch.float8_e4m3fn], [torch.float8_e5m2]],
    "dims": [[(64, 64), (32, 16)], [(128, 128), (96, 96)], [(192, 128)], [(192, 192)], [(256, 256), (208, 16)]],
    "page_size": [PAGES[64], PAGES[16], PAGES[0]],
    "scales": [["none", "heads", "scalar"], ["tokens"]],
    "score": [[{}, {"softmax_scale": -0.1}, {"softmax_scale": 0.0}], [{"softcap": 5.0}]],
    **FACTORS,
    "rows": [FACTORS["rows"][i] for i in (0, 1, 3)],
}


def every_two(factors):
    """Of each kernel, calls with the same machine code."""
    turns = {name: [itertools.cycle(members) for members in levels] for name, levels in factors.items()}
    schedules, heads_first = itertools.cycle(SCHEDULES), itertools.cycle([False, True, True, False, False])
    for row in covering_array([len(levels) for levels in factors.values()]):
        calls = []
        for _ in range(3):
            features = {name: next(turns[name][level]) for name, level in zip(factors, row, strict=True)}
            calls.append({**features, "schedule": next(schedules), "heads_first": next(heads_first)})
        yield pytest.param(calls, id="-".join(map(str, row)))


def attend(backend, rows, mask, splits, sinks, score, schedule, **features):
    heads, tokens = rows
    call = make(heads=heads, tokens=tokens, growing=True, **features)
    arguments = {"num_splits": splits, **score, **mask}
    if planes := arguments.pop("tree", 0):
        tree = torch.rand(len(LENGTHS), tokens, tokens) < 0.6
        arguments["mask"] = tree if planes > 1 else tree[0]
    if sinks:
        arguments["sink"] = torch.randn(sinks, heads[0])
    check(call, backend, *schedule, **arguments)


@pytest.mark.parametrize("calls", list(every_two(SAME)))
def test_every_two_features_of_16_bit_caches_together(calls, backend):
    with record_specs() as recorder:
        for features in calls:
            attend(backend, **features)
    assert len(recorder.specs) == 1


@pytest.mark.parametrize("calls", list(every_two(EIGHT)))
def test_every_two_features_of_8_bit_caches_together(calls, backend):
    with record_specs() as recorder:
        for features in calls:
            attend(backend, **features)
    assert len(recorder.specs) == 1


def of_a_tree(factors, pages):
    """A call with a tree over pages of a kind, of which the kernel is compiled anyway."""
    calls = (param.values[0][0] for param in every_two(factors))
    return next(x for x in calls if "tree" in x["mask"] and x["page_size"] in PAGES[pages])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("features", [of_a_tree(SAME, 0), of_a_tree(EIGHT, 16)], ids=["gathered", "in parts of 8 bits"])
def test_every_schedule_of_warps_and_copies(features, schedule, backend):
    attend(backend, **{**features, "schedule": schedule})
