"""The stale softmax leans on its repair, and the tests would notice if it did not work."""

import math

import pytest
from cases import NARROW, Case, falling
from forward_case import check

from cute_attn.launch import run as launch
from cute_attn.mask import causal


@pytest.mark.slow
def test_without_the_repair_late_maxima_come_out_wrong(monkeypatch, tmp_path):
    monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(launch, "_kernels", {})
    monkeypatch.setattr("cute_attn.fwd.softmax.STALE_LIMIT", math.inf)
    with pytest.raises(AssertionError, match=r"out has NaN|out is off by"):
        check(Case(causal(400), inputs=falling, scale=1.0, options={"tile": NARROW}), "sim")
