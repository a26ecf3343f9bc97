"""Interval masks against pairs evaluated one by one: slices that overlap in every way, and every operation on masks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cute_attn.mask import IntervalMask
from cute_attn.mask import slices as slices_module

few = settings(max_examples=60, deadline=None)


@st.composite
def slice_lists(draw, seqlen_q=None, seqlen_k=None, most=8):
    """(q_ranges, k_ranges, types, seqlen_q, seqlen_k): ranges of any position and length, empty ones too."""
    sq = draw(st.integers(0, 20)) if seqlen_q is None else seqlen_q
    sk = draw(st.integers(0, 20)) if seqlen_k is None else seqlen_k
    count = draw(st.integers(0, most))

    def ranges(total):
        ends = st.tuples(st.integers(0, total), st.integers(0, total)).map(sorted)
        return draw(st.lists(ends, min_size=count, max_size=count))

    kinds = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    return ranges(sq), ranges(sk), kinds, sq, sk


def dense_of(q_ranges, k_ranges, kinds, sq, sk):
    """bool (sq, sk) from the definition of the four types, pair by pair."""
    dense = torch.zeros(sq, sk, dtype=torch.bool)
    for (qs, qe), (ks, ke), kind in zip(q_ranges, k_ranges, kinds, strict=True):
        for i in range(qs, qe):
            for k in range(ks, ke):
                below = k - ks >= i - qs if kind in (2, 3) else True
                above = ke - 1 - k >= qe - 1 - i if kind in (1, 3) else True
                dense[i, k] |= below and above
    return dense


def assert_well_formed(mask):
    """Sorted, disjoint, not touching, empty ones last: the constructor refuses anything else."""
    again = IntervalMask(mask.lo, mask.hi, mask.seqlen_k)
    assert again.lo.dtype == again.hi.dtype == torch.int32
    if mask.layers > 1:  # no layer is empty in every row
        assert bool((mask.lo[:, -1] < mask.hi[:, -1]).any())


def attends(mask, dense):
    assert_well_formed(mask)
    assert mask.area() == int(dense.sum())
    return torch.equal(mask.to_dense(), dense if dense.ndim == 3 else dense[None])


# ---------------------------------------------------------------- slices


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(slice_lists())
def test_slices_unite_pair_by_pair(slices):
    assert attends(IntervalMask.from_slices(*slices), dense_of(*slices))


@few
@given(slice_lists(most=20))
def test_uniting_in_chunks_of_rows_changes_nothing(slices):
    whole = IntervalMask.from_slices(*slices)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices_module, "EXPANSION_LIMIT", 1)  # chunks of about two intervals a row
        chunked = IntervalMask.from_slices(*slices)
    assert torch.equal(chunked.lo, whole.lo)
    assert torch.equal(chunked.hi, whole.hi)


@few
@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_block_sparse_slices_with_many_layers(blocks_q, blocks_k, data):
    chosen = data.draw(st.lists(st.tuples(st.integers(0, blocks_q - 1), st.integers(0, blocks_k - 1)), max_size=30))
    q = [[4 * i, 4 * i + 4] for i, _ in chosen]
    k = [[4 * j, 4 * j + 4] for _, j in chosen]
    slices = (q, k, [0] * len(chosen), 4 * blocks_q, 4 * blocks_k)
    assert attends(IntervalMask.from_slices(*slices), dense_of(*slices))


def test_triangles_leave_rows_without_keys_in_between():
    slices = ([[0, 6], [0, 6]], [[0, 2], [4, 6]], [1, 2], 6, 6)
    mask = IntervalMask.from_slices(*slices)
    assert mask.row_area().tolist() == [[2, 1, 0, 0, 1, 2]]
    assert attends(mask, dense_of(*slices))


def test_no_slices_attend_nothing():
    mask = IntervalMask.from_slices([], [], None, 5, 7)
    assert (mask.batch, mask.layers, mask.seqlen_q, mask.seqlen_k, mask.area()) == (1, 1, 5, 7, 0)


def test_lengths_default_to_the_largest_end():
    mask = IntervalMask.from_slices([[0, 3], [2, 6]], [[1, 9], [0, 2]])
    assert (mask.seqlen_q, mask.seqlen_k) == (6, 9)


def test_many_overlapping_slices_of_long_sequences_fit_in_memory():
    rows, count = 1 << 14, 1 << 10  # about 2^23 rows of slices, twice the limit
    start = torch.randint(0, rows, (2, count))
    ranges = torch.stack([start, torch.full_like(start, rows)], -1)
    mask = IntervalMask.from_slices(ranges[0], ranges[1], None, rows, rows)
    order = ranges[0, :, 0].argsort()
    least = ranges[1, :, 0][order].cummin(0).values  # the first key of any slice begun so far
    begun = torch.searchsorted(ranges[0, :, 0][order], torch.arange(rows), right=True)
    expected = torch.where(begun > 0, rows - least[(begun - 1).clamp(min=0)], 0)
    assert mask.layers == 1
    assert torch.equal(mask.row_area()[0], expected)


# ---------------------------------------------------------------- any intervals


@st.composite
def raw_intervals(draw, batch=None, sq=None, sk=None):
    batch = batch or draw(st.integers(1, 3))
    sq = draw(st.integers(0, 8)) if sq is None else sq
    sk = draw(st.integers(0, 15)) if sk is None else sk
    layers = draw(st.integers(1, 4))
    size = 2 * batch * layers * sq
    numbers = draw(st.lists(st.integers(-3, sk + 3), min_size=size, max_size=size))
    lo, hi = torch.tensor(numbers, dtype=torch.int64).view(2, batch, layers, sq).unbind(0)
    keys = torch.arange(sk)
    dense = ((keys >= lo[..., None]) & (keys < hi[..., None])).any(1)
    return IntervalMask.from_intervals(lo, hi, sk), dense


@few
@given(raw_intervals())
def test_intervals_in_any_order_and_form_are_brought_into_one(pair):
    mask, dense = pair
    assert attends(mask, dense)
    assert torch.equal(mask.row_area(), dense.sum(2))


@few
@given(st.data())
def test_and_or_not_are_those_of_pairs(data):
    a, dense_a = data.draw(raw_intervals())
    batch = data.draw(st.sampled_from(sorted({1, a.batch})))
    b, dense_b = data.draw(raw_intervals(batch, a.seqlen_q, a.seqlen_k))
    assert attends(a & b, dense_a & dense_b)
    assert attends(b & a, dense_a & dense_b)
    assert attends(a | b, dense_a | dense_b)
    assert attends(~a, ~dense_a)


@few
@given(raw_intervals(), st.data())
def test_slicing_and_permuting_rows(pair, data):
    mask, dense = pair
    first, last = sorted(data.draw(st.tuples(st.integers(0, mask.seqlen_q), st.integers(0, mask.seqlen_q))))
    assert torch.equal(mask[first:last].to_dense(), dense[:, first:last])
    assert torch.equal(mask[-2:].to_dense(), dense[:, -2:])
    rows = st.lists(st.integers(0, mask.seqlen_q - 1), max_size=10) if mask.seqlen_q else st.just([])
    order = torch.tensor(data.draw(rows), dtype=torch.int64)
    assert torch.equal(mask.permute_rows(order).to_dense(), dense[:, order])


@few
@given(raw_intervals(), st.data())
def test_remap_keeps_the_gathered_columns(pair, data):
    mask, dense = pair
    kept = data.draw(st.sets(st.integers(0, mask.seqlen_k - 1))) if mask.seqlen_k else set()
    positions = torch.tensor(sorted(kept), dtype=torch.int64)
    assert attends(mask.remap(positions), dense[:, :, positions])


@few
@given(raw_intervals(), st.integers(1, 2))
def test_equals_compares_pairs_not_tensors(pair, extra_layers):
    mask, dense = pair
    empty = torch.full((mask.batch, extra_layers, mask.seqlen_q), mask.seqlen_k, dtype=torch.int32)
    padded = IntervalMask(torch.cat([mask.lo, empty], 1), torch.cat([mask.hi, empty], 1), mask.seqlen_k)
    assert mask.equals(padded)
    assert padded.equals(mask)
    assert mask.equals(~mask) is (dense.numel() == 0)
    assert not mask.equals(IntervalMask(mask.lo, mask.hi, mask.seqlen_k + 1))


def test_schedules_are_made_once_per_tile():
    mask = IntervalMask.from_slices([[0, 300]], [[0, 300]], [1])
    assert mask.schedule() is mask.schedule((128, 128))
    assert mask.schedule((64, 128)) is not mask.schedule()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16])
def test_intervals_in_a_small_dtype_may_lie_in_a_long_sequence(dtype):
    lo, hi = torch.tensor([0, 3], dtype=dtype), torch.tensor([5, 9], dtype=dtype)
    mask = IntervalMask.from_intervals(lo, hi, 100_000)
    assert (mask.lo.tolist(), mask.hi.tolist()) == ([[[0, 3]]], [[[5, 9]]])


# ---------------------------------------------------------------- bad input


def tensor(*rows):
    return torch.tensor([[list(row) for row in rows]], dtype=torch.int32)


bad_masks = [
    (lambda: IntervalMask([0], [1], 4), TypeError, "lo must be an int32 tensor, got list"),
    (
        lambda: IntervalMask(tensor([0]), tensor([1]).long(), 4),
        TypeError,
        "hi must be an int32 tensor, got torch.int64",
    ),
    (lambda: IntervalMask(tensor([0])[0], tensor([1])[0], 4), ValueError, r"shape \(batch, layers, seqlen_q\)"),
    (lambda: IntervalMask(tensor([0]), tensor([1, 1]), 4), ValueError, "lo and hi must both have shape"),
    (lambda: IntervalMask(tensor([0]), tensor([5]), 4), ValueError, "lo <= hi <= seqlen_k = 4"),
    (lambda: IntervalMask(tensor([-1]), tensor([2]), 4), ValueError, "0 <= lo"),
    (lambda: IntervalMask(tensor([2]), tensor([1]), 4), ValueError, "0 <= lo <= hi"),
    (lambda: IntervalMask(tensor([0], [1]), tensor([1], [2]), 4), ValueError, "not touching"),
    (lambda: IntervalMask(tensor([2], [0]), tensor([3], [1]), 4), ValueError, "sorted"),
    (lambda: IntervalMask(tensor([0], [2]), tensor([0], [3]), 4), ValueError, "empty ones last"),
    (lambda: IntervalMask(tensor([0]), tensor([1]), -1), ValueError, "seqlen_k must be an int >= 0 and .*, got -1"),
    (lambda: IntervalMask(tensor([0]), tensor([1]), 1 << 31), ValueError, "below 2.31, got 2147483648"),
    (lambda: IntervalMask(tensor([0]), tensor([1]), True), ValueError, "seqlen_k must be an int >= 0"),
    (lambda: IntervalMask(tensor([0]), tensor([1]).to("meta"), 4), ValueError, "one device, got cpu and meta"),
    (
        lambda: IntervalMask.from_intervals(torch.zeros(2), torch.zeros(2), 4),
        TypeError,
        "lo must be a tensor of integers, got torch.float32",
    ),
    (lambda: IntervalMask.from_intervals(tensor([0]), tensor([1, 2]), 4), ValueError, "lo and hi must both have shape"),
    (lambda: IntervalMask.from_intervals([0], [1], 4), TypeError, "lo must be a tensor of integers, got list"),
    (lambda: IntervalMask.from_intervals(tensor([0]), tensor([1]), 2.5), ValueError, "seqlen_k must be an int >= 0"),
    (lambda: IntervalMask.from_intervals(tensor([0]), tensor([1]), -1), ValueError, "seqlen_k must be an int >= 0"),
    (lambda: IntervalMask.from_intervals(tensor([0]), tensor([1]), "4"), ValueError, "seqlen_k must be an int >= 0"),
    (lambda: IntervalMask.from_intervals(tensor([0]), tensor([1]), (1 << 32) + 8), ValueError, "below 2.31"),
    (
        lambda: IntervalMask.from_intervals(tensor([0]), tensor([1]).to("meta"), 4),
        ValueError,
        "one device, got cpu and meta",
    ),
]


@pytest.mark.parametrize(("call", "error", "words"), bad_masks)
def test_bad_intervals_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


bad_operations = [
    (lambda m: m[1], TypeError, "takes a slice of rows with step 1"),
    (lambda m: m[::2], TypeError, "takes a slice of rows with step 1"),
    (lambda m: m & 3, TypeError, "unsupported operand"),
    (lambda m: m | m[1:], ValueError, "equal lengths, device and batch"),
    (lambda m: m & m.remap(torch.tensor([0])), ValueError, "equal lengths, device and batch"),
    (lambda m: m.permute_rows(torch.tensor([4])), ValueError, r"order must hold rows in \[0, 4\)"),
    (lambda m: m.permute_rows(torch.tensor([-1])), ValueError, r"order must hold rows in \[0, 4\)"),
    (lambda m: m.permute_rows(torch.zeros(2)), TypeError, "order must be a 1-D integer tensor"),
    (lambda m: m.permute_rows([0, 1]), TypeError, "order must be a 1-D integer tensor, got list"),
    (lambda m: m.remap(torch.tensor([1, 0])), ValueError, "positions must be strictly ascending"),
    (lambda m: m.remap(torch.tensor([1, 1])), ValueError, "positions must be strictly ascending"),
    (lambda m: m.remap(torch.tensor([0, (1 << 32) + 1])), ValueError, r"keys in \[0, 5\)"),
    (lambda m: m.schedule(128), ValueError, "tile must be .* got 128"),
    (lambda m: m.remap(torch.tensor([0, 5])), ValueError, r"keys in \[0, 5\)"),
    (lambda m: m.remap(torch.zeros(1, 2, dtype=torch.int64)), TypeError, "positions must be a 1-D integer tensor"),
    (lambda m: m.remap([0, 1]), TypeError, "positions must be a 1-D integer tensor, got list"),
]


@pytest.mark.parametrize(("operation", "error", "words"), bad_operations)
def test_bad_operations_are_named(operation, error, words):
    mask = IntervalMask.from_slices([[0, 4]], [[0, 5]], "causal")
    with pytest.raises(error, match=words):
        operation(mask)
