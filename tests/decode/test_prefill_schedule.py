"""The schedule of a prefill, made on the device of its lengths, against that of the mask. Nothing is compiled."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cute_attn import IntervalMask
from cute_attn.caches import KVCache
from cute_attn.decode_reference import intervals_of_tokens
from cute_attn.launch.prefill import bounds, is_prefill, piece_of, schedule
from cute_attn.mask.tiles import RunTable, _grid_of

LENGTHS = (0, 1, 63, 64, 65, 300, 1000)
WINDOWS = [(-1, -1), (-1, 0), (20, 0), (0, 0), (100, 7), (-1, 30), (50, -1), (400, 300)]
TILES = [(128, 128), (128, 80), (64, 16)]


def cache_of(lengths, capacity=1024, dtype=torch.bfloat16, page_size=None):
    shape = (len(lengths), capacity) if page_size is None else (5, page_size)
    pool = torch.empty(*shape, 1, 8, dtype=dtype)
    table = None if page_size is None else torch.zeros(len(lengths), 4, dtype=torch.int32)
    return KVCache(pool, pool, torch.tensor(lengths, dtype=torch.int32), table=table)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("tokens", [65, 130, 257])
def test_the_keys_of_a_token_are_those_of_the_reference(window, tokens):
    lo, hi = bounds(cache_of(LENGTHS), tokens, window)
    for i, length in enumerate(LENGTHS):
        low, high = intervals_of_tokens(tokens, length, window, None, torch.device("cpu"))
        assert torch.equal((hi[i] - lo[i]).clamp(min=0), high - low)
        assert torch.equal(lo[i][low < high], low[low < high])
    assert bool((lo.diff() >= 0).all())
    assert bool((hi.diff() >= 0).all())


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("tokens", [65, 130, 257])
def test_its_tiles_are_those_of_the_mask(tile, window, tokens):
    lo, hi = bounds(cache_of(LENGTHS), tokens, window)
    items, runs = schedule(lo, hi, tile)
    assert items.dtype == runs.dtype == torch.int32
    table = RunTable(items, runs)
    for i in range(len(LENGTHS)):
        mask = IntervalMask(torch.minimum(lo, hi)[i : i + 1], hi[i : i + 1], 1024)
        wanted = mask.schedule(tile)
        own = RunTable(items[table.columns.plane == i], runs)
        own.items[:, 0] = 0
        grid = _grid_of(own, 1, wanted.q_tiles, wanted.k_tiles)
        whole = wanted.to_grid()
        met = (whole > 0).cumsum(2) * (whole > 0).flip(2).cumsum(2).flip(2) > 0  # and what lies between
        assert torch.equal(grid > 0, met)
        assert torch.equal(grid == 2, whole == 2)
        counts = own.columns
        order = counts.tile.long().argsort()
        assert torch.equal(counts.n_partial[order].long(), (grid == 1).sum(2)[0])
        assert torch.equal(counts.n_full[order].long(), (grid == 2).sum(2)[0])
    visited = table.columns.n_partial + table.columns.n_full
    assert bool((visited.diff() <= 0).all())  # longest first


def test_lengths_are_never_read_by_the_host():
    with FakeTensorMode():
        lengths = torch.empty(6, dtype=torch.int32)
        pool = torch.empty(6, 1024, 1, 8)
        items, runs = schedule(*bounds(KVCache(pool, pool, lengths), 300, (20, 0)), (128, 128))
    assert (items.shape, runs.shape) == ((18, 7), (54, 4))


def test_no_window_overflows():
    lo, hi = bounds(cache_of((3, 1000)), 500, (2**31 - 1, 2**31 - 1))
    assert not lo.any()
    assert torch.equal(hi[:, 0, :], torch.tensor([[3], [1000]]).expand(2, 500))


def test_a_piece_divides_pages_and_tiles():
    assert [piece_of(size, 128) for size in (8, 24, 48, 64, 96, 128, 256, 640)] == [8, 8, 16, 64, 32, 128, 128, 128]
    assert [piece_of(size, n) for size in (16, 64, 256) for n in (112, 80)] == [16] * 6


def test_which_calls_are_a_prefill():
    def is_one(tokens, **cache):
        return is_prefill(torch.empty(1, tokens, 1, 8), cache_of((3,), **cache))

    assert [is_one(tokens) for tokens in (1, 64, 65, 4096)] == [False, False, True, True]
    assert [is_one(65, page_size=size) for size in (1, 7, 8, 12, 16, 256)] == [False, False, True, False, True, True]
    assert not is_one(65, dtype=torch.int8)
