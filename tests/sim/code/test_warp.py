"""Instructions among the lanes of a warp."""

import numpy as np
import pytest
from snippet import compute, run

from cute_attn.sim.errors import Deadlock

RANDOM = np.random.default_rng(3)
X = RANDOM.integers(0, 2**32, 128, dtype=np.uint32)
LANE = np.arange(128) % 32
BASE = np.arange(128) - LANE


@pytest.mark.parametrize(
    ("mode", "operand", "source"),
    [
        ("bfly", 5, LANE ^ 5),
        ("idx", 7, np.full(128, 7)),
        ("down", 3, np.where(LANE + 3 < 32, LANE + 3, LANE)),
        ("up", 4, np.where(LANE >= 4, LANE - 4, LANE)),
    ],
)
def test_shuffles_within_a_warp(mode, operand, source):
    bound = 0 if mode == "up" else 31
    y = compute(f"shfl.sync.{mode}.b32 %y, %x0, {operand}, {bound}, -1;", X, result=np.uint32)
    np.testing.assert_array_equal(y, X[BASE + source])


def test_shuffles_in_segments_say_who_is_in_range():
    lines = "shfl.sync.down.b32 %y|%p1, %x0, 2, 0x1c1f, -1; selp.b32 %r1, 1, 0, %p1; xor.b32 %y, %y, %r1;"  # fours
    y = compute(lines, X & ~np.uint32(1), result=np.uint32)
    inside = LANE % 4 < 2
    np.testing.assert_array_equal(
        y, np.where(inside, (X & ~np.uint32(1))[BASE + (LANE + 2 * inside) % 32] | 1, X & ~np.uint32(1))
    )


def test_shuffles_with_an_index_of_each_lane():
    index = RANDOM.integers(0, 32, 128).astype(np.uint32)
    y = compute("shfl.sync.idx.b32 %y, %x0, %x1, 31, -1;", X, index, result=np.uint32)
    np.testing.assert_array_equal(y, X[BASE + index])


@pytest.mark.parametrize(("mode", "function"), [("any", np.any), ("all", np.all)])
def test_votes(mode, function):
    odd = np.repeat([0, 1, 1, 0], 32).astype(np.uint32)
    odd[5] = 1
    odd[70] = 0
    y = compute(
        f"setp.ne.b32 %p1, %x0, 0; vote.sync.{mode}.pred %p2, %p1, -1; selp.b32 %y, 1, 0, %p2;", odd, result=np.uint32
    )
    np.testing.assert_array_equal(y, np.repeat(function(odd.reshape(4, 32), axis=1), 32))


def test_ballots():
    y = compute("setp.gt.s32 %p1, %x0, 0; vote.sync.ballot.b32 %y, %p1, -1;", X.view(np.int32), result=np.uint32)
    word = ((X.view(np.int32) > 0).reshape(4, 32) << np.arange(32)).sum(axis=1)
    np.testing.assert_array_equal(y, np.repeat(word, 32))


@pytest.mark.parametrize(
    ("mode", "ufunc"), [("add", np.add), ("max", np.maximum), ("and", np.bitwise_and), ("xor", np.bitwise_xor)]
)
def test_reductions_over_a_warp(mode, ufunc):
    kind = "b32" if mode in ("and", "xor") else "u32"
    y = compute(f"redux.sync.{mode}.{kind} %y, %x0, -1;", X, result=np.uint32)
    np.testing.assert_array_equal(y, np.repeat(ufunc.reduce(X.reshape(4, 32), axis=1, dtype=np.uint32), 32))


def test_match_finds_equal_lanes():
    x = (X % 5).astype(np.uint32)
    y = compute("match.any.sync.b32 %y, %x0, -1;", x, result=np.uint32)
    same = x.reshape(4, 1, 32) == x.reshape(4, 32, 1)
    np.testing.assert_array_equal(y, (same << np.arange(32)).sum(axis=-1).reshape(-1))


def test_one_lane_of_each_warp_is_elected():
    y = compute("elect.sync _|%p1, -1; selp.b32 %y, 1, 0, %p1;", X, result=np.uint32)
    np.testing.assert_array_equal(y, LANE == 0)


def test_the_lowest_named_lane_is_elected():
    lines = "mov.b32 %y, 99; setp.lt.u32 %p1, %lane, 12; @%p1 bra END; elect.sync %y|%p2, 0xfffff000; END:"
    y = compute(lines, X, result=np.uint32)
    np.testing.assert_array_equal(y, np.where(LANE < 12, 99, 12))


def test_lanes_named_by_the_mask_must_be_there():
    out = np.zeros(1, np.uint32)
    body = "setp.lt.u32 %p1, %lane, 12; @%p1 bra END; shfl.sync.bfly.b32 %r1, %t, 1, 31, -1; END:"
    with pytest.raises(Deadlock, match="member mask"):
        run(body, out)
