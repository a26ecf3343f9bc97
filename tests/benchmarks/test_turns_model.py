"""The model of what turns cost, on cases computed by hand."""

import numpy as np
import pytest
from turns_model import ctas_of, makespan

from cute_attn.mask import causal, full, sliding_window


def ctas(*steps):
    return [np.array(sums, np.int64) for sums in steps]


@pytest.mark.parametrize("turns", [False, True])
def test_a_cta_takes_a_unit_a_step_and_its_last_addition(turns):
    assert makespan(ctas([0, 1, 2]), 4, turns, 0) == 3
    assert makespan(ctas([0, 1, 2]), 4, turns, 0.5) == 3.5
    assert makespan(ctas([0, 1, 2]), 4, turns, 2) == 7  # each step but the first waits for the addition before


def test_ctas_share_multiprocessors_in_the_order_of_their_start():
    assert makespan(ctas([0, 1, 2], [3], [4], [5, 6]), 2, False, 0) == 4  # 3, then 1 + 1 + 2
    assert makespan(ctas([], []), 2, True, 1) == 0


def test_an_addition_waits_for_those_before_it():
    assert makespan(ctas([0, 1], [0, 1]), 2, False, 0) == 2
    assert makespan(ctas([0, 1], [0, 1]), 2, True, 1) == 4  # second CTA: computes until 1, adds 0 until 3, 1 until 4
    # The second's first addition, of 2, is the first's last, at 3; its next step has ended by then, its last has not.
    assert makespan(ctas([0, 1, 2], [2, 0, 1]), 2, True, 0) == 4


def test_ctas_add_to_the_sums_of_the_query_heads_that_share_their_key_head():
    schedule = full(128, 256).schedule((64, 128))
    steps = ctas_of(schedule, 2, 2, True)
    assert [x.tolist() for x in steps] == [[0, 1, 2, 3], [4, 5, 6, 7]] * 2


def test_under_a_window_turns_cost_next_to_nothing():
    schedule = sliding_window(4096, left=1023, right=0).schedule((64, 128))
    without, with_turns = (ctas_of(schedule, 8, 1, turns) for turns in (False, True))
    assert makespan(with_turns, 132, True, 1) <= 1.1 * makespan(without, 132, False, 1)


def test_a_causal_mask_starts_with_its_shortest_ctas_where_there_are_turns():
    lengths = [len(x) for x in ctas_of(causal(512).schedule((64, 128)), 1, 1, True)]
    assert lengths == sorted(lengths)
