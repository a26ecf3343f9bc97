"""Every test of the cache starts with an empty one."""

import pytest


@pytest.fixture(autouse=True)
def _empty_cache(empty_cache):
    pass
