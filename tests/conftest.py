"""Settings every test needs. Imports torch and pytest alone: the `gpu` tests run on machines that have no more."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # forked ranks hang if their parent ran multi-threaded torch
os.environ.setdefault("CUTE_DSL_ARCH", "sm_90a")  # without a GPU the DSL would silently compile for another chip

import pytest
import torch


def pytest_collection_modifyitems(items):
    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
    if not hopper:
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA Hopper GPU"))


@pytest.fixture(autouse=True)
def _fresh_random_numbers(request):
    """Every test draws the same numbers on every run and machine, and no two tests draw the same."""
    torch.manual_seed(hash_of(request.node.nodeid))


def hash_of(text: str) -> int:
    value = 0
    for byte in text.encode():
        value = (value * 131 + byte) % (2**31 - 1)
    return value
