"""Masks that a predicate thins, as kernels know them: their intervals, marks, tiles and idle keys."""

import pytest
import torch

from cute_attn.mask import IntervalMask, causal, full
from cute_attn.mask.source import MaskSource
from cute_attn.mask.thinned import MARK, thin


def random_mask(numbers):
    """Two planes of up to three intervals a row, some rows without."""
    lo, hi = torch.randint(0, 50, (2, 2, 3, 40), generator=numbers)
    hi = torch.where(torch.rand(2, 1, 40, generator=numbers) < 0.2, lo, hi)
    return IntervalMask.from_intervals(lo, hi, 50)


def example(seed, holds):
    """A mask, pairs of it that are certain, a predicate on all pairs; and the mask thinned by it."""
    numbers = torch.Generator().manual_seed(seed)
    certain = random_mask(numbers)
    mask = certain | random_mask(numbers)
    said = torch.rand(mask.to_dense().shape, generator=numbers) > 0.7
    said |= certain.to_dense() if holds else torch.zeros((), dtype=torch.bool)
    attended = mask.to_dense() & (said | certain.to_dense())
    return mask, certain, attended, thin(mask, certain, attended.any(2), attended.any(1), holds)


@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_what_kernels_read_says_which_pairs_may_be_attended_and_which_are(seed, holds):
    _, certain, attended, thinned = example(seed, holds)
    thinning = thinned._thinning
    lo = thinning.lo - MARK * (thinning.lo < 0).int()
    tested = IntervalMask.from_intervals(lo, thinning.tested.hi, thinned.seqlen_k)
    assert torch.equal(tested.to_dense(), thinned.to_dense())
    assert not (attended & ~tested.to_dense()).any()
    assert torch.equal((thinned.lo < thinned.hi).any(1), attended.any(2))
    marked = IntervalMask.from_intervals(lo, torch.where(thinning.lo < 0, thinning.tested.hi, lo), thinned.seqlen_k)
    assert torch.equal(marked.to_dense(), torch.zeros_like(attended) if holds else certain.to_dense())


@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_tiles_are_full_where_all_pairs_are_certain_and_partial_where_some_may_be_attended(seed, holds):
    _, certain, _, thinned = example(seed, holds)
    tile = 16, 8
    grid = thinned.schedule(tile).to_grid()
    of_certain = certain.schedule(tile).to_grid()
    assert torch.equal(grid == 2, of_certain == 2)
    assert torch.equal(grid > 0, thinned.schedule(tile).to_grid() > 0)
    assert torch.equal(grid > 0, IntervalMask(thinned.lo, thinned.hi, thinned.seqlen_k).schedule(tile).to_grid() > 0)


def test_without_certain_pairs_no_tile_is_full():
    mask = full(40, 64)
    everything = torch.ones(1, 40, dtype=torch.bool), torch.ones(1, 64, dtype=torch.bool)
    assert (thin(mask, None, *everything, True).schedule((16, 16)).to_grid() == 1).all()


def test_keys_that_the_predicate_leaves_to_nobody_are_idle():
    keys = torch.arange(64)[None] % 3 != 0
    thinned = thin(causal(64), None, torch.ones(1, 64, dtype=torch.bool), keys, True)
    words = thinned.schedule((64, 64)).idle_keys[0, 0]
    idle = torch.stack([(words >> w) & 1 for w in range(2)]).flatten()
    assert torch.equal(idle == 1, ~keys[0])


@pytest.mark.parametrize("holds", [True, False])
def test_a_source_makes_the_same_mask_again(holds):
    _, _, _, thinned = example(1, holds)
    source = MaskSource.of_mask(thinned)
    again = source.build(thinned.seqlen_q, thinned.seqlen_k, torch.device("cpu"))
    assert source.planes == thinned.planes
    assert torch.equal(again._thinning.lo, thinned._thinning.lo)
    for mine, theirs in zip(again.schedule((16, 8)).forward.runs, thinned.schedule((16, 8)).forward.runs, strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(again._thinning.idle_keys, thinned._thinning.idle_keys)
