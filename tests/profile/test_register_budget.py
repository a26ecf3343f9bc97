"""What warpgroups ask for by setmaxnreg is there: a launch gets what ptxas gives every thread, no more."""

import pytest

from cute_attn.bwd import kernel as bwd
from cute_attn.fwd import kernel as fwd

REGISTERS, WARPGROUP, UNIT = 65536, 128, 8  # of a multiprocessor; threads; ptxas rounds down to multiples of it


def of_a_launch(warpgroups):
    return warpgroups * (REGISTERS // (warpgroups * WARPGROUP) // UNIT * UNIT)


@pytest.mark.parametrize("consumers", [2, 3])
def test_the_forward_asks_for_no_more_than_a_launch_gets(consumers):
    asked = fwd.PRODUCER_REGISTERS[consumers] + consumers * fwd.CONSUMER_REGISTERS[consumers]
    assert asked <= of_a_launch(1 + consumers)


@pytest.mark.parametrize("keys", sorted(bwd.REGISTERS))
def test_the_backward_asks_for_no_more_than_a_launch_gets(keys):
    producers, consumers = bwd.REGISTERS[keys]
    assert producers + 2 * consumers <= of_a_launch(3)
