"""Every pair of features of the backward together in some case: a covering array, part of `make test-all`."""

import pytest
from backward_case import check
from cases import one_hot
from pairs import case_of, every_two


@pytest.mark.slow
@every_two(
    one_hot,
    dlse=[False, True],
    options=[{}, {"deterministic": True}, {"fp32_gradients": True}, {"sm_margin": 130}],
    needs=[(True, True, True), (True, False, True), (False, True, True), (True, True, False)],
)
def test_every_two_features_together(features, backend):
    check(case_of(**features), backend)
