"""flex_attention under block masks: what is intervals, what a predicate thins, lists of blocks in every state."""

import itertools

import pytest
import torch
from mods_case import Captured, mods, pairs_of_lists
from ops.test_flex_attention import check, inputs
from torch.nn.attention import flex_attention as torch_flex

from cute_attn import BlockMask, create_block_mask, create_mask, flex_attention, mask

DOCUMENTS = torch.tensor([0] * 60 + [1] * 50 + [2] * 90 + [3] * 100)
KEEP = torch.rand(2, 4, 300, generator=torch.Generator().manual_seed(0)) > 0.5
SIGNS = torch.randn(300, generator=torch.Generator().manual_seed(1))

MASKS = {
    "causal": lambda b, h, q, k: q >= k,
    "window": lambda b, h, q, k: (q >= k) & (q - k < 40),
    "documents": lambda b, h, q, k: (DOCUMENTS[q] == DOCUMENTS[k]) & (q >= k),
    "dilated": lambda b, h, q, k: (q - k) % 3 == 0,
    "keys of each batch element and head": lambda b, h, q, k: KEEP[b, h, k] & (q >= k),
    "signs": lambda b, h, q, k: SIGNS[q] * SIGNS[k] > 0,
    "heads": lambda b, h, q, k: q - k <= h * 20,
    "batch and rows without keys": lambda b, h, q, k: ((q + k + b) % 2 == 0) & (q % 7 != 3),
    "nothing": lambda b, h, q, k: q < k - 1000,
    "checkerboard of blocks": lambda b, h, q, k: (q // 16 + k // 16) % 2 == 0,
}

# More intervals a row than a mask of intervals has.
THINNED = {"dilated", "keys of each batch element and head", "signs", "batch and rows without keys"}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("score", [pytest.param(None, marks=pytest.mark.slow), "everything"])
def test_a_mask_mod_is_its_dense_mask(name, score):
    captured = Captured(heads=4, batch=2)
    lengths = 130, 300
    block_mask = create_block_mask(MASKS[name], 2, 4, *lengths, device="cpu", BLOCK_SIZE=64)
    assert (block_mask.intervals is None) == (name in THINNED)
    attended = create_mask(MASKS[name], 2, 4, *lengths, device="cpu")
    score_mod = None if score is None else mods(captured)[score]
    check(*inputs(2, (4, 2), lengths), score_mod, block_mask, attended, captured.leaves())


BLOCK_SIZES = [64, 128, 256, (256, 64), (200, 96)]


@pytest.mark.slow
@pytest.mark.parametrize("size", BLOCK_SIZES)
@pytest.mark.parametrize("maker", [create_block_mask, torch_flex.create_block_mask], ids=["ours", "torchs"])
@pytest.mark.parametrize("lengths", [(127, 257), (1, 129), pytest.param((257, 257), marks=pytest.mark.slow)])
def test_block_sizes_change_nothing_and_torchs_masks_are_taken(maker, size, lengths):
    block_mask = maker(MASKS["dilated"], None, None, *lengths, device="cpu", BLOCK_SIZE=size)
    attended = create_mask(MASKS["dilated"], 1, 1, *lengths, device="cpu")
    check(*inputs(1, (2, 2), lengths), mods(None)["squared"], block_mask, attended)


@pytest.mark.parametrize("planes", list(itertools.product([1, 2], [1, 4])))
def test_a_mask_of_one_batch_element_or_head_serves_all(planes):
    block_mask = create_block_mask(MASKS["signs"], *planes, 130, 150, device="cpu")
    attended = create_mask(MASKS["signs"], 1, 1, 130, 150, device="cpu")
    check(*inputs(2, (4, 2), (130, 150)), None, block_mask, attended)


def listed(rows, width):
    """Lists with rubbish past the counts, unsorted, with repetitions: counts and indices of partial and full blocks."""
    counts = torch.tensor([2, 0, 3])[:rows].int()
    indices = torch.tensor([[2, 0, 9, -5], [7, 7, 7, 7], [1, 2, 1, 99]])[:rows, :width].int()
    full_counts = torch.tensor([1, 1, 0])[:rows].int()
    full_indices = torch.tensor([[0, 55, -1, 3], [2, 1, 1, 1], [4, 4, 4, 4]])[:rows, :width].int()
    return counts, indices, full_counts, full_indices


@pytest.mark.parametrize("has_full", [False, True])
@pytest.mark.parametrize("name", ["causal", "dilated"])
def test_a_pair_is_attended_in_a_full_block_or_where_mask_mod_says_so_in_a_listed_one(name, has_full):
    rows, keys, size = 90, 120, (32, 40)
    counts, indices, full_counts, full_indices = listed(3, 4)
    if not has_full:
        full_counts = torch.zeros_like(full_counts)
    both = counts, indices, full_counts, full_indices
    lists = [x[None, None] for x in (both if has_full else both[:2])]
    block_mask = BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=size, mask_mod=MASKS[name], seq_lengths=(rows, keys))
    says = create_mask(MASKS[name], 1, 1, rows, keys, device="cpu")[0, 0]
    attended = pairs_of_lists(*both, size, says)
    check(*inputs(1, (2, 2), (rows, keys)), None, block_mask, attended)
    check(*inputs(1, (2, 2), (rows, keys)), mods(None)["squared"], block_mask, attended)


def test_a_slice_needs_a_mask_mod_and_then_has_its_own_rows():
    whole = create_block_mask(MASKS["dilated"], None, None, 257, 257, device="cpu", BLOCK_SIZE=64)
    part = whole[:, :, 2:]
    qkv = inputs(1, (2, 2), (257 - 128, 257))
    with pytest.raises(ValueError, match="mask_mod of a sliced BlockMask is not known"):
        flex_attention(*qkv, block_mask=part)
    part.mask_mod = lambda b, h, q, k: MASKS["dilated"](b, h, q + 128, k)
    attended = create_mask(MASKS["dilated"], 1, 1, 257, 257, device="cpu")[:, :, 128:]
    check(*qkv, None, part, attended)


def test_an_adjusted_mask_serves_shorter_tensors():
    whole = create_block_mask(MASKS["dilated"], None, None, 257, 257, device="cpu", BLOCK_SIZE=64)
    qkv = inputs(1, (2, 2), (100, 140))
    with pytest.raises(ValueError, match=r"100 queries and 140 keys, .* 257 and 257: block_mask._adjust\(100, 140\)"):
        flex_attention(*qkv, block_mask=whole)
    check(*qkv, None, whole._adjust(100, 140), create_mask(MASKS["dilated"], 1, 1, 100, 140, device="cpu"))


def test_the_planes_that_a_mask_was_made_for_count_even_where_its_function_reads_none():
    block_mask = create_block_mask(MASKS["causal"], 3, 1, 20, 20, device="cpu")
    with pytest.raises(ValueError, match="block_mask must have the batch of query, 2, or 1, got 3"):
        flex_attention(*inputs(2, (2, 2), (20, 20)), block_mask=block_mask)


@pytest.mark.parametrize(
    "mod", [lambda b, h, q, k: q - k < 2 + b + h, lambda b, h, q, k: (q * k + b + h) % 3 != 1], ids=["read", "thinned"]
)
@pytest.mark.parametrize("maker", [create_block_mask, torch_flex.create_block_mask], ids=["ours", "theirs"])
def test_a_mask_that_all_share_whose_function_tells_them_apart_is_refused(mod, maker):
    def attend(batch, heads, B, H):
        made = maker(mod, B, H, 20, 20, device="cpu")
        return flex_attention(*inputs(batch, (heads, heads), (20, 20)), block_mask=made).shape[:2]

    with pytest.raises(ValueError, match=r"for the 4 heads of query, since its mask_mod reads h, .* takes H=4"):
        attend(1, 4, None, None)
    with pytest.raises(ValueError, match=r"for the 2 batch elements of query, .* reads b, .* takes B=2"):
        attend(2, 4, None, 4)
    assert attend(1, 1, None, None) == (1, 1)
    assert attend(2, 4, 2, 4) == (2, 4)


def test_a_captured_tensor_that_changed_is_noticed_where_it_is_read():
    signs = SIGNS.clone()
    block_mask = create_block_mask(lambda b, h, q, k: signs[q] * signs[k] > 0, None, None, 50, 50, device="cpu")
    signs.neg_()
    with pytest.raises(ValueError, match=r"'signs', .* which mask_mod captures, was changed"):
        flex_attention(*inputs(1, (1, 1), (50, 50)), block_mask=block_mask)


@pytest.mark.parametrize("name", [pytest.param("causal", marks=pytest.mark.slow), "dilated"])
def test_a_mask_made_before_is_taken_by_compiled_code(name):
    torch._dynamo.reset()
    block_mask = create_block_mask(MASKS[name], None, None, 40, 257, device="cpu")
    compiled = torch.compile(flex_attention, fullgraph=True, backend="aot_eager")
    qkv = inputs(1, (2, 2), (40, 257))
    wanted, got = (f(*qkv, mods(None)["squared"], block_mask) for f in (flex_attention, compiled))
    assert torch.equal(wanted, got)


def test_a_mask_made_inside_a_compiled_function_may_break_the_graph_but_works():
    torch._dynamo.reset()

    @torch.compile(backend="eager")
    def compiled(query, key, value, window):
        def mod(b, h, q, k):
            return (q >= k) & (q - k < window)

        block_mask = create_block_mask(mod, None, None, query.shape[2], key.shape[2], device="cpu")
        return flex_attention(query, key, value, block_mask=block_mask)

    qkv = inputs(1, (2, 2), (40, 40))
    wanted = flex_attention(*qkv, block_mask=mask.sliding_window(40, left=6, right=0))
    assert torch.allclose(compiled(*qkv, 7), wanted)


def test_a_tensor_of_a_mask_mod_that_changed_before_the_backward_is_noticed():
    keep = KEEP[0, 0, :20].clone()
    block_mask = create_block_mask(lambda b, h, q, k: keep[q ^ k & 3], None, None, 17, 20, device="cpu")
    assert block_mask.intervals is None
    out = flex_attention(*inputs(1, (1, 1), (17, 20)), None, block_mask)
    keep.logical_not_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_a_mask_of_inference_mode_has_gradients():
    with torch.inference_mode():
        keep = KEEP[0, 0, :20].clone()
        block_mask = create_block_mask(lambda b, h, q, k: keep[q ^ k & 3], None, None, 17, 20, device="cpu")
        attended = create_mask(block_mask.mask_mod, 1, 1, 17, 20, device="cpu")
    assert block_mask.intervals is None
    check(*inputs(1, (1, 1), (17, 20)), None, block_mask, attended.clone())


HASHES = {
    "products": lambda b, h, q, k: ((q * 1103515245 ^ k * 12345) >> 16) % 10 < 7,
    "products where few attend": lambda b, h, q, k: (q < 1) & (((q * 1103515245 ^ k * 12345) >> 16) % 10 < 7),
    "products of wider ones": lambda b, h, q, k: ((q.long() * 1103515245 ^ k * 12345) >> 16) % 10 < 7,
}


@pytest.mark.parametrize("name", HASHES)
def test_what_is_attended_is_what_torch_says_of_int64_or_refused(name):
    hashed, lengths, qkv = HASHES[name], (30, 40), inputs(1, (1, 1), (30, 40))
    theirs = torch_flex.create_block_mask(hashed, None, None, *lengths, device="cpu", BLOCK_SIZE=16)
    lists = theirs.kv_num_blocks, theirs.kv_indices, theirs.full_kv_num_blocks, theirs.full_kv_indices
    listed = BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=16, mask_mod=hashed, seq_lengths=lengths)
    if name == "products":
        for make in (
            lambda: create_block_mask(hashed, None, None, *lengths, device="cpu"),
            lambda: flex_attention(*qkv, None, theirs),
            lambda: flex_attention(*qkv, None, listed),
            lambda: listed.reading().thinned(1, 1),
        ):
            with pytest.raises(ValueError, match=r"mask_mod meets an int32 with \d{10}: .*x.long\(\)"):
                make()
        return
    attended = torch_flex.create_mask(hashed, 1, 1, *lengths, device="cpu")
    for block_mask in (create_block_mask(hashed, None, None, *lengths, device="cpu"), theirs, listed):
        check(*qkv, None, block_mask, attended)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_what_is_attended_does_not_depend_on_the_dtype_of_query(dtype):
    def thirds(b, h, q, k):
        return (q / 3 - k / 3) * 3 == q - k

    block_mask = create_block_mask(thirds, None, None, 90, 90, device="cpu", BLOCK_SIZE=16)
    attended = torch_flex.create_mask(thirds, 1, 1, 90, 90, device="cpu")
    assert block_mask.intervals is None
    assert not attended.all()
    zeros = torch.zeros(1, 1, 90, 8, dtype=dtype)
    found = flex_attention(zeros, zeros, torch.eye(90, dtype=dtype)[None, None], None, block_mask) > 0
    assert torch.equal(found, attended)
