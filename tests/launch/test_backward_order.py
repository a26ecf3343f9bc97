"""Where sums of dQ have turns, key tiles start and walk their query tiles in an order that lets none wait for long."""

import pytest
import torch
from backward_case import check, check_same_bits, make_problem
from cases import Case, block_sparse, stacked, with_gaps
from oracle import random_slices

from cute_attn.columns import TurnRow
from cute_attn.launch.backward import backward
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
    "idle keys first": IntervalMask.from_slices([[0, 300]], [[256, 600]], None, 300, 700),
    "nothing": IntervalMask.from_slices([[0, 0]], [[0, 0]], None, 300, 300),
    "of each batch": stacked(WINDOW, causal(700)),
    "documents": DOCUMENTS,
    "ragged documents": causal_documents(1000, cu_seqlens=[0, 200, 700, 1000]),
    "shorter and shorter documents": causal_documents(1500, cu_seqlens=[0, 700, 1200, 1210, 1500]),
    "shared prefix": shared_prefix(896, prefix_length=256, lengths=[256, 384]),
    "ragged shared prefix": shared_prefix(1100, prefix_length=250, lengths=[270, 300, 280]),
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
def test_turns_are_those_of_the_order_in_which_key_tiles_start(name):
    schedule = MASKS[name].schedule((64, 128))
    table, turns = in_turns(schedule)
    started = table.items[:, :2].tolist()
    assert sorted(started) == sorted(schedule.backward.items[:, :2].tolist())
    attended = schedule.to_grid() > 0
    for plane in range(schedule.planes):
        order = [tile for of, tile in started if of == plane]
        for q in range(schedule.q_tiles):
            there = attended[plane, q].nonzero().squeeze(1).tolist()
            row = TurnRow(*turns[plane, q].tolist())
            runs = schedule.forward.runs[row.begin : row.end, :2].tolist()
            assert sorted(k for begin, end in runs for k in range(begin, end)) == there
            turn = [n + (n >= row.before_last) for n in range(row.others)] + [row.before_last]  # as the kernel counts
            places = sorted(order.index(k) for k in there)
            assert [order.index(k) for k in there] == [places[turn[n]] for n in range(len(there))]


@pytest.mark.parametrize(
    ("name", "tile", "walk"),
    [
        ("ragged documents", 1, [3, 2, 10, 9, 8, 7, 6, 5, 4]),
        ("ragged documents", 5, [10, 15, 14, 13, 12, 11]),
        ("shared prefix", 4, [13, 12, 11, 10, 9, 8]),
    ],
)
def test_whoever_adds_before_others_who_come_there_first_goes_there_first(name, tile, walk):
    assert [q for q, _, _ in reversed(walks(in_turns(MASKS[name].schedule((64, 128))).table)[0, tile])] == walk


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("causal", [0, 1, 2, 3, 4, 5]),
        ("window", [0, 1, 2, 3, 4, 5]),
        ("documents", [2, 3, 4, 5, 0, 6, 1, 7]),
        ("ragged documents", [1, 2, 5, 3, 0, 6, 4, 7]),
        ("shared prefix", [0, 1, 4, 2, 5, 3, 6]),
    ],
)
def test_the_longest_start_first_where_nobody_waits_for_one_that_starts_later(name, order):
    assert in_turns(MASKS[name].schedule((64, 128))).table.items[:, 1].tolist() == order


def test_the_order_is_made_once():
    schedule = WINDOW.schedule((64, 128))
    assert in_turns(schedule) is in_turns(schedule)


@pytest.mark.parametrize("planes", [1, 2])
def test_where_nothing_is_attended_no_kernel_is_launched(planes, monkeypatch):
    monkeypatch.setattr("cute_attn.launch.backward.run", None)
    case = Case(MASKS["nothing"])
    p, mask = make_problem(case), stacked(*[case.mask] * planes, heads=planes)
    gradients = backward(p.dout, p.q, p.k, p.v, p.out, p.lse, mask, softmax_scale=1.0, deterministic=True)
    assert not any(x.any() for x in gradients)


@pytest.mark.slow
def test_a_window_has_the_same_bits_in_every_schedule_and_is_right(backend):
    case = Case(WINDOW, options={"deterministic": True})
    check(case, backend)
    check_same_bits(case, backend, [("eager", 1), ("random", 1)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gaps", "slices", "of each batch", "documents", "ragged documents", "shared prefix"])
@pytest.mark.parametrize(("mode", "heads"), [("late", (4, 1)), ("random", (2, 2))])
def test_any_mask_is_right_in_this_order(name, mode, heads, backend):
    batch = MASKS[name].batch
    check(Case(MASKS[name], batch=batch, heads=heads, mode=mode, options={"deterministic": True}), backend)
