"""Ranges and types as people pass them, and the pictures that define the four types."""

import pytest
import torch

from cute_attn.mask import AttnMaskType, AttnRange, AttnRanges, IntervalMask

# Rows x keys of each type over one slice, as MagiAttention's reference draws them.
PICTURES = {
    ("full", 5, 2): "11 11 11 11 11",
    ("full", 2, 5): "11111 11111",
    ("full", 5, 5): "11111 11111 11111 11111 11111",
    ("causal", 5, 2): "00 00 00 10 11",
    ("causal", 2, 5): "11110 11111",
    ("causal", 5, 5): "10000 11000 11100 11110 11111",
    ("inv_causal", 5, 2): "11 01 00 00 00",
    ("inv_causal", 2, 5): "11111 01111",
    ("inv_causal", 5, 5): "11111 01111 00111 00011 00001",
    ("bi_causal", 5, 2): "00 00 00 00 00",
    ("bi_causal", 2, 5): "11110 01111",
    ("bi_causal", 5, 5): "10000 01000 00100 00010 00001",
}


def picture(mask):
    return " ".join("".join(str(int(x)) for x in row) for row in mask.to_dense()[0])


@pytest.mark.parametrize(("kind", "rows", "keys"), PICTURES)
def test_the_four_types_look_as_in_the_reference(kind, rows, keys):
    expected = PICTURES[kind, rows, keys]
    mask = IntervalMask.from_slices([[0, rows]], [[0, keys]], [kind])
    assert picture(mask) == expected
    assert mask.area() == expected.count("1")


@pytest.mark.parametrize(("kind", "rows", "keys"), PICTURES)
def test_a_slice_looks_the_same_wherever_it_lies(kind, rows, keys):
    mask = IntervalMask.from_slices([[3, 3 + rows]], [[4, 4 + keys]], kind, seqlen_q=11, seqlen_k=12)
    dense = mask.to_dense()[0]
    here = " ".join("".join(str(int(x)) for x in row) for row in dense[3 : 3 + rows, 4 : 4 + keys])
    assert here == PICTURES[kind, rows, keys]
    assert int(dense.sum()) == here.count("1")


def test_types_have_names_numbers_and_spellings():
    for number, name in enumerate(["full", "causal", "inv_causal", "bi_causal"]):
        kind = AttnMaskType.from_int_type(number)
        assert kind.value == name
        assert kind.to_int_type() == number
        assert AttnMaskType.parse(name.upper()) is AttnMaskType.parse(number) is AttnMaskType.parse(kind) is kind


def test_ranges_are_lists_of_half_open_pairs():
    ranges = AttnRanges.from_ranges([[0, 3], (3, 3)])
    ranges.append(AttnRange(5, 9))
    ranges.extend([[1, 2]])
    assert ranges.to_naive_ranges() == [(0, 3), (3, 3), (5, 9), (1, 2)]
    assert (ranges.start, ranges.end, ranges.total_seqlen, len(ranges)) == (0, 9, 8, 4)
    assert ranges[2] == AttnRange(5, 9)
    assert ranges[1:3] == AttnRanges([[3, 3], [5, 9]])
    assert hash(ranges[1:3]) == hash(AttnRanges([[3, 3], [5, 9]]))
    assert repr(ranges[0]) == "[0, 3)"
    assert list(AttnRange.from_range([2, 6])) == [2, 6]
    assert AttnRange(2, 6).seqlen == len(AttnRange(2, 6)) == 4
    assert torch.equal(ranges.to_tensor(), torch.tensor([[0, 3], [3, 3], [5, 9], [1, 2]], dtype=torch.int32))
    assert AttnRanges().to_tensor().shape == (0, 2)


def test_ranges_from_cumulative_lengths():
    expected = AttnRanges([[0, 4], [4, 4], [4, 9]])
    assert AttnRanges.from_cu_seqlens([0, 4, 4, 9]) == expected
    assert AttnRanges.from_cu_seqlens(torch.tensor([0, 4, 4, 9], dtype=torch.int32)) == expected


def test_slices_are_accepted_in_every_form():
    pairs_q, pairs_k, kinds = [[0, 4], [4, 8]], [[0, 8], [2, 8]], ["causal", 2]
    forms = [
        (pairs_q, pairs_k, kinds),
        (AttnRanges(pairs_q), AttnRanges(pairs_k), [AttnMaskType.CAUSAL, AttnMaskType.INVCAUSAL]),
        (torch.tensor(pairs_q), torch.tensor(pairs_k, dtype=torch.int32), torch.tensor([1, 2], dtype=torch.int32)),
        (torch.tensor(pairs_q, dtype=torch.uint8), pairs_k, (1, "inv_causal")),
    ]
    first = IntervalMask.from_slices(*forms[0])
    assert first.area() == (5 + 6 + 7 + 8) + (6 + 5 + 4 + 3)
    for form in forms[1:]:
        assert IntervalMask.from_slices(*form).equals(first)


bad_ranges = [
    (lambda: AttnRange(0, 2.0), TypeError, "end must be an int, got 2.0"),
    (lambda: AttnRange(True, 2), TypeError, "start must be an int"),
    (lambda: AttnRange(3, 2), ValueError, r"0 <= start <= end must hold, got \[3, 2\)"),
    (lambda: AttnRange(-1, 2), ValueError, "0 <= start <= end must hold"),
    (lambda: AttnRange.from_range([1, 2, 3]), ValueError, r"expected \[start, end\], got 3 numbers"),
    (lambda: AttnRange(0, 1 << 31), ValueError, "end must be below 2.31, got 2147483648"),
    (lambda: AttnRange.from_range([False, True]), TypeError, "start must be an int, got False"),
    (lambda: AttnRange.from_range(3), TypeError, r"expected \[start, end\], got 3 of type int"),
    (lambda: AttnMaskType.from_int_type(1.0), TypeError, "expected an int 0..3, got 1.0 of type float"),
    (lambda: AttnMaskType.from_int_type(True), TypeError, "expected an int 0..3, got True of type bool"),
    (lambda: AttnRange.from_range([0.5, 2]), TypeError, "start must be an int, got 0.5"),
    (lambda: AttnMaskType.parse("diagonal"), ValueError, "unknown name 'diagonal'; allowed: 'full', 'causal'"),
    (lambda: AttnMaskType.parse(4), ValueError, "expected 0 full, 1 causal, 2 inv_causal or 3 bi_causal, got 4"),
    (lambda: AttnMaskType.parse(None), TypeError, "expected an AttnMaskType, a name or 0..3, got NoneType"),
]


@pytest.mark.parametrize(("call", "error", "words"), bad_ranges)
def test_bad_ranges_and_types_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


bad_slices = [
    (([[0, 4], [4, 3]], [[0, 4]] * 2), ValueError, "start <= end must hold"),
    ((torch.tensor([[0, 4], [4, 3]]), [[0, 4]] * 2), ValueError, r"q_ranges\[1\] = \[4, 3\] is not a range"),
    ((torch.tensor([[-1, 4]]), [[0, 4]]), ValueError, r"q_ranges\[0\] = \[-1, 4\] is not a range"),
    (([[0, 9]], [[0, 4]]), ValueError, r"q_ranges\[0\] = \[0, 9\] .* 0 <= start <= end <= 8"),
    (([[0, 4]], [[0, 9]]), ValueError, r"k_ranges\[0\] = \[0, 9\] .* 0 <= start <= end <= 8"),
    (([[0, 4]] * 3, [[0, 4]] * 2), ValueError, "must have one length, got 3 and 2"),
    ((torch.arange(4), [[0, 4]]), ValueError, r"q_ranges must have shape \(n, 2\), got \(4,\)"),
    (([[0, 4]], torch.zeros(1, 2)), TypeError, "k_ranges must hold integers, got torch.float32"),
    (([[0, 4]], 7), TypeError, "k_ranges must be a tensor, AttnRanges or a list of pairs, got int"),
    (([[0, 4]], "ab"), TypeError, "k_ranges must be a tensor, AttnRanges or a list of pairs, got str"),
    (([[0, 4]], [[0, 4]], torch.tensor([4])), ValueError, r"attn_type_map\[0\] = 4 is not a mask type"),
    (([[0, 4]], [[0, 4]], torch.tensor([-1])), ValueError, r"attn_type_map\[0\] = -1 is not a mask type"),
    (([[0, 4]], [[0, 4]], [0, 1]), ValueError, r"attn_type_map must have shape \(1,\)"),
    (([[0, 4]], [[0, 4]], torch.tensor([0.0])), TypeError, "attn_type_map must hold integers"),
    (([[0, 4]], [[0, 4]], {}), TypeError, "attn_type_map must be None, a tensor, a type or a list"),
    (([[0, 4]], [[0, 4]], None, -1), ValueError, "seqlen_q must be an int >= 0 and below 2.31, got -1"),
    (([[0, 4]], [[0, 4]], None, 8, 2.5), ValueError, "seqlen_k must be an int >= 0 and below 2.31, got 2.5"),
    (([[0, 4]], [[0, 4]], None, 8, 1 << 31), ValueError, "seqlen_k must be an int >= 0 and below 2.31, got 2147483648"),
    # a list names the item that is wrong
    (([[0, 4], [4, 3]], [[0, 4]] * 2), ValueError, r"q_ranges\[1\]: .* got \[4, 3\)"),
    (([0, 4], [[0, 4]]), TypeError, r"q_ranges\[0\]: .* expected \[start, end\], got 0 of type int"),
    (([[0, 4]], [None]), TypeError, r"k_ranges\[0\]: .* expected \[start, end\], got None"),
    (([[0, 4]], ["ab"]), TypeError, r"k_ranges\[0\]: .* expected \[start, end\], got 'ab'"),
    (([[0, 4]], [[0.0, 4.0]]), TypeError, r"k_ranges\[0\]: .* start must be an int, got 0.0"),
    (([[0, 4]], [[0, 1 << 40]]), ValueError, r"k_ranges\[0\]: .* end must be below 2.31, got 1099511627776"),
    (([[0, 4]] * 2, [[0, 4]] * 2, [1, 4]), ValueError, r"attn_type_map\[1\]: .* 3 bi_causal, got 4"),
    (([[0, 4]], [[0, 4]], ["round"]), ValueError, r"attn_type_map\[0\]: .* unknown name 'round'; allowed"),
    (([[0, 4]], [[0, 4]], 7), ValueError, "attn_type_map: .* got 7"),
]


@pytest.mark.parametrize(("arguments", "error", "words"), bad_slices)
def test_bad_slices_are_named(arguments, error, words):
    arguments = (*arguments, *[None, 8, 8][len(arguments) - 2 :])
    with pytest.raises(error, match=words):
        IntervalMask.from_slices(*arguments)
