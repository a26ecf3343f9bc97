"""The covering array of the tests covers."""

import itertools

import pytest
from covering import covering_array


@pytest.mark.parametrize("sizes", [[2, 2], [3, 1, 4], [5, 2, 6, 2, 3, 3, 3, 2, 2, 2, 3]])
def test_every_two_factors_meet_at_every_two_levels(sizes):
    rows = covering_array(sizes)
    for a, b in itertools.combinations(range(len(sizes)), 2):
        assert {(row[a], row[b]) for row in rows} == set(itertools.product(range(sizes[a]), range(sizes[b])))


def test_it_is_hardly_longer_than_the_two_largest_factors_need():
    assert len(covering_array([5, 2, 6, 2, 3, 3, 3, 2, 2, 2, 3])) <= 33
