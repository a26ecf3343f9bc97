"""Where everything is tested, nothing that needs others' libraries is skipped."""

import importlib.util
import os
from importlib.metadata import version

import pytest


def test_the_libraries_of_others_are_installed():
    if os.environ.get("CI", "").lower() not in ("1", "true"):
        pytest.skip("asked for where CI is set")
    assert importlib.util.find_spec("transformers"), "EXTRAS of .ci/run must have transformers"
    assert importlib.util.find_spec("flash_attn"), "EXTRAS of .ci/run must have peers"
    assert importlib.util.find_spec("cudnn"), "setup.sh installs nvidia-cudnn-frontend where EXTRAS have peers"
    assert version("kernels"), "EXTRAS of .ci/run must have hub"  # tests/sim has a folder of that name
