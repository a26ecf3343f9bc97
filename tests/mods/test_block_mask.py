"""BlockMask: its fields are torch's, and what it attends is what its lists and its mask_mod say."""

import copy
import inspect
import re

import pytest
import torch
from random_masks import BATCH, HEADS, LENGTHS, attended, dense_of, random_mask
from torch.nn.attention import flex_attention as theirs

import cute_attn
from cute_attn import BlockMask, IntervalMask, and_masks, create_block_mask, create_mask, noop_mask, or_masks
from cute_attn import mask as masks
from cute_attn.mask.blocks import BlockGrid
from cute_attn.mods.block_mask import FIELDS, as_block_mask

DOCUMENTS = torch.arange(1000) // 170
TABLE = torch.randint(0, 5, (2, 1000), generator=torch.Generator().manual_seed(1))
SHAPE = {"B": 2, "H": 3, "Q_LEN": 300, "KV_LEN": 420}
MODS = {
    "causal": lambda b, h, q, k: q >= k,
    "documents": lambda b, h, q, k: DOCUMENTS[q] == DOCUMENTS[k],
    "by head": lambda b, h, q, k: (q - k).abs() < 100 * (h + 1),
    "table": lambda b, h, q, k: TABLE[b, q] == TABLE[b, k],
    "scattered": lambda b, h, q, k: ((q // 40 * 7 + k // 40 * 13 + h) % 5) == 0,
    "thinned": and_masks(lambda b, h, q, k: (q - k).abs() < 80, lambda b, h, q, k: (q * k) % 3 == b),
    "nothing": lambda b, h, q, k: q < 0,
    "everything": noop_mask,
}


def same(mine, torchs):
    assert (mine.shape, mine.numel(), mine.BLOCK_SIZE) == (torchs.shape, torchs.numel(), torchs.BLOCK_SIZE)
    for name in FIELDS:
        ours, want = getattr(mine, name), getattr(torchs, name)
        assert (ours is None) == (want is None), name
        if want is not None:
            assert ours.dtype == want.dtype, name
            assert torch.equal(ours, want), name
    assert torch.equal(mine.to_dense(), torchs.to_dense())
    assert mine.sparsity() == pytest.approx(torchs.sparsity(), abs=1e-4)


@pytest.mark.parametrize("block", [64, 128, (256, 64), (200, 96)])
@pytest.mark.parametrize("name", MODS)
def test_fields_are_those_of_torch_and_what_is_attended_is_the_mask_mod(name, block):
    for separate in (True, False):
        options = {**SHAPE, "device": "cpu", "BLOCK_SIZE": block, "separate_full_blocks": separate}
        mine, torchs = create_block_mask(MODS[name], **options), theirs.create_block_mask(MODS[name], **options)
        same(mine, torchs)
        want = theirs.create_mask(MODS[name], *SHAPE.values(), device="cpu").expand(*SHAPE.values())
        assert torch.equal(attended(mine.reading(), 2, 3), want)
        assert torch.equal(attended(as_block_mask(torchs).reading(), 2, 3), want)
        if mine.intervals is not None:
            assert torch.equal(attended(as_block_mask(mine.intervals).reading(), 2, 3), want)


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, *(pytest.param(x, marks=pytest.mark.slow) for x in range(20, 200, 20))])
def test_fields_of_random_mask_mods_are_those_of_torch(first):
    for seed in range(first, first + 20):
        mask_mod = random_mask(seed)
        mine = create_block_mask(mask_mod, BATCH, HEADS, *LENGTHS, device="cpu", BLOCK_SIZE=(8, 16))
        same(mine, theirs.create_block_mask(mask_mod, BATCH, HEADS, *LENGTHS, device="cpu", BLOCK_SIZE=(8, 16)))
        assert torch.equal(attended(mine.reading(), BATCH, HEADS), dense_of(mask_mod, BATCH, HEADS, *LENGTHS))


@pytest.mark.parametrize("name", MODS)
def test_create_mask_says_what_torch_says(name):
    want = theirs.create_mask(MODS[name], *SHAPE.values(), device="cpu").expand(*SHAPE.values())
    assert torch.equal(create_mask(MODS[name], *SHAPE.values(), device="cpu"), want)


def test_create_mask_of_a_score_mod_is_where_it_leaves_a_score():
    found = create_mask(lambda s, b, h, q, k: torch.where(q >= k, s * 2, -float("inf")), None, None, 5, 7, "cpu")
    assert torch.equal(found[0, 0], masks.causal(5, 7, align="top_left").to_dense()[0])


def test_functions_of_functions():
    small = {"B": None, "H": None, "Q_LEN": 9, "KV_LEN": 9, "device": "cpu"}
    a, b = MODS["causal"], lambda b, h, q, k: q - k < 3
    assert torch.equal(create_mask(and_masks(a, b), **small), create_mask(a, **small) & create_mask(b, **small))
    assert torch.equal(create_mask(or_masks(a, b), **small), create_mask(a, **small) | create_mask(b, **small))
    assert create_mask(and_masks(), **small).all()
    assert not create_mask(or_masks(), **small).any()


# ---------------------------------------------------------------- lists


def lists_of(states, width, seed=0):
    """Lists of a bool `(..., rows, columns)`: in any order, some twice, with rubbish behind."""
    generator = torch.Generator().manual_seed(seed)
    *leading, rows, columns = states.shape
    flat = states.reshape(-1, columns)
    counts, indices = torch.zeros(len(flat), dtype=torch.int32), torch.full((len(flat), width), 99, dtype=torch.int32)
    for i, row in enumerate(flat):
        at = row.nonzero()[:, 0]
        at = at[torch.randperm(len(at), generator=generator)]
        at = torch.cat([at, at[:1]])[:width]  # one twice
        counts[i], indices[i, : len(at)] = len(at), at.int()
    return counts.reshape(*leading, rows), indices.reshape(*leading, rows, width)


def dense_of_lists(partial, full, said, block):
    """The rule, pair by pair: a full block, or a partial one where mask_mod is true."""
    rows, keys = said.shape[-2:]
    return pairs(full, block)[..., :rows, :keys] | (pairs(partial, block)[..., :rows, :keys] & said)


def pairs(blocks, block):
    """The pairs of blocks, bool `(..., rows, keys)`."""
    return blocks.repeat_interleave(block[0], -2).repeat_interleave(block[1], -1)


@pytest.mark.parametrize("block", [64, (200, 96), (33, 150)])
@pytest.mark.parametrize("name", MODS)
@pytest.mark.parametrize("has_full", [True, False])
def test_lists_attend_their_blocks_whatever_mask_mod_says_elsewhere(name, has_full, block):
    rows, keys = 300, 420
    size = block if isinstance(block, tuple) else (block, block)
    blocks = -(-rows // size[0]), -(-keys // size[1])
    generator = torch.Generator().manual_seed(2)
    partial = torch.rand(2, 3, *blocks, generator=generator) < 0.4
    full = (torch.rand(1, 3, *blocks, generator=generator) < 0.3) & has_full  # some are in both
    lists = [*lists_of(partial, blocks[1] + 1), *(lists_of(full, blocks[1] + 1) if has_full else (None, None))]
    mask = BlockMask.from_kv_blocks(*lists, block, MODS[name], (rows, keys))
    want = dense_of_lists(partial, full, dense_of(MODS[name], 2, 3, rows, keys), size)
    assert torch.equal(attended(mask.reading(), 2, 3), want)
    assert mask.kv_indices is lists[1]
    assert torch.equal(mask.to_dense().bool(), partial | full)
    back = transposed_of(mask.q_num_blocks, mask.q_indices, blocks[0])
    assert torch.equal(back, partial)


def transposed_of(counts, indices, rows):
    """bool `(..., rows, columns)` of lists of rows for each column."""
    found = torch.zeros(*counts.shape, rows, dtype=torch.bool)
    for place in torch.cartesian_prod(*map(torch.arange, counts.shape)).tolist():
        found[(*place, indices[(*place,)][: counts[(*place,)]].long())] = True
    return found.transpose(-2, -1)


def test_the_lists_of_keys_alone_decide():
    """Whatever the lists of queries hold, which are kept as they came."""
    made = create_block_mask(MODS["thinned"], **SHAPE)
    nested = made.as_tuple(flatten=False)
    rubbish = [x.clone().fill_(-7) for x in nested[5:9]]
    for queries in (rubbish, [None] * 4):
        mask = BlockMask(*nested[:5], *queries, *nested[9:])
        assert torch.equal(attended(mask.reading(), 2, 3), attended(made.reading(), 2, 3))
        assert [mask.q_num_blocks, mask.q_indices, mask.full_q_num_blocks, mask.full_q_indices] == list(queries)


def test_what_is_out_of_range_lists_nothing_where_nobody_looks():
    """On a GPU, where refusing it would wait."""
    counts, indices = torch.tensor([[[3, 9]]]), torch.tensor([[[[7, 1, -1], [0, 2, 2]]]])
    grid = BlockGrid.from_lists((counts, indices), (counts - 2, indices + 1), (4, 8), 8, 20)
    assert grid.listed.to_dense()[0].int().tolist() == [[0, 1, 0], [1, 1, 1]]
    assert grid.full.to_dense()[0].int().tolist() == [[0, 0, 0], [0, 1, 0]]


def test_a_function_that_reads_neither_batch_nor_head_makes_one_plane():
    for name, planes in (("causal", (1, 1)), ("by head", (1, 3)), ("table", (2, 1)), ("thinned", (2, 1))):
        mask = create_block_mask(MODS[name], **SHAPE)
        reading = mask.reading()
        assert (reading.intervals.batch, reading.intervals.heads) == planes
        assert mask.kv_indices.shape[:2] == (2, 3)


def test_lists_may_lack_batch_and_heads_and_be_compact():
    counts, indices = torch.tensor([1, 2]), torch.tensor([[3, 9], [1, 0]])
    mask = BlockMask.from_kv_blocks(counts, indices, BLOCK_SIZE=(2, 4), seq_lengths=(4, 15))
    assert mask.shape == (4, 15)
    assert mask.intervals.to_dense()[0].int().tolist() == [[0] * 12 + [1] * 3] * 2 + [[1] * 8 + [0] * 7] * 2
    assert (mask.intervals.batch, mask.intervals.heads) == (1, 1)
    assert mask.intervals.layers == 1


def test_what_lies_in_full_blocks_alone_is_intervals_though_the_mask_mod_is_none():
    full = torch.eye(2, 3, dtype=torch.bool)
    lists = *lists_of(full & False, 3), *lists_of(full, 3)
    mask = BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=8, mask_mod=MODS["thinned"])
    assert torch.equal(attended(mask.reading(), 1, 1)[0, 0], pairs(full, (8, 8)))
    assert mask.intervals is not None


ONE, TWO = torch.ones(1, 1, 1, dtype=torch.int32), torch.zeros(1, 1, 1, 2, dtype=torch.int32)
TWO_HEADS = {"kv_num_blocks": ONE.expand(1, 2, 1), "kv_indices": TWO.expand(1, 2, 1, 2)}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kv_num_blocks": 1}, TypeError, "kv_num_blocks must be a tensor of integers, got 1"),
        ({"kv_indices": TWO.float()}, TypeError, "kv_indices must be a tensor of integers, got a tensor of shape"),
        ({"kv_indices": TWO[0, 0, 0]}, ValueError, "kv_indices must have shape (..., rows, width), got"),
        ({"kv_num_blocks": ONE[0]}, ValueError, "kv_indices must have shape ([[batch,] heads,] rows, width)"),
        ({"kv_num_blocks": ONE + 2}, ValueError, "kv_num_blocks must be in [0, 2], the width of kv_indices, got 3"),
        ({"kv_num_blocks": ONE - 2}, ValueError, "kv_num_blocks must be in [0, 2], the width of kv_indices, got -1"),
        ({"kv_indices": TWO + 2}, ValueError, "kv_indices must be in [0, 2), the blocks of 128 of the 256 keys"),
        ({"kv_indices": TWO - 1}, ValueError, "kv_indices must be in [0, 2), the blocks of 128 of the 256 keys"),
        (
            {"full_kv_num_blocks": ONE},
            ValueError,
            "full_kv_num_blocks and full_kv_indices must be given both or neither, got full_kv_num_blocks alone",
        ),
        (
            {"full_kv_num_blocks": ONE, "full_kv_indices": TWO + 7},
            ValueError,
            "full_kv_indices must be in [0, 2), the blocks of 128 of the 256 keys of seq_lengths, got 7",
        ),
        (
            {"full_kv_num_blocks": ONE.expand(2, 3, 1), "full_kv_indices": TWO.expand(2, 3, 1, 2), **TWO_HEADS},
            ValueError,
            "full_kv_indices must have the batch and heads of kv_indices, (1, 2), or 1, got (2, 3)",
        ),
        ({"kv_num_blocks": ONE.to("meta")}, ValueError, "kv_num_blocks must be on cpu as kv_indices, got meta"),
        (
            {"full_kv_num_blocks": ONE.to("meta"), "full_kv_indices": TWO.to("meta")},
            ValueError,
            "full_kv_indices must be on cpu as kv_indices, got meta",
        ),
        (
            {"seq_lengths": (-1, 256)},
            ValueError,
            "seq_lengths[0] must be an int >= 0 and below 2^31, got -1",
        ),
        ({"seq_lengths": (300, 256)}, ValueError, "kv_indices must have a row for each block of 128 of the 300 rows"),
        ({"seq_lengths": 5}, ValueError, "seq_lengths must be two ints, rows and keys, got 5"),
        ({"BLOCK_SIZE": 0}, ValueError, "BLOCK_SIZE must be positive, got 0"),
        ({"BLOCK_SIZE": (1, 2, 3)}, ValueError, "BLOCK_SIZE must be an int or two ints"),
        ({"mask_mod": 5}, TypeError, "mask_mod must be a function mask_mod(b, h, q_idx, kv_idx), got 5"),
        ({"mask_mod": lambda q, k: q >= k}, TypeError, "mask_mod must take (b, h, q_idx, kv_idx)"),
        ({"mask_mod": int}, TypeError, "mask_mod must take (b, h, q_idx, kv_idx)"),
        ({"compute_q_blocks": 1}, TypeError, "compute_q_blocks must be True or False"),
        ({"dq_write_order": TWO}, ValueError, "dq_write_order must be None"),
        ({"dq_write_order_full": TWO}, ValueError, "dq_write_order_full must be None"),
        ({"dq_kv_order": TWO}, ValueError, "dq_kv_order must be None"),
    ],
)
def test_lists_that_do_not_fit_are_refused(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        BlockMask.from_kv_blocks(**{"kv_num_blocks": ONE, "kv_indices": TWO, **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mask_mod": 5}, TypeError, "mask_mod must be a function mask_mod(b, h, q_idx, kv_idx), got 5"),
        ({"B": 0}, ValueError, "B must be positive, got 0"),
        ({"H": "x"}, TypeError, "H must be an int, got 'x'"),
        ({"Q_LEN": -1}, ValueError, "Q_LEN must be >= 0, got -1"),
        ({"KV_LEN": 2.0}, TypeError, "KV_LEN must be an int, got 2.0"),
        ({"device": "nowhere"}, ValueError, "device must be one that is here, got 'nowhere'"),
        ({"separate_full_blocks": None}, TypeError, "separate_full_blocks must be True or False"),
        ({"compute_dq_write_order": True}, ValueError, "compute_dq_write_order must be None"),
        ({"dq_kv_order": True}, ValueError, "dq_kv_order must be None, as our kernels order their sums"),
        ({"mask_mod": lambda b, h, q, k: torch.sort(q) > k}, ValueError, "mask_mod uses sort"),
    ],
)
def test_arguments_of_create_block_mask_are_checked(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        create_block_mask(**{"mask_mod": MODS["causal"], **SHAPE, **arguments})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: create_mask(5, 1, 1, 3, 3), "mod_fn must be a mask_mod or a score_mod, got 5"),
        (lambda: create_mask(lambda q, k: q, 1, 1, 3, 3), "mod_fn must take (score, b, h, q_idx, kv_idx)"),
        (lambda: and_masks(MODS["causal"], 5), "mask_mods[1] must be a function mask_mods[1](b, h, q_idx, kv_idx)"),
        (lambda: or_masks(lambda q, k: q), "mask_mods[0] must take (b, h, q_idx, kv_idx)"),
    ],
)
def test_what_is_no_mod_is_refused_by_the_name_of_its_argument(make, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("mine", "torchs"),
    [
        (cute_attn.flex_attention, theirs.flex_attention),
        (create_block_mask, theirs.create_block_mask),
        (create_mask, theirs.create_mask),
        (BlockMask, theirs.BlockMask),
        (BlockMask.from_kv_blocks, theirs.BlockMask.from_kv_blocks),
        (BlockMask.as_tuple, theirs.BlockMask.as_tuple),
        (BlockMask.to_string, theirs.BlockMask.to_string),
    ],
    ids=lambda x: x.__name__,
)
def test_arguments_are_those_of_torch_and_have_its_defaults(mine, torchs):
    """Those of an older torch are fewer."""
    ours = inspect.signature(mine).parameters
    found = [ours.get(name) for name in inspect.signature(torchs).parameters]
    wanted = list(inspect.signature(torchs).parameters.values())
    assert [x and (x.name, x.kind) for x in found] == [(x.name, x.kind) for x in wanted]
    at_their_place = [x.name for x in wanted if x.kind == x.POSITIONAL_OR_KEYWORD]
    assert list(ours)[: len(at_their_place)] == at_their_place
    apart = {"BLOCK_SIZE", "mask_mod", "compute_dq_write_order", "dq_kv_order"}  # other ways to say the same
    assert [x.default for x in found if x.name not in apart] == [x.default for x in wanted if x.name not in apart]


def test_orders_of_sums_are_taken_as_none_alone():
    lists = create_block_mask(MODS["causal"], **SHAPE).as_tuple(flatten=False)
    orders = ("dq_write_order", "dq_write_order_full", "dq_kv_order", "dq_kv_order_spt")
    assert BlockMask(*lists, **dict.fromkeys(orders)).shape == (2, 3, 300, 420)
    for name in orders:
        with pytest.raises(
            ValueError, match=f"{name} must be None, as our kernels order their sums by themselves, got"
        ):
            BlockMask(*lists, **{name: TWO})


def test_a_mask_lies_on_the_current_accelerator_unless_told_another(monkeypatch):
    here = torch.accelerator.current_accelerator() or torch.device("cpu")
    assert create_block_mask(MODS["everything"], **SHAPE).device.type == here.type
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
    assert create_mask(MODS["causal"], **SHAPE).device.type == "meta"
    assert create_mask(MODS["causal"], **SHAPE, device="cpu").device.type == "cpu"


def test_fields_are_not_assigned():
    with pytest.raises(AttributeError, match="kv_indices of a BlockMask is not assigned"):
        create_block_mask(MODS["causal"], **SHAPE).kv_indices = TWO


# ---------------------------------------------------------------- captured tensors


def test_a_captured_tensor_that_changes_is_noticed_where_it_would_be_read():
    limits = torch.arange(300)
    mask = create_block_mask(lambda b, h, q, k: k <= limits[q], **SHAPE)
    thinned = create_block_mask(lambda b, h, q, k: (k * q) % 7 <= limits[q], **SHAPE)
    from_lists = BlockMask.from_kv_blocks(*mask.as_tuple(False)[1:5], 128, mask.mask_mod, (300, 420))
    before = mask.intervals, from_lists.intervals
    limits += 1
    assert (mask.intervals, from_lists.intervals) == before
    changed = r"'limits', a tensor of shape \(300,\) .* was changed after the block"
    with pytest.raises(ValueError, match=changed):
        thinned.reading()
    with pytest.raises(ValueError, match=changed):  # it reads anew
        from_lists.seq_lengths = (290, 420)


def test_captured_tensors_that_require_a_gradient_are_refused():
    limits = torch.arange(300.0, requires_grad=True)
    for make in (
        lambda mod: create_block_mask(mod, **SHAPE),
        lambda mod: BlockMask.from_kv_blocks(ONE, TWO, mask_mod=mod),
        lambda mod: IntervalMask.from_function(mod, 300),
    ):
        with pytest.raises(ValueError, match=r"must not capture tensors that require a gradient, .* got 'limits'"):
            make(lambda b, h, q, k: k <= limits[q])


def test_copies_of_a_mask_know_their_own_captured_tensors():
    keep = torch.rand(40, 40) > 0.5
    keep[0] = True  # counts a change, which no copy does
    whole = create_block_mask(lambda b, h, q, k: keep[q, k], None, None, 40, 40, device="cpu")
    copied = copy.deepcopy(whole)
    assert torch.equal(attended(copied.reading(), 1, 1), keep[None, None])
    (own,) = copied.reading().predicate.traced.tensors
    keep[0] = False
    copied.reading()
    for read in (whole.reading, lambda: copy.deepcopy(whole)):
        with pytest.raises(ValueError, match=r"'keep', .* was changed after the block mask was made"):
            read()
    own[0] = False
    with pytest.raises(ValueError, match="was changed after the block mask was made"):
        copied.reading()


@pytest.mark.parametrize("mod", [lambda b, h, q, k: FAR[q] >= k, lambda b, h, q, k: (FAR[q] + k) % 3 == 0])
def test_captured_tensors_of_another_device_are_refused(mod):
    for make in (
        lambda: create_block_mask(mod, **SHAPE),
        lambda: BlockMask.from_kv_blocks(ONE, TWO, mask_mod=mod),
        lambda: IntervalMask.from_function(mod, 300),
    ):
        with pytest.raises(ValueError, match=r"on the device of the mask, cpu, got 'FAR', .* \(300,\) .* on meta"):
            make()


FAR = torch.zeros(300, dtype=torch.int32, device="meta")


# ---------------------------------------------------------------- slices, lengths, devices


@pytest.mark.parametrize(
    "index",
    [
        0,
        -1,
        (1, 2),
        (slice(0, 1), slice(1, 3)),
        (slice(None), 0, slice(1, 3)),
        (slice(None), slice(None), 4),
        (1, slice(None), torch.tensor([0, 2])),
        (torch.tensor([1, 0]),),
    ],
)
def test_slices_have_the_fields_of_torch_and_their_true_number_of_rows(index):
    options = {**SHAPE, "device": "cpu", "BLOCK_SIZE": 64}
    mine, torchs = (make(MODS["by head"], **options)[index] for make in (create_block_mask, theirs.create_block_mask))
    for name in FIELDS[:4]:
        assert torch.equal(getattr(mine, name), getattr(torchs, name)), name
    rows = torch.arange(300)
    which = index[2] if isinstance(index, tuple) and len(index) > 2 else slice(None)
    chosen = torch.arange(5)[which].flatten().tolist()
    assert mine.seq_lengths == (int(sum((rows // 64 == i).sum() for i in chosen)), 420)


def test_a_slice_wants_a_mask_mod_and_has_it_for_its_own_rows():
    whole = create_block_mask(MODS["thinned"], **SHAPE, BLOCK_SIZE=64)
    part = whole[:, :, 2:5]
    assert part.intervals is None
    with pytest.raises(ValueError, match="mask_mod of a sliced BlockMask is not known"):
        part.reading()
    with pytest.raises(ValueError, match="mask_mod of a sliced BlockMask is not known"):
        as_block_mask(theirs.create_block_mask(MODS["causal"], **SHAPE, device="cpu")[:, :, 1:2]).reading()
    part.mask_mod = lambda b, h, q, k: whole.mask_mod(b, h, q + 128, k)
    want = dense_of(MODS["thinned"], 2, 3, 300, 420)[:, :, 128:]
    assert torch.equal(attended(part.reading(), 2, 3), want)


def test_a_slice_with_the_mask_mod_that_the_refusal_writes_is_that_part_of_the_whole():
    def mod(b, h, q, k):
        return (q - k) % (b + h + 2) == 0

    whole = create_block_mask(mod, **SHAPE, BLOCK_SIZE=64)
    part = whole[1:, 1:, 2:]
    with pytest.raises(ValueError, match="assign one") as refused:
        part.reading()
    written = str(refused.value).partition("part.mask_mod = ")[2]
    part.mask_mod = eval(written, {"whole": whole, "first_b": 1, "first_h": 1, "first_row": 128})
    assert torch.equal(attended(part.reading(), 1, 2), dense_of(mod, 2, 3, 300, 420)[1:, 1:, 128:])


def test_a_slice_ends_with_the_ragged_blocks_and_knows_its_own_indices():
    mask = create_block_mask(MODS["causal"], **SHAPE, BLOCK_SIZE=64)
    with pytest.raises(ValueError, match="must have the ragged last row of blocks, 4, as its last one"):
        mask[:, :, torch.tensor([4, 0])]
    with pytest.raises(IndexError, match="index 2 is out of range for a dimension of size 2 of a BlockMask"):
        mask[2]
    with pytest.raises(IndexError, match="takes at most 3 indices, got 4"):
        mask[0, 0, 0, 0]
    for index in (None, True, (..., 0, ...)):
        with pytest.raises(IndexError, match="must be ints, slices, tensors and one ellipsis at most, got"):
            mask[index]


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (..., ()),
        ((..., 1), (slice(None), slice(None), 1)),
        ((1, ..., slice(0, 2)), (1, slice(None), slice(0, 2))),
        ((1, 2, 3, ...), (1, 2, 3)),
    ],
)
def test_an_ellipsis_stands_for_what_is_not_said(short, long):
    mask = create_block_mask(MODS["by head"], **SHAPE, BLOCK_SIZE=64)
    found, wanted = mask[short], mask[long]
    assert found.seq_lengths == wanted.seq_lengths
    for name in FIELDS[:4]:
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name


@pytest.mark.parametrize("name", MODS)
@pytest.mark.parametrize("lengths", [(300, 420), (200, 420), (129, 64), (0, 1)])
def test_a_mask_is_adjusted_to_fewer_queries_and_keys(name, lengths):
    made = create_block_mask(MODS[name], **SHAPE, BLOCK_SIZE=64)
    listed = BlockMask.from_kv_blocks(*made.as_tuple(False)[1:5], 64, MODS[name], (300, 420))
    want = dense_of(MODS[name], 2, 3, 300, 420)[:, :, : lengths[0], : lengths[1]]
    for mask in (made, listed):
        mask = mask._adjust(*lengths)
        assert mask.shape == (2, 3, *lengths)
        assert torch.equal(attended(mask.reading(), 2, 3), want)
        assert mask.kv_indices.shape[2:] == (-(-lengths[0] // 64), -(-lengths[1] // 64))


def test_a_mask_is_not_adjusted_to_more():
    with pytest.raises(ValueError, match="_adjust must not make a mask longer than its 300 rows and 420 keys"):
        create_block_mask(MODS["causal"], **SHAPE)._adjust(301, 420)


def test_lengths_with_as_many_blocks_are_assigned():
    mask = create_block_mask(MODS["causal"], **SHAPE, BLOCK_SIZE=64)
    mask.seq_lengths = (257, 448)
    assert mask.shape == (2, 3, 257, 448)
    lists = mask.to_dense().bool().repeat_interleave(64, -2).repeat_interleave(64, -1)[..., :257, :448]
    assert torch.equal(attended(mask.reading(), 2, 3), lists & dense_of(MODS["causal"], 2, 3, 257, 448))
    with pytest.raises(ValueError, match="seq_lengths must have 5 x 7 blocks of \\(64, 64\\), got \\(256, 448\\)"):
        mask.seq_lengths = (256, 448)


def test_a_mask_moves_and_comes_apart():
    mask = create_block_mask(MODS["thinned"], **SHAPE)
    there = mask.to("cpu")
    assert torch.equal(attended(there.reading(), 2, 3), attended(mask.reading(), 2, 3))
    assert torch.equal(there.kv_indices, mask.kv_indices)
    flat, nested = mask.as_tuple(), mask.as_tuple(flatten=False)
    assert (flat[:2], flat[10:12], flat[12]) == ((300, 420), (128, 128), MODS["thinned"])
    again = BlockMask(*nested)
    assert torch.equal(attended(again.reading(), 2, 3), attended(mask.reading(), 2, 3))
    assert BlockMask.from_kv_blocks(*nested[1:5], compute_q_blocks=False).q_indices is None


@pytest.mark.parametrize("lengths", [(0, 20), (20, 0), (0, 0)])
@pytest.mark.parametrize("planes", [(None, None), (2, 3)])
def test_a_mask_of_nothing_prints(lengths, planes):
    mask = create_block_mask(MODS["causal"], *planes, *lengths, device="cpu")
    assert "sparsity=100.00%" in str(mask)
    assert "░" not in str(mask)


def test_a_mask_prints_its_blocks():
    mask = create_block_mask(MODS["causal"], 1, 2, 256, 256, device="cpu", BLOCK_SIZE=64)
    assert mask[0, 0].to_string() == "(0, 0)\n██      \n████    \n██████  \n████████"
    assert str(mask).startswith("BlockMask(shape=(1, 2, 256, 256), sparsity=37.50%,\n(0, 0)\n██      \n")
    assert mask.to_string(grid_size=(2, 2), limit=1).splitlines() == [
        *("(0, 0)", "░░  ", "██░░", "", "and 1 more: to_string(limit=...), or mask[batch, head].to_string()")
    ]
    assert repr(mask).startswith("BlockMask(shape=(1, 2, 256, 256), BLOCK_SIZE=(64, 64), mask_mod=<lambda>")


def test_block_masks_of_any_torch_are_read_by_their_attributes():
    torchs = theirs.create_block_mask(MODS["thinned"], **SHAPE, device="cpu")
    kept = {name: getattr(torchs, name) for name in (*FIELDS, "BLOCK_SIZE", "seq_lengths")}
    oldest = type("BlockMask", (), {**kept, "mask_mod": staticmethod(torchs.mask_mod)})()  # no method, nothing newer
    assert torch.equal(attended(as_block_mask(oldest).reading(), 2, 3), dense_of(MODS["thinned"], 2, 3, 300, 420))


def test_only_block_masks_are_taken_for_one():
    with pytest.raises(
        TypeError, match="block_mask must be a BlockMask, of cute_attn or torch, an IntervalMask or None"
    ):
        as_block_mask(torch.ones(2, 2))
    mask = create_block_mask(MODS["causal"], **SHAPE)
    assert as_block_mask(mask) is mask
    torchs = theirs.create_block_mask(MODS["causal"], **SHAPE, device="cpu")
    kept = as_block_mask(torchs)
    assert as_block_mask(torchs) is kept
    torchs.kv_num_blocks.numpy()[...] = 0  # which counts no version
    torchs.full_kv_num_blocks.numpy()[...] = 0
    assert as_block_mask(torchs).reading().intervals.area() == 0
    assert kept.reading().intervals.area() > 0


@pytest.mark.slow
def test_masks_are_made_inside_a_compiled_function():
    def made(x):
        mask = cute_attn.create_block_mask(MODS["causal"], None, None, 64, 64, device="cpu", BLOCK_SIZE=16)
        return x + mask.kv_num_blocks.sum()

    assert torch.compile(made, backend="eager")(torch.zeros(1)) == 4


# ---------------------------------------------------------------- IntervalMask.from_function


def test_from_function_reads_a_mask_mod():
    found = IntervalMask.from_function(MODS["causal"], 5, 7)
    assert found.equals(masks.causal(5, 7, align="top_left"))
    assert IntervalMask.from_function(MODS["table"], 30, batch=2, heads=3).batch == 2
    with pytest.raises(ValueError, match="mask_mod is not read as intervals: % of query and key"):
        IntervalMask.from_function(lambda b, h, q, k: (q - k) % 2 == 0, 3000)
