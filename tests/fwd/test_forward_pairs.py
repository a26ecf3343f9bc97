"""Every pair of features together in some case: a covering array, part of `make test-all`."""

from dataclasses import replace

import pytest
from cases import NARROW, falling
from forward_case import check
from pairs import case_of, every_two


@pytest.mark.slow
@every_two(falling, options=[{}, {"softmax": "exact"}, {"return_max_logits": True}], tile=[None, NARROW])
def test_every_two_features_together(features, backend):
    case = case_of(**{name: level for name, level in features.items() if name != "tile"})
    check(replace(case, options={**case.options, "tile": features["tile"]}), backend)
