"""The search over all orders: what is right is proven, in one run where that is enough; what may hang is found."""

import itertools

import pytest
from skeletons import (
    CTA,
    add,
    alone,
    arrive,
    cluster,
    come,
    copy,
    counter,
    cta,
    init,
    mbarrier,
    meet,
    multiply,
    ring,
    until,
    wait,
)

from cute_attn.sim.errors import Deadlock, OutOfBounds, OverArrival, TransactionCount
from cute_attn.sim.skeleton.check import check
from cute_attn.sim.skeleton.program import Refused, Skeleton, difference
from cute_attn.sim.state.steps import COPY, EXPECT, LOOK, MEET, PASS, Step, Thing, Warp

A, B = mbarrier(0), mbarrier(1)
PEER = (1, 0, 0)


def found(skeleton):
    checked = check(skeleton)
    assert checked.found, checked
    return checked.found


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("readers", [1, 4])
def test_a_ring_is_proven_in_one_order(stages, readers):
    checked = check(alone(*ring(8, stages, readers)))
    assert checked.verified
    assert checked.states == 1
    assert not checked.races


def test_a_missing_arrival_is_a_deadlock_that_says_who_waits_for_whom():
    report = found(alone(*ring(8, release=False)))
    assert report.error is Deadlock
    producer, *readers = report.waits
    assert "warp 0 of CTA" in producer
    assert "1 of 2 arrivals" in producer
    assert "to come there: warp 1 of" in producer
    assert any("warps 1, 2 of CTA" in line and "to come there: warp 0 of" in line for line in readers)


def test_a_count_that_is_too_large_is_a_deadlock():
    assert found(alone(*ring(8, counted=3))).error is Deadlock


def test_a_count_that_is_too_small_is_found_although_some_orders_run_through():
    programs = ring(4, stages=1, readers=2, counted=1)
    assert found(alone(*programs)).error in (OverArrival, Deadlock, TransactionCount)


def test_a_swapped_parity_of_the_producer_is_a_deadlock():
    assert found(alone(*ring(8, first_wait=0))).error is Deadlock


def test_a_swapped_parity_of_a_reader_is_found_in_an_order_in_which_it_hangs():
    """With two slots and two uses nobody has to wait for the reader; it hangs if the slot is filled before it looks."""
    producer = [init(A, 1), *meet(0), arrive(A, 16), copy(A, 16)]
    assert found(alone(producer, [*meet(0), wait(A, 1)])).error is Deadlock


def test_a_ring_with_one_stage_too_few_is_a_deadlock():
    """Its reader gives a slot back only when it has the next one."""
    programs = {}
    for stages in (1, 2):
        producer, reader = ring(6, stages, readers=1)
        steps = iter(reader[2:])
        uses = list(zip(steps, steps, strict=True))
        held = [*reader[:2], uses[0][0]]
        for (_, release), (following, _) in itertools.pairwise(uses):
            held += [following, release]
        programs[stages] = [producer, [*held, uses[-1][1]]]
    assert found(alone(*programs[1])).error is Deadlock
    assert check(alone(*programs[2])).verified


def test_roles_with_crossed_waits_are_a_deadlock():
    both = [init(A, 1), init(B, 1), *meet(0)]
    report = found(alone([*both, wait(A, 0), arrive(B)], [*meet(0), wait(B, 0), arrive(A)]))
    assert report.error is Deadlock
    assert len(report.waits) == 2


def test_turns_at_named_barriers_are_proven():
    first, second = [], []
    for _ in range(4):
        first += [*meet(1, 64), *come(2, 64)]
        second += [*meet(2, 64), *come(1, 64)]
    checked = check(alone([*first], [*come(1, 64), *second]))
    assert checked.verified
    assert not checked.races


def test_a_turn_that_is_not_passed_is_a_deadlock():
    assert found(alone([*meet(1, 64)], [*meet(2, 64), *come(1, 64)])).error is Deadlock


def test_a_barrier_that_two_pairs_share_is_found_although_in_order_it_works():
    """Each pair meets twice: the first of one may meet the second of the other."""
    pair = [*meet(1, 64), *meet(1, 64)]
    checked = check(alone(pair, pair, pair, pair))
    assert checked.races
    lone = [*meet(1, 64)]
    assert found(alone(pair, pair, lone, lone, lone)).error is Deadlock  # who comes fifth finds nobody


def test_who_ends_need_not_come_where_all_that_live_do():
    assert check(alone([], [*meet(0)], [*meet(0)])).verified
    assert check(alone([*meet(0)], [*meet(0), *meet(0)])).verified


def test_a_barrier_that_may_be_used_before_it_is_initialised_is_found():
    assert found(alone([init(A, 1), arrive(A)], [wait(A, 0)])).error is OutOfBounds


def test_a_wait_that_may_miss_its_phase_is_found():
    """Nobody waits for the slow warp, so that both phases may end before it looks."""
    slow, fast = [*meet(0), wait(A, 0)], [init(A, 1), *meet(0), arrive(A), arrive(A)]
    report = found(alone(fast, slow))
    assert report.error is Deadlock
    assert "phase 2" in report.waits[0]


def test_bytes_that_are_expected_too_late_are_found():
    programs = [[init(A, 1), *meet(0), copy(A, 16), Step(EXPECT, A, 16)], [*meet(0), arrive(A)], [*meet(0), wait(A, 0)]]
    assert found(alone(*programs)).error in (TransactionCount, Deadlock)


def test_bytes_may_be_expected_behind_the_copy_as_long_as_they_come_before_the_arrival():
    assert check(alone([init(A, 1), *meet(0), copy(A, 16), arrive(A, 16)], [*meet(0), wait(A, 0)])).verified


def test_too_few_bytes_let_a_phase_end_under_its_copies():
    programs = [init(A, 1), *meet(0), arrive(A, 16), copy(A, 16), copy(A, 16)], [*meet(0), wait(A, 0)]
    assert found(alone(*programs)).error is TransactionCount


def test_copies_to_a_searched_barrier_may_end_in_any_order():
    """Two phases whose bytes differ: the second copy must not be taken for the first."""
    programs = [init(A, 1), *meet(0), arrive(A, 16), copy(A, 32), arrive(A, 32), copy(A, 16)], [*meet(0), wait(A, 0)]
    assert found(alone(*programs)).error in (TransactionCount, OverArrival)


def test_bytes_that_only_copies_bring_arrivals_to_must_be_expected_first():
    copied = Step(COPY, A, 16, 1)
    assert found(alone([init(A, 1), *meet(0), copied], [*meet(0), Step(EXPECT, A, 16)], [*meet(0), wait(A, 0)]))
    assert check(alone([init(A, 1), *meet(0), Step(COPY, A, 0, 1)], [*meet(0), wait(A, 0)])).verified


def test_warps_that_multiply_together_wait_for_each_other():
    first, second = [init(A, 1), *meet(0), *multiply(), arrive(A)], [*meet(0), wait(A, 0), *multiply()]
    report = found(alone(first, second))
    assert report.error is Deadlock
    assert any("products of warpgroup 0" in line and "to come there: warp 1" in line for line in report.waits)


def test_that_warps_multiply_together_orders_nothing_else():
    """The second phase may begin, as far as that is known, before the first is over."""
    order_by = {"barrier": meet(1, 64), "product": multiply()}
    races = {}
    for name, steps in order_by.items():
        first, second = [init(A, 1), *meet(0), arrive(A), *steps], [*meet(0), *steps, arrive(A)]
        races[name] = check(alone(first, second)).races
    assert not races["barrier"]
    assert races["product"]


def both(*steps):
    return Step(MEET, Thing("cluster barrier", CTA), 32), *steps, Step(PASS, Thing("cluster barrier", CTA))


def test_a_cluster_meets_before_it_reaches_for_each_others_barriers():
    there = mbarrier(0, PEER)
    first = cta([*both(), arrive(there), *both()])
    second = cta([init(there, 1), *both(), wait(there, 0), *both()], index=PEER)
    assert check(Skeleton([cluster(first, second)])).verified
    early = cta([arrive(there), *both(), *both()])
    assert found(Skeleton([cluster(second, early)])).error is OutOfBounds


def test_a_cta_that_may_end_under_the_others_arrival_is_found():
    there = mbarrier(0, PEER)
    second = cta([init(there, 1), *both()], index=PEER)
    report = found(Skeleton([cluster(cta([*both(), arrive(there)]), second)]))
    assert report.error is OutOfBounds
    assert "has ended" in report.what


def test_a_search_that_takes_too_long_says_so():
    pair = [*meet(1, 64)] * 6
    checked = check(alone(*[pair] * 8), most_states=50)
    assert not checked.verified
    assert not checked.complete


def test_what_is_no_order_alone_is_refused():
    with pytest.raises(Refused, match="a look at mbarrier 0x0 of CTA"):
        alone([Step(LOOK, A, 0)])
    with pytest.raises(Refused, match="too late"):
        alone([Step("until", counter(0), 1, "eq")])
    with pytest.raises(Refused, match="does not only grow"):
        alone([until(counter(0), 1)], [add(counter(0), -1)])
    with pytest.raises(Refused, match="initialised twice"):
        alone([init(A, 1), init(A, 2)])


def test_runs_that_took_other_steps_are_told_apart():
    first, second = alone([*meet(0), *meet(1)]), alone([*meet(0), *meet(2)])
    assert "warp 0 of CTA (0, 0, 0) takes other steps in another run, from its step 2" in difference(first, second)
    assert not difference(first, first)
    assert difference(first, alone([*meet(0)]))


def test_clusters_that_do_the_same_are_searched_once():
    places = [(i, 0, 0) for i in range(5)]
    checked = check(Skeleton([cta([*meet(1, 64, p)], [*meet(1, 64, p)], index=p) for p in places]))
    assert [n for _, n in checked.searches] == [5]
    assert checked.warps == 10
    assert Warp(places[0], 1) == (places[0], 1)
