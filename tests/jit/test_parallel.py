"""Work in processes: outcomes as they come, errors in words, a process that dies takes nothing else with it."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cute_attn.jit.parallel import in_processes


def test_results_and_errors_come_as_outcomes():
    with ThreadPoolExecutor(1) as thread:
        outcomes = {o.item: o for o in in_processes(lambda x: 1 / x, [1, 0, 4], 1, thread)}
    assert (outcomes[1].result, outcomes[4].result) == (1.0, 0.25)
    assert outcomes[0].error == "ZeroDivisionError: division by zero"
    assert all(o.seconds >= 0 for o in outcomes.values())


def test_nothing_to_do_starts_no_process():
    assert list(in_processes(abs, [], 4)) == []


def test_once_the_time_is_over_no_further_item_is_begun():
    begun = []

    def slowly(item):
        time.sleep(0.02)
        begun.append(item)

    with ThreadPoolExecutor(1) as thread:
        outcomes = list(in_processes(slowly, range(1000), 1, thread, until=lambda: len(begun) >= 3))
    assert 3 <= len(outcomes) == len(begun) < 1000


@pytest.mark.slow
def test_a_process_that_dies_is_reported_and_the_others_are_served():
    outcomes = {o.item: o for o in in_processes(exit_if_nine, [1, 9, 2], 2)}
    assert outcomes[9].error == "its process died"
    assert (outcomes[1].result, outcomes[2].result) == (1, 2)


def exit_if_nine(x):
    if x == 9:
        os._exit(9)
    return x
