"""Where everything is tested, nothing of the integrations is skipped."""

import importlib.util
import os
from importlib.metadata import version

import pytest


def test_what_the_integrations_need_is_installed():
    if os.environ.get("CI", "").lower() not in ("1", "true"):
        pytest.skip("asked for where CI is set")
    assert importlib.util.find_spec("transformers"), "EXTRAS of .ci/run must have transformers"
    assert version("kernels"), "EXTRAS of .ci/run must have hub"  # tests/sim has a folder of that name
