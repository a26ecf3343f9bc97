"""A tile schedule is the grid of brute force, written as runs, in both directions."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import random_slices

from cute_attn.mask import IntervalMask, TileSchedule, causal


def grid_by_brute_force(mask: IntervalMask, tile: tuple[int, int]) -> torch.Tensor:
    dense, (m, n) = mask.to_dense(), tile
    q_tiles, k_tiles = -(-mask.seqlen_q // m), -(-mask.seqlen_k // n)
    grid = torch.zeros(mask.batch, q_tiles, k_tiles, dtype=torch.int8)
    for b in range(mask.batch):
        for i in range(q_tiles):
            for j in range(k_tiles):
                part = dense[b, i * m : (i + 1) * m, j * n : (j + 1) * n]
                ragged = (j + 1) * n > mask.seqlen_k
                grid[b, i, j] = 0 if not part.any() else 2 if part.all() and not ragged else 1
    return grid


@st.composite
def masks(draw, max_seqlen=40, max_layers=5):
    """Random intervals a row, either unrelated from row to row or moving slowly, as real masks do."""
    batch, layers = draw(st.integers(1, 3)), draw(st.integers(1, max_layers))
    seqlen_q, seqlen_k = draw(st.integers(0, max_seqlen)), draw(st.integers(0, max_seqlen))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    lo = torch.randint(0, seqlen_k + 1, (batch, layers, seqlen_q), generator=generator)
    hi = lo + torch.randint(0, 12, lo.shape, generator=generator)
    if draw(st.booleans()):
        step = torch.arange(seqlen_q) // draw(st.integers(1, 8))
        lo, hi = (x[:, :, :1].expand(batch, layers, seqlen_q) // 4 * 4 + step for x in (lo, hi + 4))
    return IntervalMask.from_intervals(lo, hi, seqlen_k)


TILES = st.sampled_from([(4, 4), (3, 5), (8, 4), (1, 1), (64, 2), (16, 64)])


@settings(deadline=None, max_examples=150)
@given(masks(), TILES)
def test_both_directions_give_the_grid_of_brute_force(mask, tile):
    schedule = TileSchedule.from_mask(mask, tile)
    expected = grid_by_brute_force(mask, tile)
    assert torch.equal(schedule.to_grid(), expected)
    assert torch.equal(schedule.to_grid_transposed(), expected.transpose(1, 2))


@settings(deadline=None, max_examples=100)
@given(masks(), TILES)
def test_a_partial_run_names_exactly_the_layers_that_meet_each_of_its_tiles(mask, tile):
    schedule = TileSchedule.from_mask(mask, tile)
    m, n = tile
    for table, forward in ((schedule.forward, True), (schedule.backward, False)):
        for batch, here, partial_begin, full_begin, end, _, _ in table.items.tolist():
            for first, last, layer_begin, layer_end in table.runs[partial_begin:full_begin].tolist():
                for there in range(first, last):
                    q, k = (here, there) if forward else (there, here)
                    lo, hi = (x[batch, :, q * m : (q + 1) * m] for x in (mask.lo, mask.hi))
                    meets = (lo.clamp(min=k * n) < hi.clamp(max=(k + 1) * n)).any(1).nonzero().squeeze(1).tolist()
                    assert [layer_begin, layer_end] == [meets[0], meets[-1] + 1]
            assert (table.runs[full_begin:end, 2:] == 0).all()


@settings(deadline=None, max_examples=100)
@given(masks(), TILES)
def test_runs_are_maximal_ascending_and_counted_and_items_come_longest_first(mask, tile):
    schedule = TileSchedule.from_mask(mask, tile)
    for table, tiles in ((schedule.forward, schedule.q_tiles), (schedule.backward, schedule.k_tiles)):
        items = table.items.tolist()
        assert sorted((i[0], i[1]) for i in items) == [(b, t) for b in range(mask.batch) for t in range(tiles)]
        lengths = [i[5] + i[6] for i in items]
        assert lengths == sorted(lengths, reverse=True)
        for _, _, partial_begin, full_begin, end, n_partial, n_full in items:
            for begin, stop, count in ((partial_begin, full_begin, n_partial), (full_begin, end, n_full)):
                runs = table.runs[begin:stop].tolist()
                assert sum(last - first for first, last, _, _ in runs) == count
                for left, right in pairwise(runs):
                    assert left[1] < right[0] or (left[1] == right[0] and left[2:] != right[2:])


def test_a_causal_mask_of_a_million_tokens_has_two_runs_a_tile():
    rows = 1 << 20
    mask = IntervalMask.from_slices([[0, rows]], [[0, rows]], "causal")
    schedule = TileSchedule.from_mask(mask)
    for table in (schedule.forward, schedule.backward):
        assert len(table.runs) == 2 * 8192 - 1  # one tile has nothing but its diagonal
        assert table.items[:, 5:].sum() == 8192 * 8193 // 2
    assert schedule.layers == 1
    assert schedule.forward.items[0].tolist()[:2] == [0, 8191]
    assert schedule.backward.items[0].tolist()[:2] == [0, 0]


def test_a_dense_mask_has_no_layers_and_a_partial_tile_only_where_the_keys_end():
    for seqlen_k, partial in ((256, 0), (300, 3)):
        schedule = TileSchedule.from_mask(IntervalMask.from_slices([[0, 300]], [[0, seqlen_k]]))
        assert schedule.layers == 0
        assert (schedule.to_grid() == 1).sum() == partial


def test_empty_rows_do_not_hide_a_neighbour_that_touches_the_same_tile():
    lo = torch.tensor([[[1, 1, 3, 2]]], dtype=torch.int32)
    hi = torch.tensor([[[1, 2, 3, 2]]], dtype=torch.int32)  # only the second row has a key
    schedule = TileSchedule.from_mask(IntervalMask(lo, hi, 8), (4, 4))
    assert schedule.to_grid().tolist() == [[[1, 0]]]
    assert schedule.to_grid_transposed().tolist() == [[[1], [0]]]


def test_rows_past_the_end_count_as_covering():
    schedule = TileSchedule.from_mask(IntervalMask.from_slices([[0, 1]], [[0, 128]]))
    assert schedule.to_grid().tolist() == [[[2]]]


def test_block_sparse_slices_make_full_tiles_only():
    blocks = torch.rand(32, 32) < 0.3
    q, k = blocks.nonzero(as_tuple=True)
    slices = [torch.stack([x * 128, x * 128 + 128], 1) for x in (q, k)]
    schedule = IntervalMask.from_slices(*slices, None, 4096, 4096).schedule()
    assert torch.equal(schedule.to_grid()[0], blocks.to(torch.int8) * 2)


def test_empty_sequences_and_empty_masks_have_no_runs():
    for seqlen_q, seqlen_k in ((0, 0), (0, 300), (300, 0), (300, 300)):
        mask = IntervalMask.from_slices([], [], None, seqlen_q, seqlen_k)
        schedule = TileSchedule.from_mask(mask)
        assert len(schedule.forward.runs) == len(schedule.backward.runs) == 0
        assert schedule.to_grid().shape == (1, -(-seqlen_q // 128), -(-seqlen_k // 128))
        assert not schedule.to_grid().any()


def test_a_schedule_is_made_once_for_each_tile_shape():
    mask = IntervalMask.from_slices([[0, 300]], [[0, 300]], "causal")
    assert mask.schedule((128, 128)) is mask.schedule((128, 128))
    assert mask.schedule([128, 128]) is mask.schedule((128, 128))
    assert mask.schedule((64, 128)) is not mask.schedule((128, 128))


@pytest.mark.parametrize("tile", [(0, 128), (128,), (128, -1), (64.0, 64), (True, 4), 128, None, (1 << 70, 1)])
def test_a_tile_that_is_not_two_positive_ints_is_refused(tile):
    mask = IntervalMask.from_slices([[0, 3]], [[0, 3]])
    with pytest.raises(ValueError, match="tile must be"):
        TileSchedule.from_mask(mask, tile)


@pytest.mark.parametrize("tile", [(128, 128), (64, 80), (64, 256), (7, 16)])
def test_rows_without_keys_and_keys_without_rows_are_marked(tile):
    masks = [IntervalMask.from_slices(*random_slices(n, 333, 500), 333, 500) for n in (1, 3, 8)]
    layers = max(mask.layers for mask in masks)
    both = [
        torch.cat([torch.nn.functional.pad(getattr(m, side), (0, 0, 0, layers - m.layers)) for m in masks])
        for side in ("lo", "hi")
    ]
    mask = IntervalMask(*both, 500)
    schedule, dense = mask.schedule(tile), mask.to_dense()
    for words, idle, size in (
        (schedule.idle_rows, ~dense.any(2), tile[0]),
        (schedule.idle_keys, ~dense.any(1), tile[1]),
    ):
        marked = torch.zeros_like(idle)
        for batch, at in idle.nonzero().tolist():
            marked[batch, at] = words[batch, at // size, at % size % 32] >> (at % size // 32) & 1
        assert torch.equal(marked, idle)
        assert idle.any()
        assert sum(bin(word).count("1") for word in words.flatten().tolist()) == idle.sum()


def test_masks_without_idle_rows_and_keys_mark_no_tile():
    schedule = causal(1000).schedule((128, 80))
    assert schedule.idle_rows.shape == schedule.idle_keys.shape == (1, 0, 32)
