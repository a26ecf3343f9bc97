"""What flex_attention refuses: each error names the argument, what came and what is allowed."""

import dataclasses
import functools

import pytest
import torch
from torch.nn.attention import flex_attention as torch_flex

from cute_attn import AuxRequest, IntervalMask, backend, create_block_mask, flex_attention, mask
from cute_attn.mods.watched import Watched

zeros = functools.partial(torch.zeros, dtype=torch.bfloat16)
Q, K = zeros(2, 4, 6, 16), zeros(2, 4, 8, 16)


def refused(error, match, query=Q, key=K, value=None, *rest, **arguments):
    with pytest.raises(error, match=match):
        flex_attention(query, key, key if value is None else value, *rest, **arguments)


@pytest.mark.parametrize(
    ("error", "match", "tensors"),
    [
        (ValueError, r"query must have shape \(batch, heads, tokens, head_dim\), got \(4, 6, 16\)", (Q[0], K, K)),
        (ValueError, r"value must have shape .*, got \(2, 4, 8, 16, 1\)", (Q, K, K[..., None])),
        (
            TypeError,
            r"query, key and value must have one dtype, got query .*bfloat16 and key .*float32",
            (Q, K.float(), K),
        ),
        (
            TypeError,
            r"query must be bfloat16, float16, float32 or float64, got torch.int32",
            (Q.int(), K.int(), K.int()),
        ),
        (ValueError, r"on one device, got query on cpu and value on meta", (Q, K, K.to("meta"))),
        (ValueError, r"same number of heads unless enable_gqa is True, got 4 and 2", (Q, K[:, :2], K[:, :2])),
        (ValueError, r"key and value must have the same number of heads, got 4 and 2", (Q, K, K[:, :2])),
        (ValueError, r"key and value must have one length, got 8 and 7", (Q, K, K[:, :, :7])),
        (ValueError, r"key and value must have one batch size, got 2 and 1", (Q, K, K[:1])),
        (ValueError, r"the batch size of query, 2, or 1, got 3", (Q, zeros(3, 4, 8, 16), zeros(3, 4, 8, 16))),
        (ValueError, r"query and key must have one head_dim >= 1, got 16 and 8", (Q, K[..., :8], K)),
        (ValueError, r"value must have head_dim >= 1, got 0", (Q, K, K[..., :0])),
    ],
)
def test_tensors_that_do_not_fit(error, match, tensors):
    refused(error, match, *tensors)


@pytest.mark.parametrize("heads", [3, 0])
def test_a_ratio_of_heads_that_is_none(heads):
    key = zeros(2, heads, 8, 16)
    refused(
        ValueError,
        rf"must be a multiple of the heads of key \(at least one\), got 4 and {heads}",
        Q,
        key,
        enable_gqa=True,
    )


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (TypeError, r"scale must be a number, got 'x'", {"scale": "x"}),
        (ValueError, r"scale must be finite in fp32, got nan", {"scale": float("nan")}),
        (TypeError, r"enable_gqa must be True or False, got 1", {"enable_gqa": 1}),
        (TypeError, r"return_lse must be True or False, got None", {"return_lse": None}),
        (TypeError, r"return_aux must be None or an AuxRequest, got True", {"return_aux": True}),
        (TypeError, r"return_aux.lse must be True or False, got 1", {"return_aux": AuxRequest(lse=1)}),
        (
            ValueError,
            r"return_lse must be False where return_aux is given, got True: AuxRequest\(lse=True\) asks for it",
            {"return_lse": True, "return_aux": AuxRequest()},
        ),
        (
            TypeError,
            r"score_mod must be None or a function score_mod\(score, b, h, q_idx, kv_idx\), got 3",
            {"score_mod": 3},
        ),
        (TypeError, r"score_mod must take \(score, b, h, q_idx, kv_idx\)", {"score_mod": lambda s, b, h: s}),
        (TypeError, r"score_mod must take \(score, b, h, q_idx, kv_idx\)", {"score_mod": int}),
        (TypeError, r"block_mask must be .*, got 'causal'", {"block_mask": "causal"}),
        (
            TypeError,
            r"block_mask must be .*, got a tensor of shape \(6, 8\).*: IntervalMask.from_dense makes one",
            {"block_mask": torch.ones(6, 8, dtype=torch.bool)},
        ),
        (
            TypeError,
            r"block_mask must be .*, got <function .*: create_block_mask makes one of a mask_mod",
            {"block_mask": lambda b, h, q, k: q >= k},
        ),
        (TypeError, r"kernel_options must be None or a dict, got 5", {"kernel_options": 5}),
        (
            ValueError,
            r"'BLOCK_M', which tunes torch's Triton kernels: leave it out",
            {"kernel_options": {"BLOCK_M": 64}},
        ),
        (ValueError, r"'fwd_num_warps', which tunes torch's", {"kernel_options": {"fwd_num_warps": 4}}),
        (ValueError, r"kernel_options .*'softmax'.* got 'shape'", {"kernel_options": {"shape": 64}}),
        (
            ValueError,
            r"kernel_options\['softmax'\] must be 'stale' or 'exact', got 'fast'",
            {"kernel_options": {"softmax": "fast"}},
        ),
        (
            TypeError,
            r"kernel_options\['tile'\] must be a TileConfig or a dict of its fields, m, n, .*, got 64",
            {"kernel_options": {"tile": 64}},
        ),
        (
            TypeError,
            r"kernel_options\['tile'\] must have no fields but m, n, .*, got 'rows'",
            {"kernel_options": {"tile": {"rows": 64}}},
        ),
        (
            ValueError,
            r"kernel_options\['tile'\] must be a tile .*\.n must be a multiple of 16 in \[16, 256\], got 24",
            {"kernel_options": {"tile": {"n": 24}}},
        ),
        (
            ValueError,
            r"kernel_options\['backward_tile'\] must be a tile .*\.n must be one of 64, 128, got 32",
            {"kernel_options": {"backward_tile": {"n": 32}}},
        ),
    ],
)
def test_arguments_that_are_wrong(error, match, arguments):
    refused(error, match, **arguments)


def test_every_option_of_torchs_kernels_can_be_left_out():
    options = getattr(torch_flex, "FlexKernelOptions", None)  # an older torch does not list them
    for name in () if options is None else options.__annotations__:
        refused(ValueError, f"must not have '{name}', which tunes torch's Triton kernels", kernel_options={name: 1})


@pytest.mark.parametrize("lengths", [(6, 9), (5, 8), (128, 128)])
def test_a_mask_of_other_lengths_names_both_and_adjust(lengths):
    match = rf"of 6 queries and 8 keys, .* got one of {lengths[0]} and {lengths[1]}: block_mask._adjust\(6, 8\)"
    refused(ValueError, match, block_mask=mask.causal(*lengths))


def test_a_mask_of_another_batch_or_other_heads():
    planes = torch.zeros(3, 1, 6, dtype=torch.int32)
    refused(
        ValueError,
        "block_mask must have the batch of query, 2, or 1, got 3",
        block_mask=IntervalMask(planes, planes, 8),
    )
    three = IntervalMask(planes, planes, 8, heads=3)
    refused(ValueError, "block_mask must have the heads of query, 4, or 1, got 3", block_mask=three)


def test_a_mask_on_another_device():
    elsewhere = IntervalMask._made(*(torch.zeros(1, 1, 6, dtype=torch.int32, device="meta"),) * 2, 8)
    refused(ValueError, "block_mask must be on the device of query, cpu, got meta", block_mask=elsewhere)


def test_a_captured_tensor_on_another_device():
    table = torch.zeros(8, device="meta")
    match = r"score_mod must capture tensors on the device of query, cpu, got one of shape \(8,\) on meta"
    refused(ValueError, match, score_mod=lambda s, b, h, q, k: s + table[k])


def test_a_tensor_that_stayed_behind_when_a_mask_moved():
    keep = torch.tensor([True, False, True, True, False, True])
    block_mask = create_block_mask(lambda b, h, q, k: keep[q ^ (k & 1)], None, None, 6, 8, device="cpu")
    reading = block_mask.reading()
    traced = reading.predicate.traced._replace(tensors=[keep.to("meta")])
    predicate = dataclasses.replace(reading.predicate, traced=traced, watched=Watched(traced.tensors, ["keep"]))
    block_mask._reading = dataclasses.replace(reading, predicate=predicate)
    match = r"mask_mod must capture tensors on the device of query, cpu, got one of shape \(6,\) on meta"
    refused(ValueError, match, block_mask=block_mask)


@pytest.mark.parametrize(
    ("table", "layout"),
    [
        (torch.zeros(8).to_sparse(), "of layout torch.sparse_coo"),
        (torch.nested.nested_tensor([zeros(8)], layout=torch.jagged), "nested"),
    ],
)
def test_captured_tensors_that_are_not_dense(table, layout):
    index = (0,) * (table.ndim - 1)
    match = f"_mod captures a tensor that is {layout}: it must be dense"
    refused(ValueError, match, score_mod=lambda s, b, h, q, k: s + table[(*index, k)])
    with pytest.raises(ValueError, match=match):
        create_block_mask(lambda b, h, q, k: table[(*index, k)] > q, None, None, 6, 8, device="cpu")


def test_options_for_our_kernels_change_nothing_on_the_reference():
    for options in (None, {}, {"softmax": "exact"}, {"tile": {"n": 32}, "backward_tile": {"n": 64}}):
        assert torch.equal(flex_attention(Q, K, K, kernel_options=options), flex_attention(Q, K, K))


def no_mod(score, b, h, q, k):
    return score


def test_tensors_that_kernels_do_not_take_are_refused_before_anything_else_happens():
    with backend("sim"):
        refused(NotImplementedError, "bfloat16 and float16, got torch.float32", Q.float(), K.float(), score_mod=no_mod)
