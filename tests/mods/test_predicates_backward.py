"""Gradients under masks that a predicate thins, on the kernels, in simulation, against the dense formula in fp64."""

import pytest
import torch
from test_score_mods_backward import check, every_kind_of_read, in_one_order

from cute_attn import BlockMask, backend, create_block_mask, create_mask

SIGNS = torch.randn(300, generator=torch.Generator().manual_seed(1))
PAIRS = torch.rand(300, 300, generator=torch.Generator().manual_seed(2)) > 0.5
KEEP = torch.rand(2, 4, 300, generator=torch.Generator().manual_seed(0)) > 0.5


def dilated(b, h, q, k):
    return (q - k) % 3 == 0


def compared_twice(b, h, q, k):
    """Reads two elements of a row."""
    return (SIGNS[q] * SIGNS[k] < 0.5) & (SIGNS[299 - q] * SIGNS[k] > -1.0)


def listed(b, h, q, k):
    """Reads an element for every pair."""
    return PAIRS[q, k]


def of_heads(b, h, q, k):
    """Of each batch element and head; some rows have no keys."""
    return KEEP[b, h, k] & (SIGNS[q] * SIGNS[k] > 0) & (q % 7 != 3)


def thinned(mask_mod, batch, heads, rows, keys):
    block_mask = create_block_mask(mask_mod, batch, heads, rows, keys, device="cpu", BLOCK_SIZE=64)
    assert block_mask.intervals is None
    return block_mask, create_mask(mask_mod, batch or 1, heads or 1, rows, keys, device="cpu")


def with_certain_blocks(mask_mod, rows, keys):
    """Full blocks, all of whose pairs are attended, among partial ones."""
    full = torch.tensor([[[[0, 2], [1, 0], [0, 1]]]], dtype=torch.int32)
    counts, partial = torch.ones(1, 1, 3, dtype=torch.int32), 1 - full.clamp(max=1)
    block_mask = BlockMask.from_kv_blocks(
        counts, partial, counts, full, BLOCK_SIZE=64, mask_mod=mask_mod, seq_lengths=(rows, keys)
    )
    says = create_mask(mask_mod, 1, 1, rows, keys, device="cpu")
    attended = torch.zeros_like(says)
    for row in range(3):
        here = slice(row * 64, (row + 1) * 64)
        for lists, pairs in ((partial, says), (full, torch.ones_like(says))):
            there = slice(int(lists[0, 0, row, 0]) * 64, (int(lists[0, 0, row, 0]) + 1) * 64)
            attended[..., here, there] = pairs[..., here, there]
    return block_mask, attended


@pytest.mark.slow
def test_pairs_that_a_predicate_leaves_and_no_others_have_gradients():
    mask, attended = thinned(dilated, None, None, 130, 300)
    with backend("sim"):
        check(mask, lambda c: None, attended=attended)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "seed"), [("eager", 0), ("late", 0), ("random", 1)])
def test_a_predicate_asked_while_the_products_run(mode, seed):
    """As at head_dim 128, where what it reads of the rows would overfill the registers."""
    mask, attended = thinned(compared_twice, None, None, 70, 140)
    with backend("sim", mode=mode, seed=seed):
        check(mask, lambda c: None, attended=attended, dims=(128, 128))


@pytest.mark.slow
def test_pairs_of_full_blocks_are_attended_whatever_a_predicate_said_while_the_products_ran():
    mask, attended = with_certain_blocks(listed, 170, 160)
    with backend("sim"):
        check(mask, in_one_order, attended=attended, dims=(128, 128))


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "seed"), [("late", 0), ("random", 1)])
def test_planes_with_a_score_mod(mode, seed):
    mask, attended = thinned(of_heads, 2, 4, 130, 270)
    with backend("sim", mode=mode, seed=seed):
        check(mask, every_kind_of_read, attended=attended, batch=2)


@pytest.mark.slow
def test_pairs_of_full_blocks_are_attended_whatever_the_predicate_says():
    mask, attended = with_certain_blocks(dilated, 170, 300)
    with backend("sim"):
        check(mask, every_kind_of_read, attended=attended)


@pytest.mark.slow
def test_a_predicate_at_the_largest_head_dim_in_one_order():
    mask, attended = thinned(dilated, None, None, 130, 300)
    with backend("sim", seed=1, mode="random"):
        check(mask, lambda c: lambda s, b, h, q, k: 2.0 * torch.tanh(s / 2.0), attended=attended, dims=(256, 256))
