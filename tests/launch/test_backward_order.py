"""Where sums of dQ have turns, key tiles start and walk their query tiles in an order that lets none wait for long."""

import pytest
import torch
from backward_case import check, check_same_bits
from cases import Case, block_sparse, stacked, with_gaps
from oracle import random_slices

from cute_attn.launch.order import in_turns, upwards
from cute_attn.mask import IntervalMask, causal, causal_documents, full, shared_prefix, sliding_window

WINDOW = sliding_window(700, left=400, right=20)  # partial tiles at both ends of full ones
DOCUMENTS = causal_documents(1024, cu_seqlens=[0, 256, 1024])  # of whole tiles: the second is the longer one
MASKS = {
    "full": full(300, 700),
    "causal": causal(500, 700),
    "window": WINDOW,
    "gaps": with_gaps(300, 900, 5),
    "slices": IntervalMask.from_slices(*random_slices(12, 700, 700), 700, 700),
    "blocks": block_sparse(torch.tensor([[1, 0, 1], [0, 1, 1], [1, 0, 0]], dtype=torch.bool)),
    "nothing": IntervalMask.from_slices([[0, 0]], [[0, 0]], None, 300, 300),
    "of each batch": stacked(WINDOW, causal(700)),
    "documents": DOCUMENTS,
    "ragged documents": causal_documents(1000, cu_seqlens=[0, 200, 700, 1000]),
    "shared prefix": shared_prefix(896, prefix_length=256, lengths=[256, 384]),
    "of each batch, longest first": stacked(DOCUMENTS, full(1024)),
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


@pytest.mark.parametrize("name", MASKS)
def test_a_key_tile_starts_behind_all_that_add_before_it(name):
    schedule = MASKS[name].schedule((64, 128))
    attended, started = schedule.to_grid_transposed() > 0, in_turns(schedule).items[:, :2].tolist()
    assert sorted(started) == sorted(schedule.backward.items[:, :2].tolist())
    for place, (plane, tile) in enumerate(started):
        for other_plane, other in started[place + 1 :]:
            if other_plane == plane and other < tile:
                assert not (attended[plane, tile] & attended[plane, other]).any()


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("causal", [0, 1, 2, 3, 4, 5]),
        ("window", [0, 1, 2, 3, 4, 5]),
        ("documents", [2, 3, 4, 5, 0, 6, 1, 7]),
        ("ragged documents", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("shared prefix", [0, 1, 4, 2, 5, 3, 6]),
    ],
)
def test_the_longest_start_first_where_nobody_waits_for_one_that_starts_later(name, order):
    assert in_turns(MASKS[name].schedule((64, 128))).items[:, 1].tolist() == order


def test_the_order_is_made_once():
    schedule = WINDOW.schedule((64, 128))
    assert in_turns(schedule) is in_turns(schedule)


@pytest.mark.slow
def test_a_window_has_the_same_bits_in_every_schedule_and_is_right(backend):
    case = Case(WINDOW, options={"deterministic": True})
    check(case, backend)
    check_same_bits(case, backend, [("eager", 1), ("random", 1)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gaps", "slices", "of each batch", "documents", "shared prefix"])
@pytest.mark.parametrize(("mode", "heads"), [("late", (4, 1)), ("random", (2, 2))])
def test_any_mask_is_right_in_this_order(name, mode, heads, backend):
    batch = MASKS[name].batch
    check(Case(MASKS[name], batch=batch, heads=heads, mode=mode, options={"deterministic": True}), backend)
