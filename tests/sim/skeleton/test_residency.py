"""CTAs that wait for each other by counters: how many must be on the GPU together."""

import pytest
from skeletons import add, counter, cta, meet, until

from cute_attn.sim.errors import Deadlock
from cute_attn.sim.skeleton import residency as residency_module
from cute_attn.sim.skeleton.check import check
from cute_attn.sim.skeleton.program import Skeleton

TURN = counter(0)


def turns(items, ctas):
    """Items take turns at one sum, in their order; CTA i takes items i, i + ctas, ..."""
    clusters = []
    for first in range(ctas):
        steps = [step for item in range(first, items, ctas) for step in (until(TURN, item), add(TURN))]
        clusters.append(cta(steps, index=(first, 0, 0)))
    return Skeleton(clusters, {TURN: 0})


def test_with_an_item_each_any_number_suffices_in_order_and_all_are_needed_in_any():
    found = check(turns(6, 6)).residency
    assert found.in_order == 1
    assert found.in_any_order == 6
    assert found.too_few is None
    assert found.too_few_in_any_order.error is Deadlock


def test_with_several_items_each_all_must_be_there():
    checked = check(turns(6, 3))
    assert checked.verified
    found = checked.residency
    assert found.in_order == 3
    assert "clusters 0, 1 wait for others" in found.too_few.what


def test_what_hangs_with_all_of_them_there_is_no_matter_of_their_number():
    crossed = [
        cta([until(counter(1), 1), add(counter(0))]),
        cta([until(counter(0), 1), add(counter(1))], index=(1, 0, 0)),
    ]
    checked = check(Skeleton(crossed, {counter(0): 0, counter(1): 0}))
    assert not checked.verified
    assert "it is 0" in checked.found.waits[0]


def test_counters_begin_with_what_is_in_them():
    assert check(Skeleton([cta([until(TURN, 3)])], {TURN: 3})).verified
    assert not check(Skeleton([cta([until(TURN, 3)])], {TURN: 2})).verified


def test_a_merge_by_whoever_adds_and_one_who_waits_for_all_needs_two():
    waiter = cta([until(TURN, 3)])
    skeleton = Skeleton([waiter, *(cta([add(TURN)], index=(i, 0, 0)) for i in (1, 2, 3))], {TURN: 0})
    found = check(skeleton).residency
    assert (found.in_order, found.in_any_order) == (2, 2)


def test_warps_behind_one_that_waits_for_another_cta_wait_too():
    first = cta([until(TURN, 1), *meet(1, 64)], [*meet(1, 64)])
    found = check(Skeleton([first, cta([add(TURN)], index=(1, 0, 0))], {TURN: 0})).residency
    assert found.in_order == 2
    assert any("warp 1" in line and "to come there: warp 0" in line for line in found.too_few.waits)


def test_too_many_orders_of_start_are_left_open(monkeypatch):
    monkeypatch.setattr(residency_module, "MOST_SETS", 10)
    independent = [cta([until(TURN, 0)], index=(i, 0, 0)) for i in range(8)]
    found = check(Skeleton(independent, {TURN: 0})).residency
    assert found.in_order == 1
    assert found.in_any_order is None


@pytest.mark.parametrize("ctas", [1, 2, 5])
def test_the_search_agrees_with_what_is_known_of_turns(ctas):
    found = check(turns(5, ctas)).residency
    assert found.in_order == (1 if ctas == 5 else ctas)
