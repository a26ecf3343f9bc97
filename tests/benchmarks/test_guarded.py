"""Work that hangs, dies or raises is named and does not take along what comes after it."""

import time

import pytest
from guarded import Guarded, Stopped
from guarded_work import work


@pytest.fixture
def guarded():
    found = Guarded(work, seconds=5.0)
    yield found
    found.end()


def stopped(guarded, item, **options):
    with pytest.raises(Stopped) as caught:
        guarded(item, **options)
    return caught.value.doing, caught.value.why


def test_a_process_lives_on_from_item_to_item(guarded):
    assert guarded("a")[0] == "a"
    assert guarded("b")[1] == guarded("c")[1]


def test_what_hangs_is_killed_and_named_and_a_fresh_process_goes_on(guarded):
    first = guarded("a")[1]
    guarded._seconds = 0.5
    assert stopped(guarded, "hang") == ("second step", "hung: 0.5 s without an end")
    guarded._seconds = 5.0
    assert guarded("b")[1] != first
    assert guarded.killed == 1


def test_the_limit_is_for_a_step_not_for_all(guarded):
    guarded("a")
    guarded._seconds = 1.5
    assert guarded("slow")[0] == "slow"


def test_what_dies_or_raises_is_named_with_the_whole_message(guarded):
    assert stopped(guarded, "die") == ("second step", "its process died with exit code -11")
    assert stopped(guarded, "raise") == ("second step", "ValueError: a whole message\nof two lines")
    assert guarded("a")[0] == "a"
    assert guarded.killed == 0


def test_at_the_end_of_the_time_it_is_killed_whatever_its_limit(guarded):
    guarded("a")
    assert stopped(guarded, "hang", until=time.monotonic() + 0.5) == ("second step", "the time was over")
    begin = time.monotonic()
    assert stopped(guarded, "a", until=begin - 1)[1] == "the time was over"
    assert time.monotonic() - begin < 5
