"""The model of deterministic=True against cases done by hand: CTAs are lists of the sums that their steps add to."""

import numpy as np
import pytest
from turns_model import ctas_of, makespan

from cute_attn.mask import causal, full, sliding_window

TILE = (64, 128)


def ctas(*lists):
    return [np.array(sums, dtype=np.int64) for sums in lists]


def test_without_turns_ctas_fill_the_multiprocessors_in_their_order():
    work = ctas(range(3), range(2), range(2), range(4))
    assert makespan(work, 2, turns=False, addition=0) == 3 + 4  # beside 2 + 2
    assert makespan(work, 1, turns=False, addition=0) == 11
    assert makespan(work, 4, turns=False, addition=0) == 4


@pytest.mark.parametrize(("addition", "expected"), [(0, 2), (0.5, 3), (1, 4), (2, 7)])
def test_under_a_full_mask_each_cta_waits_for_the_additions_of_those_before_it(addition, expected):
    # Two key tiles, two query tiles. The first CTA adds at [1, 1 + a] and, if a <= 1, [2, 2 + a]; the second after it.
    # a = 0: at 1 and 2, and so does the second. a = 0.5: until 1.5 and 2.5; the second until 2 and 3.
    # a = 1: until 2 and 3; the second until 3 and 4. a = 2: until 3 and 5; the second [3, 5] and, there is room for one
    # dQ only, [5, 7].
    both = ctas_of(full(128, 256).schedule(TILE), heads_k=1, group=1, deterministic=True)
    assert [list(sums) for sums in both] == [[0, 1], [0, 1]]
    assert makespan(both, 2, turns=True, addition=addition) == expected


def test_a_cta_whose_first_sum_comes_last_to_another_waits_for_all_of_it():
    # Sum 2 is added to at 3. Until then the second CTA holds its dQ and computes the next step, which ends at 3 too.
    assert makespan(ctas([0, 1, 2], [2, 3, 4]), 2, turns=True, addition=0) == 3 + 1
    assert makespan(ctas([0, 1, 2], [4, 3, 2]), 2, turns=True, addition=0) == 3


def test_under_a_causal_mask_no_cta_waits():
    work = ctas_of(causal(512).schedule(TILE), heads_k=1, group=1, deterministic=True)
    assert [list(sums) for sums in work] == [[6, 7], [4, 5, 6, 7], [2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7]]
    assert makespan(work, 4, turns=True, addition=1) == 8 + 1 == makespan(work, 4, turns=False, addition=1)


def test_ctas_walk_all_heads_that_share_their_key_head_upwards_where_there_are_turns():
    schedule = sliding_window(768, left=255, right=0).schedule(TILE)  # 12 query tiles, 6 key tiles
    work = ctas_of(schedule, heads_k=2, group=2, deterministic=True)
    # of the first key tile, which is started last
    expected = [[12 * head + tile for head in pair for tile in range(6)] for pair in ((0, 1), (2, 3))]
    assert [list(sums) for sums in work[-2:]] == expected


def test_turns_cost_next_to_nothing_under_a_window():
    schedule = sliding_window(4096, left=1023, right=0).schedule(TILE)
    without, with_turns = (
        makespan(ctas_of(schedule, heads_k=8, group=1, deterministic=turns), 132, turns, 1) for turns in (False, True)
    )
    assert with_turns <= 1.1 * without


def test_turns_never_save_time_and_work_bounds_them():
    for mask in (causal(1024), full(1024), sliding_window(1024, left=255, right=0)):
        work = ctas_of(mask.schedule(TILE), heads_k=2, group=2, deterministic=True)
        steps = sum(map(len, work))
        for addition in (0, 0.5, 1):
            without, with_turns = (makespan(work, 3, turns, addition) for turns in (False, True))
            assert steps / 3 <= without <= with_turns <= steps * (1 + addition)


def test_no_work_takes_no_time():
    assert makespan([], 132, turns=True, addition=1) == 0
    assert makespan(ctas([]), 132, turns=True, addition=1) == 0
