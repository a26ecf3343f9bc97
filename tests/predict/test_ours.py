"""Our kernels as calls: the items that their schedules have."""

import numpy as np
import pytest
import torch

from cute_attn.launch.shapes import spec_for
from cute_attn.mask import IntervalMask, from_spec, full
from cute_attn.predict.chip import makespan, makespan_in_turns
from cute_attn.predict.kernel import Code, Loop, Step
from cute_attn.predict.ours import call_of

TOKENS, HEADS, BATCH = 1024, (8, 2), 2


def code(tensor_cycles):
    return Code((Loop((Step("run", (1, 0, 0, 0, 0)),), tensor_cycles, 0),))


def call(op, mask="causal", tensor_cycles=2048, heads=HEADS, **more):
    intervals = from_spec(mask, TOKENS)
    return call_of(spec_for(op, "bf16", 128, 128, intervals, **more), code(tensor_cycles), intervals, heads, BATCH)


def test_the_forward_has_an_item_for_every_query_tile_of_every_head():
    found = call("fwd")
    assert len(found.partial) == 8 * HEADS[0] * BATCH
    assert (found.partial.sum(), found.full.sum()) == (8 * 16, 28 * 16)
    assert found.partial[0] + found.full[0] == 8  # the longest first


def test_heads_that_share_tiles_share_items():
    intervals = full(16, TOKENS)  # few rows: one tile has all four heads of a key head
    of_one, packed = (
        call_of(spec_for("fwd", "bf16", 128, 128, intervals, heads=heads), code(2048), intervals, HEADS, BATCH)
        for heads in (None, HEADS)
    )
    assert (len(of_one.partial), len(packed.partial)) == (HEADS[0] * BATCH, HEADS[1] * BATCH)
    assert packed.full.tolist() == [TOKENS // 128] * len(packed.full)
    assert (packed.flop, packed.moved) == (of_one.flop, of_one.moved)


def test_the_backward_has_an_item_for_every_key_tile_of_every_key_head_that_walks_its_query_heads():
    found = call("bwd")
    assert len(found.partial) == 8 * HEADS[1] * BATCH
    tiles = 16 * 8 - sum(2 * key_tile for key_tile in range(8))  # of 64 rows and 128 keys, not above the diagonal
    assert found.partial.sum() + found.full.sum() == tiles * HEADS[0] * BATCH


def test_turns_begin_with_the_first_key_tile_and_the_last_queries_of_every_head():
    found = call("bwd", deterministic=True)
    assert len(found.sums) == len(found.partial)
    assert [len(sums) for sums in found.sums] == (found.partial + found.full).tolist()
    assert found.sums[0].tolist() == [16 * head + tile for tile in reversed(range(16)) for head in range(4)]
    assert sorted(set(found.sums[-1] % 16)) == [14, 15]
    assert max(int(sums.max()) for sums in found.sums) == 16 * HEADS[0] * BATCH - 1


def test_under_a_causal_mask_items_find_their_turns_in_step():
    sums = call("bwd", deterministic=True).sums
    longest = 16 * HEADS[0] // HEADS[1]
    for addition in (0.0, 1.0):
        assert makespan_in_turns(sums, 1.0, 0.0, addition, len(sums)) == longest


def test_under_a_full_mask_each_key_tile_waits_for_those_before_it():
    sums = call("bwd", "full", deterministic=True).sums
    for addition in (0.0, 1.0):
        assert makespan_in_turns(sums, 1.0, 0.0, addition, len(sums)) == 16 * HEADS[0] // HEADS[1] + 7 * addition


@pytest.mark.parametrize("mask", ["causal", "full", "sliding_window:left=255,right=0"])
def test_turns_never_save_time_and_the_work_bounds_them(mask):
    sums = call("bwd", mask, deterministic=True).sums
    steps = np.array([len(numbers) for numbers in sums], dtype=float)
    without = makespan(steps, 3, dealt=False)
    for addition in (0.0, 0.5, 1.0):
        assert without <= makespan_in_turns(sums, 1.0, 0.0, addition, 3) <= steps.sum() * (1 + addition)


def test_flop_are_those_of_attended_pairs():
    pairs = TOKENS * (TOKENS + 1) / 2 * HEADS[0] * BATCH
    assert call("fwd").flop == 4 * 128 * pairs
    assert call("bwd").flop == 10 * 128 * pairs


def test_a_pass_of_two_tiles_is_told_by_its_products():
    assert (call("fwd").tiles_in_pass, call("fwd", tensor_cycles=1024).tiles_in_pass) == (2, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: call("fwd", heads=(8, 3)), "heads_q must be a multiple of heads_k, got 8 and 3"),
        (lambda: call("fwd", heads=(1 << 20, 1)), "tiles of queries, at most 2097152"),
        (lambda: call("bwd", heads=(1 << 17, 1 << 17), deterministic=True), "tiles that take turns, at most"),
        (lambda: call("decode"), "op must be one of 'fwd', 'bwd', got 'decode'"),
    ],
)
def test_what_the_model_does_not_know_is_refused_by_name(change, words):
    with pytest.raises(ValueError, match=words):
        change()


def test_planes_of_their_own_are_refused():
    ends = torch.arange(1, 129, dtype=torch.int32).repeat(2, 1, 1)
    mask = IntervalMask(torch.zeros_like(ends), ends, 128)
    with pytest.raises(ValueError, match="mask must be shared by all heads and batch elements, got one of 2 planes"):
        call_of(spec_for("fwd", "bf16", 128, 128, mask), code(2048), mask, HEADS)
