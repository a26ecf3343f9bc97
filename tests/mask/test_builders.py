"""Every builder against a predicate over (batch, row, key), written from its definition and evaluated pair by pair."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cute_attn import mask as masks
from cute_attn.mask.checks import device_of

lengths = st.integers(0, 24)
few = settings(max_examples=40, deadline=None)


def assert_attends(mask, predicate, seqlen_q, seqlen_k, batch=1):
    dense = mask.to_dense()
    assert dense.shape == (batch, seqlen_q, seqlen_k)
    expected = [[[bool(predicate(b, i, k)) for k in range(seqlen_k)] for i in range(seqlen_q)] for b in range(batch)]
    assert dense.tolist() == expected


def cut(draw, total, parts):
    """Cumulative lengths of `parts` documents, some empty, that fill up to `total`."""
    return [0, *sorted(draw(st.lists(st.integers(0, total), min_size=parts, max_size=parts)))]


def document_of(cu, position):
    return next((d for d in range(len(cu) - 1) if cu[d] <= position < cu[d + 1]), None)


# ---------------------------------------------------------------- by formula


@few
@given(lengths, lengths)
def test_full_attends_everything(sq, sk):
    assert_attends(masks.full(sq, sk), lambda b, i, k: True, sq, sk)


@few
@given(lengths, lengths, st.integers(-5, 5))
def test_causal_aligns_last_row_with_last_key_or_first_with_first(sq, sk, offset):
    assert_attends(masks.causal(sq, sk, offset=offset), lambda b, i, k: k <= i + sk - sq + offset, sq, sk)
    top_left = masks.causal(sq, sk, align="top_left", offset=offset)
    assert_attends(top_left, lambda b, i, k: k <= i + offset, sq, sk)


@few
@given(lengths, lengths, st.integers(-1, 8), st.integers(-1, 8))
def test_flash_attention_window_is_inclusive_on_both_sides_and_unlimited_at_minus_one(sq, sk, left, right):
    def attends(b, i, k):
        p = i + sk - sq
        return (left < 0 or k >= p - left) and (right < 0 or k <= p + right)

    assert_attends(masks.sliding_window(sq, sk, left=left, right=right), attends, sq, sk)


@few
@given(lengths, lengths, st.integers(1, 9), st.integers(0, 5))
def test_maxtext_window_keeps_window_size_keys(sq, sk, size, previous):
    mask = masks.sliding_window(sq, sk, window_size=size, align="top_left", offset=previous)
    assert_attends(mask, lambda b, i, k: i + previous - size < k <= i + previous, sq, sk)


def test_the_two_window_conventions_differ_by_one_key():
    keys = masks.sliding_window(64, window_size=8)
    assert keys.row_area().max() == 8
    assert keys.equals(masks.sliding_window(64, left=7, right=0))
    assert masks.sliding_window(64, left=8, right=0).row_area().max() == 9


@few
@given(lengths, lengths, st.integers(1, 9))
def test_chunked_causal_is_causal_inside_chunks(sq, sk, chunk):
    def attends(b, i, k):
        p = i + sk - sq
        return k <= p and k // chunk == p // chunk

    assert_attends(masks.chunked_causal(sq, sk, chunk_size=chunk), attends, sq, sk)


@few
@given(lengths, lengths, st.integers(1, 9))
def test_block_causal_attends_own_and_earlier_blocks(sq, sk, block):
    mask = masks.block_causal(sq, sk, block_size=block)
    assert_attends(mask, lambda b, i, k: k // block <= (i + sk - sq) // block, sq, sk)


@few
@given(lengths, lengths, st.lists(st.integers(0, 30), min_size=1, max_size=3))
def test_prefix_lm_attends_the_prefix_and_the_past(sq, sk, prefixes):
    mask = masks.prefix_lm(sq, sk, prefix_length=prefixes)
    assert_attends(mask, lambda b, i, k: k < prefixes[b] or k <= i + sk - sq, sq, sk, len(prefixes))
    assert masks.prefix_lm(sq, sk, prefix_length=prefixes[0]).equals(
        masks.prefix_lm(sq, sk, prefix_length=prefixes[:1])
    )


@few
@given(st.integers(0, 9), st.lists(st.integers(0, 6), max_size=4), st.integers(0, 3))
def test_shared_prefix_answers_see_the_prompt_and_themselves_only(prefix, answers, padding):
    part = [0] * prefix + [1 + n for n, length in enumerate(answers) for _ in range(length)] + [None] * padding

    def attends(b, i, k):
        return part[i] is not None and k <= i and part[k] in (0, part[i])

    mask = masks.shared_prefix(len(part), prefix_length=prefix, lengths=answers)
    assert_attends(mask, attends, len(part), len(part))
    assert mask.layers <= 2


@few
@given(st.integers(0, 15), st.integers(1, 6))
def test_block_diffusion_is_block_diagonal_offset_block_causal_and_block_causal(n, block):
    def attends(b, i, k):
        noisy_row, noisy_key = i < n, k < n
        row, key = i % n // block, k % n // block
        if noisy_row and noisy_key:
            return row == key
        return not noisy_key and (row > key if noisy_row else row >= key)

    mask = masks.block_diffusion(2 * n, block_size=block)
    assert_attends(mask, attends, 2 * n, 2 * n)
    assert mask.layers <= 2


@few
@given(lengths, st.integers(1, 24), st.data())
def test_global_tokens_attend_and_are_attended_by_all(sq, sk, data):
    positions = data.draw(st.lists(st.integers(0, sk - 1), max_size=5))
    left, right = data.draw(st.integers(-1, 5)), data.draw(st.integers(-1, 5))

    def attends(b, i, k):
        p = i + sk - sq
        window = (left < 0 or k >= p - left) and (right < 0 or k <= p + right)
        return window or k in positions or p in positions

    assert_attends(masks.global_tokens(sq, sk, positions=positions, left=left, right=right), attends, sq, sk)


# ---------------------------------------------------------------- by tokens


@few
@given(lengths, lengths, st.integers(0, 5), st.integers(1, 3), st.data())
def test_documents_from_cumulative_lengths(sq, sk, count, batch, data):
    cu_q = [cut(data.draw, sq, count) for _ in range(batch)]
    cu_k = [cut(data.draw, sk, count) for _ in range(batch)]

    def attends(b, i, k):
        d = document_of(cu_q[b], i)
        return d is not None and d == document_of(cu_k[b], k)

    def attends_causally(b, i, k):
        if not attends(b, i, k):
            return False
        d = document_of(cu_q[b], i)
        return cu_k[b][d + 1] - 1 - k >= cu_q[b][d + 1] - 1 - i

    given_lengths = {"cu_seqlens": torch.tensor(cu_q, dtype=torch.int32), "cu_seqlens_k": cu_k}
    assert_attends(masks.documents(sq, sk, **given_lengths), attends, sq, sk, batch)
    assert_attends(masks.causal_documents(sq, sk, **given_lengths), attends_causally, sq, sk, batch)


@few
@given(lengths, lengths, st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.data())
def test_segment_ids_attend_equal_ids_wherever_they_are(sq, sk, batch_q, batch_k, kinds, data):
    batch = max(batch_q, batch_k)
    if batch_q != batch_k:
        batch_k = 1 if batch_q == batch else batch_k
        batch_q = 1 if batch_k == batch else batch_q
    ids = st.integers(-1, kinds)
    ids_q = data.draw(st.lists(st.lists(ids, min_size=sq, max_size=sq), min_size=batch_q, max_size=batch_q))
    ids_k = data.draw(st.lists(st.lists(ids, min_size=sk, max_size=sk), min_size=batch_k, max_size=batch_k))

    def equal(b, i, k):
        return ids_q[b % batch_q][i] == ids_k[b % batch_k][k]

    given_ids = {"segment_ids": torch.tensor(ids_q, dtype=torch.int32), "segment_ids_k": ids_k}
    assert_attends(masks.documents(sq, sk, **given_ids), equal, sq, sk, batch)
    causal = masks.causal_documents(sq, sk, **given_ids)
    assert_attends(causal, lambda b, i, k: equal(b, i, k) and k <= i + sk - sq, sq, sk, batch)


def test_segment_ids_and_cumulative_lengths_describe_the_same_documents():
    ids = [3, 3, 3, 7, 7, 1, 1, 1, 1]
    for builder in (masks.documents, masks.causal_documents):
        assert builder(9, segment_ids=ids).equals(builder(9, cu_seqlens=[0, 3, 5, 9]))


@few
@given(st.integers(1, 20), st.integers(0, 5), st.integers(1, 3), st.data())
def test_runs_of_ones_attend_all_of_themselves_besides_the_past(sq, before, batch, data):
    sk = sq + before
    ones = data.draw(st.lists(st.lists(st.booleans(), min_size=sk, max_size=sk), min_size=batch, max_size=batch))
    ids = data.draw(st.lists(st.integers(0, 2), min_size=sk, max_size=sk))

    def same_run(b, p, k, cut_by_ids):
        between = range(min(p, k), max(p, k) + 1)
        return all(ones[b][x] and (not cut_by_ids or ids[x] == ids[p]) for x in between)

    def plain(b, i, k):
        return k <= i + before or same_run(b, i + before, k, False)

    def segmented(b, i, k):
        p = i + before
        return (k <= p and ids[k] == ids[p]) or same_run(b, p, k, True)

    mask = torch.tensor(ones)
    assert_attends(masks.bidirectional_runs(sq, sk, bidirectional_mask=mask), plain, sq, sk, batch)
    with_ids = masks.bidirectional_runs(sq, sk, bidirectional_mask=mask.int(), segment_ids=ids)
    assert_attends(with_ids, segmented, sq, sk, batch)
    alone = masks.bidirectional_runs(sq, sk, bidirectional_mask=mask, causal_outside=False)
    assert_attends(alone, lambda b, i, k: same_run(b, i + before, k, False), sq, sk, batch)


def test_runs_as_ranges_stay_apart_where_they_touch():
    mask = masks.bidirectional_runs(8, runs=[[4, 6], [1, 4]])
    one_run = masks.bidirectional_runs(8, bidirectional_mask=[0, 1, 1, 1, 1, 1, 0, 0])
    cut = masks.bidirectional_runs(8, bidirectional_mask=[0, 1, 1, 1, 1, 1, 0, 0], segment_ids=[0] * 4 + [1] * 4)
    row = [list(m.to_dense()[0, 1].nonzero().flatten()) for m in (mask, one_run, cut)]
    assert row == [[0, 1, 2, 3], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3]]
    assert mask.to_dense()[0, 4].tolist() == [True] * 6 + [False] * 2


# ---------------------------------------------------------------- behaviour of all


def test_masks_are_made_where_the_first_tensor_among_the_arguments_is():
    ids = torch.zeros(4, dtype=torch.int32, device="meta")
    assert device_of(None, [0, 4], None, ids) == torch.device("meta")
    assert device_of("cpu", ids) == torch.device("cpu")
    assert device_of(None, [0, 4]) == torch.device("cpu")


def test_long_masks_cost_memory_by_rows_not_by_pairs():
    rows = 1 << 20
    mask = masks.causal_documents(rows, cu_seqlens=list(range(0, rows + 1, 256)))
    assert mask.layers == 1
    assert mask.area() == rows * 257 // 2
    assert masks.global_tokens(rows, positions=[0, 5], left=128, right=128).layers == 3


numpy_forms = [
    (masks.full, (6, 8), {}),
    (masks.causal, (6, 8), {"offset": -1}),
    (masks.sliding_window, (6,), {"left": 2, "right": -1}),
    (masks.sliding_window, (6,), {"window_size": 2}),
    (masks.chunked_causal, (6,), {"chunk_size": 4}),
    (masks.block_causal, (6,), {"block_size": 4}),
    (masks.prefix_lm, (6,), {"prefix_length": 3}),
    (masks.prefix_lm, (6,), {"prefix_length": [3, 1]}),
    (masks.shared_prefix, (6,), {"prefix_length": 2, "lengths": [3, 1]}),
    (masks.block_diffusion, (8,), {"block_size": 3}),
    (masks.global_tokens, (6,), {"positions": [0, 4], "left": 1, "right": 0}),
    (masks.documents, (6,), {"cu_seqlens": [0, 2, 6]}),
    (masks.documents, (6,), {"segment_ids": [0, 0, 1, 1, 0, 2]}),
    (masks.causal_documents, (4, 6), {"cu_seqlens": [0, 2, 4], "cu_seqlens_k": [0, 1, 6]}),
    (masks.bidirectional_runs, (6,), {"bidirectional_mask": [0, 1, 1, 0, 0, 1]}),
    (masks.bidirectional_runs, (6,), {"runs": [[0, 2], [2, 5]]}),
]


@pytest.mark.parametrize(("builder", "lengths", "arguments"), numpy_forms)
@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint16])
def test_numpys_integers_and_arrays_are_taken_for_ints_and_lists(builder, lengths, arguments, dtype):
    def in_numpy(value):
        if dtype == np.uint16 and value == -1:
            return value
        return np.array(value, dtype=dtype) if isinstance(value, list) else dtype(value)

    made = builder(*map(in_numpy, lengths), **{name: in_numpy(value) for name, value in arguments.items()})
    assert made.equals(builder(*lengths, **arguments))
    assert type(made.seqlen_k) is int


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_masks_live_on_the_cpu_whatever_the_default_device(device):
    with torch.device(device):
        for builder, lengths, arguments in numpy_forms:
            assert builder(*lengths, **arguments).device.type == "cpu"


def test_lengths_whose_sum_wraps_around_are_refused():
    with pytest.raises(ValueError, match="lengths must not be more than seqlen_q = 4"):
        masks.shared_prefix(4, prefix_length=1, lengths=[1 << 62] * 4)


bad_calls = [
    (lambda: masks.full(-1), "seqlen_q must be >= 0, got -1"),
    (lambda: masks.full(4, -2), "seqlen_k must be >= 0, got -2"),
    (lambda: masks.full(True), "seqlen_q must be an int"),
    (lambda: masks.full(2, 1 << 32), "seqlen_k must be below 2.31, as all positions, got 4294967296"),
    (lambda: masks.causal(4, offset=1 << 70), "offset must be below 2.31"),
    (lambda: masks.causal(4, offset=-(1 << 70)), "offset must be below 2.31"),
    (lambda: masks.sliding_window(4, left=(1 << 63) - 1, right=0), "left must be below 2.31"),
    (lambda: masks.prefix_lm(4, prefix_length=True), "prefix_length must be an integer tensor or a list"),
    (lambda: masks.documents(4, segment_ids=torch.ones(4) > 0), "segment_ids must hold integers, got torch.bool"),
    (lambda: masks.documents(4, cu_seqlens=[0, 1 << 70]), "cu_seqlens must be an integer tensor or a list of ints"),
    (lambda: masks.bidirectional_runs(4, runs=[[0, 2]], causal_outside="no"), "causal_outside must be True or False"),
    (lambda: masks.causal(4.0), "seqlen_q must be an int"),
    (lambda: masks.causal(4, align="center"), "align must be 'bottom_right' or 'top_left', got 'center'"),
    (lambda: masks.causal(4, offset=0.5), "offset must be an int"),
    (lambda: masks.sliding_window(4), "either left and right .* or window_size"),
    (lambda: masks.sliding_window(4, left=1), "either left and right .* or window_size"),
    (lambda: masks.sliding_window(4, left=1, right=1, window_size=2), "either left and right"),
    (lambda: masks.sliding_window(4, left=-2, right=0), "left must be >= -1, got -2"),
    (lambda: masks.sliding_window(4, window_size=0), "window_size must be positive"),
    (lambda: masks.chunked_causal(4, chunk_size=0), "chunk_size must be positive"),
    (lambda: masks.block_causal(4, block_size=-1), "block_size must be positive"),
    (lambda: masks.prefix_lm(4, prefix_length=-1), "prefix_length must be an int >= 0"),
    (lambda: masks.prefix_lm(4, prefix_length=[[1]]), "prefix_length must be"),
    (lambda: masks.shared_prefix(4, 5, prefix_length=1, lengths=[1]), "seqlen_k equal to seqlen_q"),
    (lambda: masks.shared_prefix(4, prefix_length=2, lengths=[2, 1]), "5 tokens, more than seqlen_q = 4"),
    (lambda: masks.shared_prefix(4, prefix_length=2, lengths=[-1]), "lengths must be 1-D and >= 0"),
    (lambda: masks.shared_prefix(4, prefix_length=2, lengths=3), "lengths must be an integer tensor or a list"),
    (lambda: masks.block_diffusion(7, block_size=2), "seqlen_q must be even"),
    (lambda: masks.global_tokens(4, positions=[4], left=1, right=1), r"positions must be 1-D keys in \[0, 4\)"),
    (lambda: masks.documents(4), "exactly one of cu_seqlens and segment_ids"),
    (lambda: masks.documents(4, cu_seqlens=[0, 4], segment_ids=[0] * 4), "exactly one of cu_seqlens and segment_ids"),
    (lambda: masks.documents(4, cu_seqlens=[1, 4]), "cu_seqlens must go from 0 to"),
    (lambda: masks.documents(4, cu_seqlens=[0, 3, 2]), "cu_seqlens must go from 0 to at most 4 and never fall"),
    (lambda: masks.documents(4, cu_seqlens=[0, 5]), "go from 0 to at most 4"),
    (lambda: masks.documents(4, 6, cu_seqlens=[0, 4], cu_seqlens_k=[0, 7]), "cu_seqlens_k must go from 0 to"),
    (lambda: masks.documents(4, cu_seqlens=[0, 4], cu_seqlens_k=[0, 1, 4]), "must have one shape"),
    (lambda: masks.documents(4, cu_seqlens=[0, 4], segment_ids_k=[0] * 4), "segment_ids_k goes with segment_ids"),
    (lambda: masks.documents(4, segment_ids=[0] * 4, cu_seqlens_k=[0, 4]), "cu_seqlens_k goes with cu_seqlens"),
    (lambda: masks.documents(4, cu_seqlens=torch.tensor([0.0, 4.0])), "cu_seqlens must hold integers"),
    (lambda: masks.documents(4, segment_ids=[0] * 5), r"segment_ids must have shape \(4,\) or \(batch, 4\)"),
    (lambda: masks.documents(4, 5, segment_ids=[0] * 4), "segment_ids_k is needed"),
    (lambda: masks.documents(2, segment_ids=[[0, 0]] * 2, segment_ids_k=[[0, 0]] * 3), "one batch, got 2 and 3"),
    (lambda: masks.bidirectional_runs(4), "exactly one of bidirectional_mask and runs"),
    (lambda: masks.bidirectional_runs(4, bidirectional_mask=[0, 1, 2, 0]), "zeros and ones"),
    (lambda: masks.bidirectional_runs(4, runs=[[0, 2], [1, 3]]), "runs must be disjoint"),
    (lambda: masks.bidirectional_runs(4, runs=[[2, 5]]), r"ranges in \[0, 4\)"),
    (lambda: masks.bidirectional_runs(5, 4, runs=[[2, 3]]), "seqlen_q <= seqlen_k"),
]


@pytest.mark.parametrize(("call", "words"), bad_calls)
def test_bad_arguments_are_named(call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call()
