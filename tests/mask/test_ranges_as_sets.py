"""Ranges as sets of positions, with the methods that code written for MagiAttention calls."""

from enum import Enum
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cute_attn import AttnMaskType, AttnRange, AttnRanges, IntervalMask

pairs = st.tuples(st.integers(0, 20), st.integers(0, 8)).map(lambda pair: (pair[0], pair[0] + pair[1]))
ranges = st.lists(pairs, max_size=6).map(AttnRanges)


def positions(*several):
    return [x for r in several for x in range(r.start, r.end)]


def check_merged(found, expected):
    assert positions(*found) == sorted(expected)
    assert all(a.end < b.start for a, b in pairwise(found))
    assert not any(r.is_empty() for r in found)


@given(pairs, pairs)
def test_two_ranges_meet_as_sets_do(first, second):
    a, b = AttnRange(*first), AttnRange(*second)
    mine, theirs = set(positions(a)), set(positions(b))
    assert set(positions(a.intersect(b))) == mine & theirs
    assert a.is_overlap_with(b) == bool(mine & theirs) or a.is_empty() or b.is_empty()
    assert set(positions(*a.union(b))) == mine | theirs
    assert len(a.union(b)) == (1 if mine & theirs else 2)
    assert positions(*a.diff_by(b)) == sorted(theirs - mine)
    assert not any(r.is_empty() for r in a.diff_by(b))
    if mine:
        assert a.is_subrange_of(b) == (mine <= theirs)


@given(pairs, st.none() | st.integers(0, 20), st.none() | st.integers(0, 20))
def test_a_range_is_cut_to_bounds(pair, start, end):
    r = AttnRange(*pair)
    kept = [x for x in positions(r) if (start is None or x >= start) and (end is None or x < end)]
    assert positions(r.truncate(start, end)) == kept
    whole = AttnRanges([r, r])
    assert positions(*whole.truncate(start, end)) == kept * 2
    assert not any(part.is_empty() for part in whole.truncate(start, end))


def test_a_range_moves_and_is_its_own_copy():
    r = AttnRange(2, 6)
    assert r.offset(3) == AttnRange(5, 9)
    assert r.clone() == r
    assert r.to_naive_range() == (2, 6)
    with pytest.raises(ValueError, match="0 <= start"):
        r.offset(-3)


@given(ranges, ranges)
def test_lists_of_ranges_meet_as_sets_do(a, b):
    mine, theirs = set(positions(*a)), set(positions(*b))
    check_merged(a.merge(), mine)
    check_merged(a.find_overlap_ranges(b), mine & theirs)
    check_merged(a.find_hole_ranges(b), mine - theirs)
    assert a.intersect_size() == len(positions(*a)) - len(mine)
    assert [r.start for r in a.sort()] == sorted(r.start for r in a)


@given(ranges, st.integers(1, 7))
def test_chunks_hold_equally_many_positions(several, size):
    merged = several.merge()[::-1]
    found = merged.chunk(size)
    assert [x for piece in found for x in positions(*piece)] == positions(*merged)
    assert all(piece.total_seqlen == size for piece in found[:-1])
    assert not found or 0 < found[-1].total_seqlen <= size


@given(ranges)
def test_a_range_has_a_place_among_the_positions_of_others(several):
    order = sorted(set(positions(*several)))
    for r in several:
        if r.is_empty():
            continue
        local, target = several.make_range_local(r)
        assert order[local.start : local.end] == positions(r)
        assert r.is_subrange_of(target)
    with pytest.raises(ValueError, match=r"the range must lie in one of .* got \[50, 51\)"):
        several.make_range_local(AttnRange(50, 51))


def test_lists_are_edited_in_place():
    several = AttnRanges([[0, 2], [5, 9]])
    copy = several.clone()
    several.insert(1, [2, 3])
    several[0] = (0, 1)
    assert several.pop() == AttnRange(5, 9)
    assert several == AttnRanges([[0, 1], [2, 3]])
    assert (several.size, several.max_seqlen, several.is_empty()) == (2, 1, False)
    assert copy == AttnRanges([[0, 2], [5, 9]])
    assert (AttnRanges().is_empty(), AttnRanges().max_seqlen) == (True, 0)
    with pytest.raises(TypeError, match=r"expected \[start, end\], got 3"):
        several[0] = 3


def test_cumulative_lengths_come_and_go():
    several = AttnRanges.from_cu_seqlens([0, 4, 4, 9], 9)
    assert several.to_cu_seqlens(9) == [0, 4, 4, 9]
    assert AttnRanges().to_cu_seqlens(0) == [0]
    with pytest.raises(ValueError, match="cu_seqlens must end at seq_len, 10, got 9"):
        AttnRanges.from_cu_seqlens([0, 4, 9], 10)
    for wrong, length in ((several, 10), (AttnRanges([[1, 3]]), 3), (AttnRanges([[0, 2], [3, 4]]), 4)):
        with pytest.raises(ValueError, match=f"ranges must follow one another from 0 to {length}"):
            wrong.to_cu_seqlens(length)


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match=r"ranges must not overlap to be cut into chunks, got AttnRanges"):
        AttnRanges([[0, 3], [2, 5]]).chunk(2)
    with pytest.raises(ValueError, match="chunk_size must be positive, got 0"):
        AttnRanges([[0, 3]]).chunk(0)


class TheirType(Enum):
    FULL = "full"
    CAUSAL = "causal"


class TheirRanges:
    """Neither a Sequence nor a class of ours, as MagiAttention's are."""

    def __init__(self, *pairs):
        self.pairs = pairs

    def to_naive_ranges(self):
        return list(self.pairs)


def test_ranges_and_types_of_another_library_are_taken():
    expected = IntervalMask.from_slices([[0, 4], [4, 9]], [[0, 4], [2, 9]], ["causal", "full"])
    theirs = TheirRanges((0, 4), (4, 9)), TheirRanges((0, 4), (2, 9)), [TheirType.CAUSAL, TheirType.FULL]
    assert IntervalMask.from_slices(*theirs).equals(expected)
    one = SimpleNamespace(start=0, end=4)
    assert AttnRange.from_range(one) == AttnRange(0, 4)
    assert IntervalMask.from_slices([one], [one], TheirType.CAUSAL).area() == 10
    assert AttnMaskType.parse(TheirType.FULL) is AttnMaskType.FULL
    assert torch.equal(AttnRanges([one]).to_tensor(), torch.tensor([[0, 4]], dtype=torch.int32))
