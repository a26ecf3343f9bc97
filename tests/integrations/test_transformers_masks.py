"""Masks are intervals, and the pairs that transformers' own dense masks have."""

import copy
import pickle

import pytest
import torch
from transformers import masking_utils as hf
from transformers.masking_utils import find_packed_sequence_indices, sdpa_mask

from cute_attn import BlockMask, IntervalMask, create_block_mask
from cute_attn.integrations.transformers import as_attention_mask, masks
from cute_attn.integrations.transformers.layer_mask import LayerMask, TokenKeys
from cute_attn.integrations.transformers.masks import layer_mask

BATCH, ROWS = 2, 13
PADDED = torch.ones(BATCH, ROWS, dtype=torch.bool)
PADDED[0, :4], PADDED[1, 9:], PADDED[1, 3] = False, False, False
POSITIONS = torch.stack([torch.cat([torch.arange(n) for n in lengths]) for lengths in ((5, 1, 7), (10, 3))])
IMAGES = torch.full((BATCH, ROWS), -1)
IMAGES[0, 2:6], IMAGES[0, 8:11], IMAGES[1, 4:7], IMAGES[1, 11] = 0, 1, 0, 0
DOCUMENTS = find_packed_sequence_indices(POSITIONS)
CHUNKS = hf.chunked_causal_mask_function(3, torch.tensor([4, 0]))


def packed(function):
    remapped = hf.remap_positions_for_packed_sequence(function, POSITIONS)
    return hf.and_masks(remapped, hf.packed_sequence_mask_function(DOCUMENTS))


def packed_images(function):
    remapped = hf.remap_positions_for_packed_sequence(function, POSITIONS)
    either = hf.or_masks(remapped, hf.blockwise_overlay(IMAGES))
    return hf.and_masks(either, hf.packed_sequence_mask_function(DOCUMENTS))


FUNCTIONS = {
    "causal": hf.causal_mask_function,
    "full": hf.bidirectional_mask_function,
    "window": hf.sliding_window_causal_mask_function(4),
    "two-sided window": hf.sliding_window_bidirectional_mask_function(3),
    "chunks": CHUNKS,
    "packed": packed(hf.causal_mask_function),
    "packed window": packed(hf.sliding_window_causal_mask_function(3)),
    "packed chunks": packed(hf.chunked_causal_mask_function(3, torch.zeros(BATCH, dtype=torch.int64))),
    "packed by a function of ours": packed(lambda b, h, q, kv: (kv <= q) & (kv != 2)),
    "images": hf.or_masks(hf.causal_mask_function, hf.blockwise_overlay(IMAGES)),
    "images in a window": hf.and_masks(
        hf.or_masks(hf.causal_mask_function, hf.blockwise_overlay(IMAGES)), hf.sliding_window_overlay(4)
    ),
    "packed images": packed_images(hf.causal_mask_function),
    "everything or": hf.or_masks(hf.causal_mask_function, lambda *args: torch.tensor(True)),
}


def both(function, **options):
    options = {"batch_size": BATCH, "q_length": ROWS, "kv_length": ROWS, "mask_function": function, **options}
    dense = sdpa_mask(**options, allow_is_causal_skip=False).expand(BATCH, -1, -1, -1)
    mask = layer_mask(**options)
    assert isinstance(mask, LayerMask)
    assert mask.shape == dense.shape
    return mask.attended, dense[:, 0]


@pytest.mark.parametrize("padding", [None, PADDED], ids=["", "padded"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_pairs_are_those_of_the_dense_mask(name, padding):
    found, dense = both(FUNCTIONS[name], attention_mask=padding)
    assert isinstance(found, IntervalMask)
    assert torch.equal(found.to_dense().expand_as(dense), dense)


@pytest.mark.parametrize("offset", [6, torch.tensor(6)], ids=["int", "tensor"])
@pytest.mark.parametrize("name", ["causal", "window", "chunks", "images"])
def test_later_rows_of_a_cache_see_what_the_dense_mask_says(name, offset):
    """Five rows at 6 to 10 over the keys 2 to 13, the last two of which are not there yet."""
    options = {"q_length": 5, "kv_length": 12, "q_offset": offset, "kv_offset": 2, "attention_mask": PADDED[:, :11]}
    function = FUNCTIONS[name]
    if name == "images":
        function = hf.or_masks(hf.causal_mask_function, hf.blockwise_overlay(torch.nn.functional.pad(IMAGES, (0, 1))))
    found, dense = both(function, **options)
    assert torch.equal(found.to_dense().expand_as(dense), dense)


@pytest.mark.parametrize("name", ["causal", "window", "chunks", "full"])
def test_one_token_has_the_keys_of_the_dense_mask_in_their_order(name):
    options = {"q_length": 1, "kv_length": ROWS + 2, "q_offset": torch.tensor(10), "attention_mask": PADDED}
    found, dense = both(FUNCTIONS[name], **options)
    assert isinstance(found, TokenKeys)
    assert torch.equal(found.sees, dense[:, 0])
    for order, length, row in zip(found.order, found.lengths, dense[:, 0], strict=True):
        assert order[:length].tolist() == row.nonzero()[:, 0].tolist()
    assert torch.equal(found.intervals().to_dense(), dense)


def test_one_token_that_sees_the_first_keys_needs_no_order():
    found, _ = both(hf.causal_mask_function, q_length=1, kv_length=ROWS, q_offset=7)
    assert found.order is None
    assert found.lengths.tolist() == [8, 8]


def test_a_thousand_documents_are_read_in_one_layer():
    positions = torch.arange(16).repeat(1024)[None]
    ids = find_packed_sequence_indices(positions)
    inside = hf.remap_positions_for_packed_sequence(hf.sliding_window_causal_mask_function(8), positions)
    function = hf.and_masks(inside, hf.packed_sequence_mask_function(ids))
    mask = layer_mask(1, 16384, 16384, mask_function=function).attended
    assert (mask.batch, mask.layers) == (1, 1)
    assert mask.area() == 1024 * (8 * 9 // 2 + 8 * 8)


def test_what_is_no_intervals_becomes_a_block_mask():
    function = hf.and_masks(hf.causal_mask_function, lambda b, h, q, kv: (q * kv) % 3 != 1)
    found, dense = both(function, attention_mask=PADDED)
    assert isinstance(found, BlockMask)
    assert found.intervals is None
    assert torch.equal(found.reading().intervals.to_dense() & dense, dense)


def test_a_function_that_looks_at_values_is_refused():
    with pytest.raises(ValueError, match="mask_mod"):
        layer_mask(1, 4, 4, mask_function=lambda b, h, q, kv: q >= kv if bool(q > 2) else kv > q)


def test_a_mask_of_the_users_own_is_carried_as_it_is():
    mine = IntervalMask.from_dense(torch.ones(4, 5).tril() > 0)
    carried = as_attention_mask(mine)
    assert carried.attended is mine
    assert carried.shape == (1, 1, 4, 5)
    blocks = create_block_mask(hf.causal_mask_function, None, None, 4, 5, device="cpu")
    assert as_attention_mask(blocks).attended is blocks
    with pytest.raises(TypeError, match="mask must be an IntervalMask or a BlockMask of cute_attn, got"):
        as_attention_mask(torch.ones(4, 5))


def test_a_carried_mask_is_printed_copied_and_pickled():
    carried = as_attention_mask(IntervalMask.from_dense(torch.ones(4, 5).tril() > 0))
    assert str(carried) == repr(carried) == f"LayerMask({carried.attended!r})"
    for other in (copy.deepcopy(carried), pickle.loads(pickle.dumps(carried))):
        assert other.shape == carried.shape
        assert other.attended.equals(carried.attended)


def test_masks_move_to_a_device_once():
    assert (mask := layer_mask(1, 4, 4)).to("cpu") is mask
    token = layer_mask(1, 1, 4, q_offset=3)
    there = token.to("meta", non_blocking=True)
    assert {x.device.type for x in there.attended if x is not None} == {"meta"}
    assert token.to("meta") is there
    assert token.to("cpu") is token


def test_a_mask_without_tensors_is_found_again_and_keeps_its_plans():
    first = layer_mask(BATCH, 8, 8, mask_function=hf.sliding_window_causal_mask_function(4)).attended
    again = layer_mask(BATCH, 8, 8, 0, 0, hf.sliding_window_causal_mask_function(4), torch.ones(BATCH, 8) > 0).attended
    assert again is first
    for other in ((BATCH, 8, 8, 0, 0, hf.sliding_window_causal_mask_function(5)), (BATCH, 7, 8), (BATCH, 7, 8, 1)):
        assert layer_mask(*other).attended is not first
    assert not layer_mask(BATCH, 7, 8, 1).attended.equals(layer_mask(BATCH, 7, 8).attended)
    for length in range(2, 2 + 2 * masks.CAPACITY):
        layer_mask(1, length, length)
    assert len(masks._kept) == masks.CAPACITY
