"""New keys and values are written behind each sequence, in place, and nowhere else."""

import pytest
import torch
from caching import make
from oracle import assert_close

from cute_attn import flash_attn_with_kvcache
from cute_attn.caches import EIGHT_BITS, KVCache, append, quantise

LENGTHS = (0, 1, 15, 16, 40)
NEW = 5


def new(heads_k=2, dims=(64, 64), dtype=torch.float64):
    return [torch.randn(len(LENGTHS), NEW, heads_k, d, dtype=torch.float64).to(dtype) for d in dims]


def bits(x):
    return x.view(torch.uint8) if x.dtype in EIGHT_BITS else x.view(torch.int64)


@pytest.mark.parametrize("heads_first", [False, True])
@pytest.mark.parametrize("page_size", [None, 1, 7, 16])
def test_what_is_appended_is_attended_and_nothing_else_changes(page_size, heads_first):
    call = make(LENGTHS, NEW, page_size=page_size, spare=NEW + 1, heads_first=heads_first)
    k, v = new()
    before = {name: call.cache[name].clone() for name in ("k_cache", "v_cache")}
    got = flash_attn_with_kvcache(call.q, k=k, v=v, causal=True, return_softmax_lse=True, **call.cache)
    for name, values in (("k_cache", k), ("v_cache", v)):
        wanted, after = before[name], call.cache[name]
        for i, length in enumerate(LENGTHS):
            for j in range(NEW):
                position = length + j
                if page_size is None:
                    wanted[call.cache["cache_batch_idx"][i], position] = values[i, j]
                else:
                    page = call.cache["page_table"][i, position // page_size]
                    wanted[page, position % page_size] = values[i, j]
        assert torch.equal(bits(wanted), bits(after))
    longer = {**call.cache, "cache_seqlens": call.cache["cache_seqlens"] + NEW}
    again = flash_attn_with_kvcache(call.q, causal=True, return_softmax_lse=True, **longer)
    assert torch.equal(got[0], again[0])
    assert torch.equal(got[1], again[1])


@pytest.mark.parametrize("cached", EIGHT_BITS)
@pytest.mark.parametrize("scales", ["scalar", "heads"])
def test_a_given_scale_divides_what_is_appended_and_it_saturates(cached, scales):
    call = make(LENGTHS, page_size=16, cached=cached, scales=scales, spare=NEW, dtype=torch.float32)
    k, v = new(dtype=torch.float32)
    k[:, 0, 0, :2] = torch.tensor([1e30, -1e30])
    flash_attn_with_kvcache(call.q, k=k, v=v, **call.cache)
    scale = call.cache["k_descale"]
    for i, length in enumerate(LENGTHS):
        page = call.cache["page_table"][i, length // 16]
        row = call.cache["k_cache"][page, length % 16].float()
        own = scale if scales == "scalar" else scale[i, :, None]
        low, high, _ = EIGHT_BITS[cached]
        assert row[0, :2].tolist() == [high, low]
        exact = (k[i, 0] / own).clamp(low, high)
        assert_close("row", row, exact, 0.5 if cached == torch.int8 else exact[1].abs().max().item() / 8 + 0)


@pytest.mark.parametrize("cached", EIGHT_BITS)
@pytest.mark.parametrize("page_size", [None, 16])
def test_each_appended_token_gets_a_scale_of_its_own(cached, page_size):
    call = make(LENGTHS, NEW, page_size=page_size, cached=cached, scales="tokens", spare=NEW, dtype=torch.float32)
    k, v = new(dtype=torch.float32)
    k[1, 2] = 0.0
    scales = {name: call.cache[name].clone() for name in ("k_descale", "v_descale")}
    out = flash_attn_with_kvcache(call.q, k=k, v=v, causal=True, **call.cache)
    assert not out.isnan().any()
    largest = EIGHT_BITS[cached][2]
    changed = call.cache["k_descale"] != scales["k_descale"]
    changed &= ~(call.cache["k_descale"].isnan() & scales["k_descale"].isnan())
    assert changed.sum() == len(LENGTHS) * NEW * 2
    for name, values in (("k", k), ("v", v)):
        for i, length in enumerate(LENGTHS):
            for j in range(NEW):
                if page_size is None:
                    at = call.cache["cache_batch_idx"][i], length + j
                else:
                    at = call.cache["page_table"][i, (length + j) // 16], (length + j) % 16
                own, row = call.cache[f"{name}_descale"][at], call.cache[f"{name}_cache"][at].float()
                wanted = values[i, j].abs().amax(1) / largest
                assert torch.equal(own, torch.where(wanted == 0, 1.0, wanted))
                error = (row * own[:, None] - values[i, j]).abs().amax(1)
                assert (
                    error <= values[i, j].abs().amax(1) * {127: 1 / 254, 448: 1 / 16, 57344: 1 / 8}[largest] + 1e-7
                ).all()


def test_a_position_past_the_capacity_and_a_page_of_minus_one_are_written_nowhere():
    """As where lengths and pages are on a GPU, which nobody asks."""
    for lengths in ((3, 30), (31, 40)):
        cache = torch.zeros(4, 16, 1, 8)
        table = torch.tensor([[2, -1], [0, 1]], dtype=torch.int32)
        k = torch.ones(2, 20, 1, 8)
        append(k, k, KVCache(cache, cache.clone(), torch.tensor(lengths, dtype=torch.int32), table=table))
        wanted = torch.zeros_like(cache)
        for i, length in enumerate(lengths):
            for position in range(length, min(length + 20, 32)):
                if table[i, position // 16] >= 0:
                    wanted[table[i, position // 16], position % 16] = 1
        assert torch.equal(cache, wanted)


@pytest.mark.parametrize("scales", [None, (), (2, 1), (4, 16, 1)])
@pytest.mark.parametrize("paged", [False, True])
def test_an_append_reads_nothing_back_to_the_host(paged, scales):
    """Tensors of no device have nothing to read; so a CUDA graph can capture it."""

    def meta(*shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device="meta")

    places = {"table": meta(2, 3, dtype=torch.int32)} if paged else {"rows": meta(2, dtype=torch.int32)}
    pools = [meta(4, 16, 1, d, dtype=torch.float32 if scales is None else torch.int8) for d in (8, 24)]
    if scales is not None:
        places |= {"key_scales": meta(*scales), "value_scales": meta(*scales)}
    append(meta(2, 5, 1, 8), meta(2, 5, 1, 24), KVCache(*pools, meta(2, dtype=torch.int32), **places))


@pytest.mark.parametrize("cached", EIGHT_BITS)
def test_quantising_keeps_zeros_and_the_largest(cached):
    x = torch.tensor([[0.0, 0.0], [3.0, -1.0]])
    stored, scale = quantise(x, cached, None)
    assert scale[0] == 1.0
    assert_close("x", stored.float() * scale[:, None], x, 0.02 if cached == torch.int8 else 0.13)
    assert stored[1, 0].float() == EIGHT_BITS[cached][2]


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("scales", ["none", "tokens"])
def test_a_compiled_call_appends_as_the_call_does(scales, dynamic):
    """k_cache and v_cache being views of one tensor."""
    torch._dynamo.reset()
    cached = torch.int8 if scales == "tokens" else torch.float32
    call = make(LENGTHS, page_size=16, cached=cached, scales=scales, spare=NEW, dtype=torch.float32)
    k, v = new(dtype=torch.float32)
    results = []
    for function in (
        flash_attn_with_kvcache,
        torch.compile(flash_attn_with_kvcache, fullgraph=True, backend="aot_eager", dynamic=dynamic),
    ):
        both = torch.stack([call.cache["k_cache"].view(cached), call.cache["v_cache"]])
        own = {n: x.clone() for n, x in call.cache.items()} | {"k_cache": both[0], "v_cache": both[1]}
        out = function(call.q, k=k, v=v, **own)
        results.append([out, both, *(own[n] for n in own if "descale" in n)])
    for first, second in zip(*results, strict=True):
        assert torch.equal(first.nan_to_num(7), second.nan_to_num(7))


def test_the_op_keeps_the_rules_of_ops():
    call = make(LENGTHS, page_size=16, cached=torch.int8, scales="tokens", spare=NEW, dtype=torch.float32)
    c, (k, v) = call.cache, new(dtype=torch.float32)
    places = c["cache_seqlens"], None, c["page_table"]
    op = torch.ops.cute_attn.append_kv
    torch.library.opcheck(
        op,
        (
            c["k_cache"],
            c["v_cache"],
            c["k_descale"].nan_to_num(1),
            c["v_descale"].nan_to_num(1),
            k,
            v,
            *places,
            None,
            None,
        ),
    )
    plain = [x.float() for x in (c["k_cache"], c["v_cache"])]
    torch.library.opcheck(op, (*plain, None, None, k, v, *places, None, None))
