"""Masks and placements that the tests of the plan share, and a dense account of what plans attend."""

import itertools

import torch

from cute_attn.dist import Placement
from cute_attn.mask import IntervalMask, builders, packed

LENGTH = 203


def random_slices(length_q, length_k, count=6):
    ends = [torch.randint(0, n + 1, (count, 2)).sort(1).values for n in (length_q, length_k)]
    return IntervalMask.from_slices(*ends, torch.randint(0, 4, (count,)), length_q, length_k)


def masks(length=LENGTH):
    cuts = [0, 17, 18, 90, 163, length]
    return {
        "causal": builders.causal(length),
        "full": builders.full(length),
        "window": builders.sliding_window(length, left=20, right=0),
        "documents": packed.causal_documents(length, cu_seqlens=cuts),
        "slices": random_slices(length, length),
        "many_layers": random_slices(length, length, 40),
        "nothing": IntervalMask.from_slices([], [], None, length, length),
    }


def random_placement(length, world, chunk_size):
    per_rank = -(-length // (world * chunk_size))
    chunks = torch.randperm(world * per_rank).reshape(world, per_rank).sort(1).values
    return Placement(length, chunk_size, chunks)


def count_pairs(parts, rows, keys):
    """int64 `(rows, keys)`: how often each pair is attended by `parts` of (mask, query positions, key positions).

    Positions past the end are padding; a part that attends it fails here.
    """
    seen = torch.zeros(rows, keys, dtype=torch.int64)
    for mask, query, key in parts:
        row, column = mask.to_dense()[0].nonzero(as_tuple=True)
        seen.index_put_((query[row], key[column]), torch.tensor(1), accumulate=True)
    return seen


def chain(lists):
    return list(itertools.chain.from_iterable(lists))
