"""flash_attn_with_kvcache in plain PyTorch against a dense formula in fp64: the oracle of the decode kernels."""

import pytest
import torch
from caching import make, plainly
from oracle import allowed_error, assert_close

from cute_attn import IntervalMask, flash_attn_with_kvcache
from cute_attn.mask import causal

PAGES = [None, 1, 16, 64, 100, 256]
EIGHT = [torch.int8, torch.float8_e4m3fn, torch.float8_e5m2]


def check(call, tolerance=1e-12, **arguments):
    names = ("causal", "softcap", "sink", "softmax_scale")
    wanted = {name: arguments[name] for name in names if name in arguments}
    wanted |= {"window": arguments["window_size"]} if "window_size" in arguments else {}
    tree = arguments.get("mask")
    wanted |= {} if tree is None else {"tree": tree[0] if isinstance(tree, tuple) else tree}
    if isinstance(tree, tuple):
        arguments = {**arguments, "mask": tree[1]}
    out, lse = flash_attn_with_kvcache(call.q, **call.cache, **arguments, return_softmax_lse=True)
    exact, log = plainly(call, **wanted)
    assert out.dtype == call.q.dtype
    assert_close("out", out, exact, tolerance)
    assert_close("lse", lse, log, tolerance)


@pytest.mark.parametrize("page_size", PAGES)
@pytest.mark.parametrize("heads_first", [False, True])
def test_ragged_lengths_in_shuffled_places_with_rubbish_everywhere_else(page_size, heads_first):
    check(make(page_size=page_size, heads_first=heads_first))


@pytest.mark.parametrize("tokens", [1, 2, 5, 16])
@pytest.mark.parametrize("arguments", [{}, {"causal": True}, {"window_size": (20, 3)}, {"window_size": (0, -1)}])
def test_causality_and_windows_are_aligned_to_the_last_token_and_key(tokens, arguments):
    check(make(tokens=tokens, page_size=16), **arguments)
    check(make(tokens=tokens, page_size=16), softcap=0.7, softmax_scale=-0.3, **arguments)


@pytest.mark.parametrize("heads", [(2, 2), (4, 1), (7, 1), (8, 1), (16, 1)])
def test_query_heads_share_key_heads(heads):
    check(make(heads=heads, tokens=3, page_size=64), causal=True)


@pytest.mark.parametrize("dims", [(64, 128), (192, 128), (8, 24)])
def test_values_may_have_another_head_dim(dims):
    check(make(dims=dims, page_size=16))


@pytest.mark.parametrize("n", [1, 3])
def test_sinks_join_every_row_and_are_all_that_an_empty_one_has(n):
    sink = torch.randn(n, 4, dtype=torch.float64)
    check(make(tokens=2, page_size=16), sink=sink, causal=True)
    check(make(tokens=2, page_size=16), sink=sink[0].masked_fill(torch.tensor([True, False, False, False]), -torch.inf))


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("window", [(-1, -1), (4, -1), (70, 2)])
def test_a_tree_of_new_tokens_replaces_causality_among_them(batched, window):
    call = make(lengths=(0, 1, 4, 7, 90), tokens=6, page_size=16)
    tree = torch.rand(*([5] if batched else []), 6, 6) < 0.6
    check(call, mask=tree, window_size=window)


def test_a_tree_may_be_an_interval_mask_and_a_causal_one_is_causality():
    call = make(lengths=(0, 3, 90), tokens=5, page_size=16)
    check(call, mask=(torch.ones(5, 5, dtype=torch.bool).tril(), causal(5)))
    dense = torch.rand(3, 5, 5) < 0.5
    ends = [dense.int().argmax(2), dense.int().argmax(2) + 1]
    one = IntervalMask.from_intervals(*(x.int()[:, None] for x in ends), 5)
    check(call, mask=(one.to_dense(), one))


@pytest.mark.parametrize("cached", EIGHT)
@pytest.mark.parametrize("scales", ["none", "scalar", "heads", "tokens"])
@pytest.mark.parametrize("page_size", [None, 16])
def test_caches_of_8_bits_are_multiplied_with_their_scales(cached, scales, page_size):
    call = make(cached=cached, scales=scales, page_size=page_size, tokens=2)
    check(call, causal=True, softcap=20.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_other_dtypes_are_computed_in_fp32_and_rounded_once(dtype):
    call = make(dtype=dtype, page_size=16, tokens=2)
    out, lse = flash_attn_with_kvcache(call.q, **call.cache, causal=True, return_softmax_lse=True)
    exact, rounded = plainly(call, causal=True), plainly(call, torch.float32, causal=True)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    for name, got, wanted, plain in zip(("out", "lse"), (out, lse), exact, rounded, strict=True):
        assert_close(name, got, wanted, allowed_error(wanted, plain.to(got.dtype)))


def test_one_length_for_all_and_none_for_the_whole_cache():
    call = make(lengths=(70, 70), page_size=None)
    del call.cache["cache_seqlens"]
    check(call)
    call.cache["cache_seqlens"] = 70
    check(call)
    rows = call.cache.pop("cache_batch_idx").long()
    for name in ("k_cache", "v_cache"):
        call.cache[name] = call.cache[name][rows]
    check(call)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_call_is_the_call_without_a_graph_break(dynamic):
    torch._dynamo.reset()
    call = make(tokens=2, page_size=16)
    compiled = torch.compile(flash_attn_with_kvcache, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for arguments in ({"causal": True}, {"mask": torch.ones(2, 2, dtype=torch.bool)}):
        assert torch.equal(
            compiled(call.q, **call.cache, **arguments), flash_attn_with_kvcache(call.q, **call.cache, **arguments)
        )


def test_the_op_keeps_the_rules_of_ops():
    call = make(lengths=(0, 3, 20), tokens=2, page_size=16, dtype=torch.float32, cached=torch.int8, scales="tokens")
    c = call.cache
    tensors = (call.q, c["k_cache"], c["v_cache"], c["cache_seqlens"], None, c["page_table"])
    scalars = (0.1, 0.0, -1, 0, 0, 0, "reference")
    tree = torch.ones(1, 2, 2, dtype=torch.bool)
    op = torch.ops.cute_attn.decode
    torch.library.opcheck(op, (*tensors, c["k_descale"], c["v_descale"], torch.randn(1, 4), tree, *scalars))
    torch.library.opcheck(op, (*tensors, None, None, None, None, *scalars))


def test_empty_tensors_are_no_errors():
    for lengths, tokens in (((), 1), ((3,), 0), ((0, 0), 2)):
        call = make(lengths=lengths or (3,), tokens=tokens, page_size=16)
        b = len(lengths)
        cache = {n: x[:b] if n in ("cache_seqlens", "page_table") else x for n, x in call.cache.items()}
        out, lse = flash_attn_with_kvcache(call.q[:b], **cache, return_softmax_lse=True)
        assert out.shape == (b, tokens, 4, 64)
        assert (lse.numel() == 0) or (b == 2 and bool((lse == -torch.inf).all()) and not out.any())
