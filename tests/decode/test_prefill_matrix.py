"""Many new tokens over caches on the matrix of shapes, masks and caches: part of `make test-all`.

Every two of what changes the machine code meet, but for head dims with pages, each of which meets some of the others.
"""

import pytest
import torch
from caching import make
from covering import covering_array
from decode_case import check

pytestmark = pytest.mark.slow

BF16, FP16 = torch.bfloat16, torch.float16
DIMS = [(64, 64), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256), (40, 24)]
PAGES = [128, 16, 64, None, 8, 256, 32, 96, 48]
FACTORS = {
    "mask": [{"causal": True}, {"window_size": (40, 11)}, {}, {"window_size": (-1, 5)}],
    "score": [{}, {"softcap": 5.0}, {"softmax_scale": -0.1}],
    "heads": [(8, 1), (1, 1), (8, 2)],
    "tokens": [130, 65],
    "dtype": [BF16, FP16],
    "sinks": [0, 2],
    "schedule": [("random", 1), ("late", 0), ("eager", 0)],
}
ROWS = covering_array([len(levels) for levels in FACTORS.values()])


@pytest.mark.parametrize("number", range(len(ROWS)))
def test_every_two_features_together(number, backend):
    x = {name: levels[level] for (name, levels), level in zip(FACTORS.items(), ROWS[number], strict=True)}
    dims, page_size = DIMS[number % len(DIMS)], PAGES[number % len(PAGES)]
    call = make(
        (0, 1, 63, 64, 65, 300),
        x["tokens"],
        x["heads"],
        dims,
        page_size,
        x["dtype"],
        growing=True,
        heads_first=number % 2,
    )
    sinks = {"sink": torch.randn(x["sinks"], x["heads"][0])} if x["sinks"] else {}
    check(call, backend, *x["schedule"], **x["mask"], **x["score"], **sinks)


@pytest.mark.parametrize(
    "changed",
    [
        {"page_size": 1},
        {"page_size": 12, "dims": (96, 96)},
        {"cached": torch.int8, "scales": "tokens"},
        {"cached": torch.float8_e4m3fn, "scales": "heads", "page_size": None},
    ],
)
def test_small_pages_and_8_bits_are_taken_by_decode_kernels_in_blocks(changed, backend):
    call = make((0, 65, 200), 70, **{"heads": (2, 1), "page_size": 64, "dtype": BF16, "growing": True} | changed)
    check(call, backend, "late", causal=True)
