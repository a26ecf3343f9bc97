"""Padding, batches and sliding windows."""

import itertools

import numpy as np
import pytest
import torch

from cute_attn import AttnMaskType, AttnRange, AttnRanges, IntervalMask
from cute_attn.dist import (
    apply_padding,
    compute_pad_size,
    infer_attn_mask_from_cu_seqlens,
    infer_attn_mask_from_sliding_window,
    infer_varlen_mask_from_batch,
    pad_at_dim,
    squash_batch_dim,
    unpad_at_dim,
)


@pytest.mark.parametrize("seqlen", [0, 1, 4095, 4096, 4097])
def test_padding_makes_the_fewest_equal_chunks(seqlen):
    pad = compute_pad_size(seqlen, 4, 512)
    assert (seqlen + pad) % (4 * 512) == 0
    assert 0 <= pad < 4 * 512


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -3])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_goes_to_one_side_of_any_dimension(dim, side):
    x = torch.randn(3, 4, 5)
    padded = pad_at_dim(x, dim, 2, value=7.0, side=side)
    size = x.shape[dim]
    kept, added = (2, 0) if side == "left" else (0, size)
    assert torch.equal(padded.narrow(dim, kept, size), x)
    assert (padded.narrow(dim, added, 2) == 7.0).all()


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("pad_size", [0, 1, 3])
def test_unpadding_undoes_padding_along_any_dimension(dim, pad_size):
    x = torch.randn(3, 4, 5)
    assert torch.equal(unpad_at_dim(pad_at_dim(x, dim, pad_size), dim, pad_size), x)


def test_padding_passes_gradients_on():
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: unpad_at_dim(pad_at_dim(x, 0, 4, side="left"), 0, 2), x)


def test_integers_can_be_padded():
    assert pad_at_dim(torch.tensor([1, 2]), 0, 2, value=-1).tolist() == [1, 2, -1, -1]


def test_padding_rows_get_a_slice_that_attends_nothing():
    q, k = AttnRanges.from_ranges([[0, 4], [4, 10]]), AttnRanges.from_ranges([[0, 4], [0, 10]])
    types = [AttnMaskType.CAUSAL, AttnMaskType.FULL]
    padded = apply_padding(q, k, types, total_seqlen=10, pad_size=6)
    assert padded[0].to_naive_ranges() == [(0, 4), (4, 10), (10, 16)]
    assert padded[1].to_naive_ranges() == [(0, 4), (0, 10), (0, 0)]
    assert padded[2] == [*types, AttnMaskType.FULL]
    assert (len(q), len(k), len(types)) == (2, 2, 2)
    before = IntervalMask.from_slices(q, k, types)
    assert IntervalMask.from_slices(*padded, 16, 10)[:10].equals(before)
    assert IntervalMask.from_slices(*padded, 16, 10).area() == before.area()


def test_arrays_and_names_are_taken_for_lists_and_types():
    ranges = np.array([[0, 4], [4, 10]])
    q, k, types = apply_padding(ranges, ranges, np.array([0, 1]), total_seqlen=10, pad_size=6)
    assert q.to_naive_ranges() == [(0, 4), (4, 10), (10, 16)]
    assert k.to_naive_ranges() == [(0, 4), (4, 10), (0, 0)]
    assert types == [AttnMaskType.FULL, AttnMaskType.CAUSAL, AttnMaskType.FULL]
    assert apply_padding(ranges, ranges, ["full", "causal"], 10, 6)[2] == types
    rows = AttnRange(0, 9)
    by_array = infer_attn_mask_from_sliding_window(rows, rows, np.array([2, 0]))
    assert by_array == infer_attn_mask_from_sliding_window(rows, rows, (2, 0))


def test_padding_may_be_infinite_where_numbers_may():
    assert pad_at_dim(torch.zeros(1), 0, 1, value=-torch.inf).tolist() == [0.0, -torch.inf]
    assert pad_at_dim(torch.tensor([True]), 0, 1, value=True).tolist() == [True, True]


def test_a_batch_is_a_packed_sequence_of_equal_lengths():
    cu_seqlens_q, cu_seqlens_k = infer_varlen_mask_from_batch(3, 5)
    assert cu_seqlens_q.tolist() == cu_seqlens_k.tolist() == [0, 5, 10, 15]
    assert cu_seqlens_q.dtype == torch.int32
    x = torch.randn(3, 5, 2)
    assert torch.equal(squash_batch_dim(x)[7], x[1, 2])


def test_lengths_of_a_batch_lie_where_they_are_asked_for():
    assert infer_varlen_mask_from_batch(3, 5, "cpu")[0].device.type == "cpu"
    with pytest.raises(ValueError, match="device must be one that is here, got 'nowhere'"):
        infer_varlen_mask_from_batch(3, 5, "nowhere")


# ---------------------------------------------------------------- sliding windows


class TheirRange:
    """MagiAttention's, as far as it is looked at."""

    def __init__(self, start, end):
        self.start, self.end = start, end


def test_ranges_of_another_library_are_taken():
    wanted = infer_attn_mask_from_sliding_window(AttnRange(0, 8), AttnRange(0, 9), (3, 1))
    assert infer_attn_mask_from_sliding_window(TheirRange(0, 8), TheirRange(0, 9), (3, 1)) == wanted
    assert AttnRanges([[2, 9]]).make_range_local(TheirRange(4, 6)) == (AttnRange(2, 4), AttnRange(2, 9))
    with pytest.raises(ValueError, match="k_range: AttnRange: 0 <= start <= end"):
        infer_attn_mask_from_sliding_window(TheirRange(0, 8), TheirRange(9, 0), (3, 1))


def window(rows, keys, left, right):
    """The definition: row i stands at key i + (end of keys - end of rows)."""
    dense = torch.zeros(rows.end, keys.end, dtype=torch.bool)
    for i, k in itertools.product(range(*rows), range(*keys)):
        at = i + keys.end - rows.end
        dense[i, k] = (left == -1 or k >= at - left) and (right == -1 or k <= at + right)
    return dense


LENGTHS = [
    ((5, 15), (5, 15)),
    ((0, 4), (0, 9)),
    ((0, 9), (0, 4)),
    ((3, 12), (1, 3)),
    ((2, 5), (0, 8)),
    ((0, 1), (0, 1)),
]
SIZES = [-1, 0, 1, 2, 3, 7, 30]


@pytest.mark.parametrize(("rows", "keys"), LENGTHS)
@pytest.mark.parametrize("left", SIZES)
@pytest.mark.parametrize("right", SIZES)
def test_slices_of_a_sliding_window_attend_what_its_definition_says(rows, keys, left, right):
    rows, keys = AttnRange(*rows), AttnRange(*keys)
    q, k, types = infer_attn_mask_from_sliding_window(rows, keys, (left, right))
    mask = IntervalMask.from_slices(q, k, types, rows.end, keys.end)
    assert torch.equal(mask.to_dense()[0], window(rows, keys, left, right))
    assert all(a.end <= b.start for a, b in itertools.pairwise(q)), "a row is in one slice alone"


DOCUMENTS = [0, 5, 5, 6, 18, 30]


@pytest.mark.parametrize("leading", [0, 1, 3, 6, 100])
@pytest.mark.parametrize("left", SIZES)
@pytest.mark.parametrize("right", SIZES)
def test_slices_of_documents_are_their_windows_and_their_first_keys(left, right, leading):
    q, k, types, *totals = infer_attn_mask_from_cu_seqlens(DOCUMENTS, DOCUMENTS, False, (left, right), leading)
    assert totals == [30, 30]
    expected = torch.zeros(30, 30, dtype=torch.bool)
    for start, end in itertools.pairwise(DOCUMENTS):
        for i, j in itertools.product(range(start, end), repeat=2):
            is_ahead = right != -1 and j > i + right
            expected[i, j] = not is_ahead and (left == -1 or j >= i - left or j - start < leading)
    assert torch.equal(IntervalMask.from_slices(q, k, types, 30, 30).to_dense()[0], expected)


@pytest.mark.parametrize("causal", [False, True])
def test_documents_without_a_window_are_one_slice_each(causal):
    cu_q, cu_k = torch.tensor([0, 4, 9]), np.array([0, 6, 7])
    q, k, types, *totals = infer_attn_mask_from_cu_seqlens(cu_q, cu_k, causal)
    assert (q, k) == (AttnRanges([[0, 4], [4, 9]]), AttnRanges([[0, 6], [6, 7]]))
    assert types == [AttnMaskType.CAUSAL if causal else AttnMaskType.FULL] * 2
    assert totals == [9, 7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 4], [0, 4, 5]), "cu_seqlens_q and cu_seqlens_k must have one length, got 2 and 3"),
        (([0, 4, 3], [0, 4, 5]), "cu_seqlens_q must go from 0 to 3 and never fall"),
        (([], []), r"cu_seqlens_q must have shape \(documents \+ 1,\)"),
        (([0, 4], [0, 4], True, (2, 0)), "causal must be False with a window"),
        (([0, 4], [0, 5], False, (2, 0), 1), "global_window_size must be 0 where cu_seqlens_q and cu_seqlens_k differ"),
        (([0, 4], [0, 4], False, (2, 0), -1), "global_window_size must be"),
    ],
)
def test_documents_that_are_no_slices_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        infer_attn_mask_from_cu_seqlens(*arguments)


def test_early_rows_of_more_queries_than_keys_are_in_no_slice():
    q, k, _ = infer_attn_mask_from_sliding_window(AttnRange(0, 9), AttnRange(0, 4), (2, 0))
    assert min(r.start for r in q) == 5
    assert max(r.end for r in k) == 4


def test_a_window_over_no_rows_or_no_keys_is_no_slice():
    for rows, keys in (((3, 3), (0, 4)), ((0, 4), (2, 2))):
        assert infer_attn_mask_from_sliding_window(AttnRange(*rows), AttnRange(*keys), (1, 1))[2] == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compute_pad_size(-1, 4, 512), "total_seqlen_q must be >= 0, got -1"),
        (lambda: compute_pad_size(8, 0, 512), "cp_size must be >= 1, got 0"),
        (lambda: compute_pad_size(8, 4, 0), "chunk_size must be >= 1, got 0"),
        (lambda: pad_at_dim(torch.zeros(2), 1, 1), r"dim must be in \[-1, 1\), got 1"),
        (lambda: pad_at_dim(torch.zeros(2), 0, -1), "pad_size must be >= 0, got -1"),
        (lambda: pad_at_dim(torch.zeros(2), 0, 1, side="up"), "side must be 'left' or 'right', got 'up'"),
        (lambda: unpad_at_dim(torch.zeros(2), 0, 3), "pad_size must be at most 2"),
        (lambda: squash_batch_dim(torch.zeros(2)), r"x must have shape \(batch, seq, ...\), got \(2,\)"),
        (lambda: apply_padding(AttnRanges([[0, 1]]), AttnRanges(), [], 1, 1), "equally many, got 1, 0 and 0"),
        (lambda: infer_varlen_mask_from_batch(2**31, 1), r"batch_size must be below 2147483648, got 2147483648"),
        (lambda: infer_varlen_mask_from_batch(2**16, 2**15), r"batch_size \* seq_len must be below 2\^31"),
        (lambda: pad_at_dim(torch.tensor([1]), 0, 1, value=0.5), r"value must be an integer in \[-9223372036854775808"),
        (lambda: pad_at_dim(torch.tensor([1], dtype=torch.int8), 0, 1, value=200), r"in \[-128, 127\] .* got 200"),
        (
            lambda: infer_attn_mask_from_sliding_window(AttnRange(0, 1), AttnRange(0, 1), (1,)),
            r"window_size must be \(left, right\)",
        ),
        (
            lambda: infer_attn_mask_from_sliding_window(AttnRange(0, 1), AttnRange(0, 1), (-2, 0)),
            r"window_size \(left\) must be >= -1, got -2",
        ),
    ],
)
def test_bad_values_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compute_pad_size(True, 4, 512), "total_seqlen_q must be an int, got True"),
        (lambda: pad_at_dim(torch.zeros(2), 0.0, 1), "dim must be an int, got 0.0"),
        (lambda: squash_batch_dim([]), "x must be a torch.Tensor, got list"),
        (
            lambda: infer_attn_mask_from_sliding_window([0, 1], AttnRange(0, 1), (1, 1)),
            "q_range must be of type AttnRange",
        ),
    ],
)
def test_bad_types_are_refused_by_name(call, message):
    with pytest.raises(TypeError, match=message):
        call()
