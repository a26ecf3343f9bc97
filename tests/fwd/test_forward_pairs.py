"""Every pair of features together in some case: a covering array.

With narrow tiles, which compile in half the time, and head dims up to 128 it is part of `make test`, the rest of
`make test-all`.
"""

from dataclasses import replace

import pytest
from cases import NARROW, falling
from forward_case import check
from pairs import case_of, every_two


@every_two(falling, options=[{}, {"softmax": "exact"}, {"return_max_logits": True}])
@pytest.mark.parametrize("tile", [NARROW, pytest.param(None, marks=pytest.mark.slow)], ids=["narrow", "default"])
def test_every_two_features_together(features, tile, backend):
    case = case_of(**features)
    check(replace(case, options={**case.options, "tile": tile}), backend)
