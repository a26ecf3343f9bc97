import pytest


@pytest.fixture(params=["sim", pytest.param("sm90", marks=pytest.mark.gpu)])
def runtime(request):
    """Where a kernel runs: every test of the backward holds for both."""
    return request.param
