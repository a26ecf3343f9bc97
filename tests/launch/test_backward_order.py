"""Where sums of dQ have turns, every key tile walks its query tiles upwards."""

import pytest
import torch
from backward_case import check, check_same_bits
from cases import Case, block_sparse, stacked, with_gaps
from oracle import random_slices

from cute_attn.launch.order import in_turns, upwards
from cute_attn.mask import IntervalMask, causal, full, sliding_window

WINDOW = sliding_window(700, left=400, right=20)  # partial tiles at both ends of full ones
MASKS = {
    "full": full(300, 700),
    "causal": causal(500, 700),
    "window": WINDOW,
    "gaps": with_gaps(300, 900, 5),
    "slices": IntervalMask.from_slices(*random_slices(12, 700, 700), 700, 700),
    "blocks": block_sparse(torch.tensor([[1, 0, 1], [0, 1, 1], [1, 0, 0]], dtype=torch.bool)),
    "nothing": IntervalMask.from_slices([[0, 0]], [[0, 0]], None, 300, 300),
    "of each batch": stacked(WINDOW, causal(700)),
}


def walks(table):
    """For each (batch, key tile): its query tiles in order, each with whether it is full, and its layers."""
    found = {}
    for batch, tile, begin, full_begin, end, n_partial, n_full in table.items.tolist():
        runs = table.runs[begin:end].tolist()
        steps = [
            (q, begin + i >= full_begin, layers)
            for i, (first, last, *layers) in enumerate(runs)
            for q in range(first, last)
        ]
        assert [sum(not s[1] for s in steps), sum(s[1] for s in steps)] == [n_partial, n_full]
        found[batch, tile] = steps
    return found


@pytest.mark.parametrize("name", MASKS)
def test_the_same_tiles_come_in_ascending_order_and_bounds_are_tested_where_they_must_be(name):
    schedule = MASKS[name].schedule((64, 128))
    before, after = walks(schedule.backward), walks(upwards(schedule.backward, schedule.layers))
    assert before.keys() == after.keys()
    for tile, steps in after.items():
        plain = {q: (is_full, layers) for q, is_full, layers in before[tile]}
        assert [q for q, _, _ in steps] == sorted(plain)
        ascending = [q for q, _, _ in before[tile]] == sorted(plain)
        for q, is_full, layers in steps:
            was_full, had = plain[q]
            assert is_full == (was_full and ascending)
            assert layers == ([0, schedule.layers] if was_full and not is_full else had)


def test_last_key_tiles_come_first_and_the_order_is_made_once():
    schedule = WINDOW.schedule((64, 128))
    assert in_turns(schedule).items[:, 1].tolist() == [5, 4, 3, 2, 1, 0]
    assert in_turns(schedule) is in_turns(schedule)


def test_a_window_has_the_same_bits_in_every_schedule_and_is_right(backend):
    case = Case(WINDOW, options={"deterministic": True})
    check(case, backend)
    check_same_bits(case, backend, [("eager", 1), ("random", 1)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gaps", "slices", "of each batch"])
@pytest.mark.parametrize(("mode", "heads"), [("late", (4, 1)), ("random", (2, 2))])
def test_any_mask_is_right_in_this_order(name, mode, heads, backend):
    batch = MASKS[name].batch
    check(Case(MASKS[name], batch=batch, heads=heads, mode=mode, options={"deterministic": True}), backend)
