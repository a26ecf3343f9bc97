"""Items on multiprocessors."""

import numpy as np
import pytest

from cute_attn.predict.chip import makespan, makespan_in_turns
from cute_attn.predict.clock import clock
from cute_attn.predict.machine import H200


def test_items_start_where_it_is_free_first():
    assert makespan(np.array([5.0, 1, 1, 1, 1, 1]), 2, dealt=False) == 5


def test_dealt_items_go_there_and_back_again():
    assert makespan(np.array([5.0, 4, 3, 2, 1]), 2, dealt=True) == 5 + 2 + 1


@pytest.mark.parametrize("dealt", [False, True])
def test_no_items_take_no_time(dealt):
    assert makespan(np.array([]), 2, dealt) == 0


def test_sums_of_their_own_make_turns_free():
    sums = [np.array([0, 1]), np.array([2, 3])]
    assert makespan_in_turns(sums, 10.0, 5.0, 100.0, 2) == 25


def test_a_shared_sum_is_waited_for():
    sums = [np.array([0, 1]), np.array([0, 1])]
    assert makespan_in_turns(sums, 10.0, 0.0, 3.0, 2) == 23  # the second is an addition behind the first


def test_an_item_without_steps_takes_its_own_time():
    assert makespan_in_turns([np.array([], dtype=int)], 10.0, 5.0, 3.0, 1) == 5


def test_short_calls_keep_the_boost_clock_and_long_ones_what_the_power_allows():
    busy = 2 * H200.sustained
    assert clock(H200, busy, H200.heats_from) == H200.boost_clock
    assert clock(H200, busy, H200.heats_to) == pytest.approx(H200.boost_clock / 2 ** (1 / 3))
    assert clock(H200, busy, 1.0) == pytest.approx(clock(H200, busy, H200.heats_to))


def test_a_kernel_that_leaves_the_tensor_cores_idle_is_never_slowed():
    assert clock(H200, H200.sustained / 2, 1.0) == H200.boost_clock
