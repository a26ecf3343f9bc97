"""The masks that compare by what they were made of, and the orders of rows."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch

from cute_attn import (
    ChunkedCausalMask,
    IntervalMask,
    LoadBalancedCausalMask,
    StripedMask,
    balanced_order,
    flex_flash_attn_func,
    mask,
)


def pairs(order, keys, predicate):
    return torch.tensor([[predicate(q, k) for k in range(keys)] for q in order])


@pytest.mark.parametrize(("shape", "chunk"), [*itertools.product([(12, 12), (9, 5), (5, 9)], [1, 4, 20])])
def test_a_chunked_causal_mask_is_causal_inside_chunks(shape, chunk):
    wanted = pairs(range(shape[0]), shape[1], lambda q, k: q // chunk == k // chunk and k <= q)
    made = ChunkedCausalMask(shape, chunk)
    assert torch.equal(made.to_dense()[0], wanted)
    assert (made.shape, made.chunk_size) == (shape, chunk)


@pytest.mark.parametrize(("cp", "offset", "keys"), [(2, 0, 16), (4, 0, 16), (4, 3, 19), (2, -5, 16)])
def test_a_balanced_causal_mask_has_early_and_late_rows_on_every_rank(cp, offset, keys):
    part = 16 // (2 * cp)
    order = []
    for rank in range(cp):
        order += list(range(rank * part, (rank + 1) * part))
        order += list(range((2 * cp - 1 - rank) * part, (2 * cp - rank) * part))
    assert balanced_order(16, cp).tolist() == order
    made = LoadBalancedCausalMask((16, keys), offset, cp_size=cp)
    assert torch.equal(made.to_dense()[0], pairs(order, keys, lambda q, k: k <= q + offset))
    if offset == 0:
        areas = made.row_area().view(cp, -1).sum(1)
        assert (areas == areas[0]).all()


def test_a_striped_mask_deals_rows_in_turn():
    order = [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]
    assert torch.equal(StripedMask((12, 12), 3).to_dense()[0], pairs(order, 12, lambda q, k: k <= q))


def test_any_mask_may_be_balanced():
    order = balanced_order(16, 2)
    window = mask.sliding_window(16, window_size=3)
    assert torch.equal(window.permute_rows(order).to_dense()[0], window.to_dense()[0][order])


MADE = [
    lambda: ChunkedCausalMask((12, 12), 4),
    lambda: ChunkedCausalMask((12, 12), 3),
    lambda: ChunkedCausalMask((8, 12), 4),
    lambda: LoadBalancedCausalMask((16, 16)),
    lambda: LoadBalancedCausalMask((16, 16), cp_size=2),
    lambda: LoadBalancedCausalMask((16, 16), offset=1),
    lambda: LoadBalancedCausalMask((32, 16)),
    lambda: StripedMask((12, 12), 3),
    lambda: StripedMask((12, 12), 2),
    lambda: StripedMask((12, 24), 2),
    lambda: StripedMask((12, 12), 1),
]


def test_masks_of_the_same_numbers_are_equal_and_hash_alike_and_no_others():
    first, second = [make() for make in MADE], [make() for make in MADE]
    for (i, a), (j, b) in itertools.product(enumerate(first), enumerate(second)):
        assert (a == b) == (i == j)
        if i == j:
            assert hash(a) == hash(b)
    assert len({*first, *second}) == len(MADE)
    assert first[0] != mask.chunked_causal(12, chunk_size=4)
    assert ChunkedCausalMask((12, 12), 4, shard_count=3) == first[0]


@pytest.mark.parametrize("make", MADE)
def test_they_are_interval_masks_and_what_is_made_of_them_is_a_plain_one(make):
    made = make()
    assert isinstance(made, IntervalMask)
    plain = IntervalMask(made.lo, made.hi, made.seqlen_k)
    other = mask.causal(*made.shape, align="top_left")
    results = (made & other, other & made, made | other, ~made, made[1:3], made.to("cpu") & other)
    wanted = (plain & other, other & plain, plain | other, ~plain, plain[1:3], plain & other)
    for got, right in zip(results, wanted, strict=True):
        assert type(got) is IntervalMask
        assert got.equals(right)


@pytest.mark.parametrize("make", MADE)
def test_pairs_are_looked_at_by_rows_and_columns(make):
    made = make()
    dense = made.to_dense()[0]
    indices = (
        (slice(2, 7), slice(None)),
        (slice(None, None, 2), slice(3, 9)),
        (4, slice(None)),
        (slice(None), 2),
        (5, 1),
        (np.int64(5), slice(1, np.int32(3))),
    )
    for index in indices:
        assert torch.equal(made[index], dense[index])
    assert made[4, 2].dtype == torch.bool
    with pytest.raises(TypeError, match=r"a mask takes \[rows\] or \[rows, cols\]"):
        made[1, 2, 3]
    with pytest.raises(TypeError, match=r"a mask takes \[rows\] or \[rows, cols\]"):
        made["a", 2]
    with pytest.raises(TypeError, match=r"a mask takes \[rows\] or \[rows, cols\]"):
        made[True, 2]


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("make", [MADE[0], MADE[3], MADE[7]])
def test_copies_equal_what_they_were_made_of(make, again):
    made = make()
    other = again(made)
    assert other == made
    assert other.equals(made)
    assert other.shape == made.shape


def test_attention_takes_them():
    q, k, v = (torch.randn(16, 2, 8, dtype=torch.float64) for _ in range(3))
    out, _ = flex_flash_attn_func(q, k, v, LoadBalancedCausalMask((16, 16)))
    whole, _ = flex_flash_attn_func(q[balanced_order(16, 4).argsort()], k, v, mask.causal(16))
    torch.testing.assert_close(out, whole[balanced_order(16, 4)])


BAD = [
    (lambda: ChunkedCausalMask((4, 4), 0), ValueError, "chunk_size must be positive, got 0"),
    (lambda: ChunkedCausalMask((4, 4), -1), ValueError, "chunk_size must be positive, got -1"),
    (lambda: ChunkedCausalMask((4, 4), 2.0), TypeError, "chunk_size must be an int"),
    (lambda: ChunkedCausalMask(4, 2), TypeError, r"shape must be \(rows, keys\), got 4"),
    (lambda: ChunkedCausalMask((4, -1), 2), ValueError, r"shape\[1\] must be >= 0, got -1"),
    (lambda: ChunkedCausalMask((4, 4), 2, 0), ValueError, "shard_count must be positive, got 0"),
    (lambda: LoadBalancedCausalMask((16, 16), cp_size=3), ValueError, "cp_size must be even, got 3"),
    (lambda: LoadBalancedCausalMask((12, 16)), ValueError, r"seqlen must be a multiple of 2 \* cp_size = 8, got 12"),
    (lambda: StripedMask((10, 16), 4), ValueError, "rows of shape must be a multiple of cp_size = 4, got 10"),
    (lambda: StripedMask((10, 16), 0), ValueError, "cp_size must be positive, got 0"),
    (lambda: balanced_order(8, 0), ValueError, "cp_size must be positive, got 0"),
]


@pytest.mark.parametrize(("call", "error", "words"), BAD)
def test_bad_numbers_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
