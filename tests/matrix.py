"""What holds of the forward and of the backward alike: imported by both matrices, whose fixture `check` runs a case."""

import pytest
import torch
from cases import BUILDERS, DIMS, HEADS, LENGTHS, ODD_DIMS, SLICES, Case, random_blocks
from oracle import random_slices

from cute_attn.mask import IntervalMask, causal, full

__all__ = [
    "test_block_sparse_masks_whose_tiles_are_all_full",
    "test_every_head_dim_and_dtype",
    "test_every_mask_builder",
    "test_every_pair_of_lengths",
    "test_grouped_queries_and_batches",
    "test_random_slices_of_mixed_types",
]


@pytest.mark.parametrize("name", BUILDERS)
def test_every_mask_builder(name, backend, check):
    check(Case(BUILDERS[name]), backend)


@pytest.mark.parametrize(("n", "rows", "keys"), SLICES)
def test_random_slices_of_mixed_types(n, rows, keys, backend, check):
    check(Case(IntervalMask.from_slices(*random_slices(n, rows, keys), rows, keys)), backend)


@pytest.mark.parametrize("density", [0.2, 0.6])
def test_block_sparse_masks_whose_tiles_are_all_full(density, backend, check):
    check(Case(random_blocks(density)), backend)


@pytest.mark.parametrize("rows", LENGTHS)
@pytest.mark.parametrize("keys", LENGTHS)
@pytest.mark.parametrize("builder", [causal, full])
def test_every_pair_of_lengths(builder, rows, keys, backend, check):
    check(Case(builder(rows, keys)), backend)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("batch", [1, 3])
def test_grouped_queries_and_batches(heads, batch, backend, check):
    check(Case(causal(200), batch=batch, heads=heads, mode="random", seed=batch), backend)


@pytest.mark.parametrize("dims", DIMS + ODD_DIMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_head_dim_and_dtype(dims, dtype, backend, check):
    check(Case(causal(300), dims=dims, dtype=dtype), backend)
    check(Case(causal(140, 300), dims=dims, dtype=dtype, mode="late"), backend)
