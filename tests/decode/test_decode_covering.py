"""The decode kernel on as few cases as show each of its ways: those of `make test`."""

from dataclasses import replace

import pytest
import torch
from caching import make, plainly
from decode_case import bytes_read, check, only, run
from oracle import allowed_error, assert_close

from cute_attn import flash_attn_with_kvcache, sim

BF16 = torch.bfloat16
SCHEDULES = [("eager", 0), ("late", 0), ("random", 1)]


def ragged(page_size=64, **changed):
    return make(**{"page_size": page_size, "dtype": BF16, "heads": (8, 2), "growing": True} | changed)


def test_ragged_lengths_in_pages_of_whole_tiles(backend):
    for page_size in (64, 128, 256):
        check(ragged(page_size), backend, "random", seed=page_size)
    check(ragged(tokens=2), backend, "late", causal=True)
    check(ragged(tokens=2), backend, window_size=(70, 0))


def test_a_contiguous_cache_is_one_page_a_sequence_and_strides_are_free(backend):
    check(ragged(None, heads_first=True), backend, "random")
    call = ragged(64, heads=(8, 1))
    for name in ("k_cache", "v_cache"):  # of a dimension of size 1 no stride matters
        pool = call.cache[name]
        call.cache[name] = pool.as_strided(pool.shape, (*pool.stride()[:2], 3, 1))
    check(call, backend)
    call = ragged(None, lengths=(70, 3))
    rows = call.cache.pop("cache_batch_idx").long()
    cache = {name: x[rows] if name in ("k_cache", "v_cache") else x for name, x in call.cache.items()}
    call.cache.clear()
    call.cache.update(cache)
    check(call, backend)


@pytest.mark.parametrize("splits", [2, 7])
def test_parts_of_the_keys_are_merged_in_their_order(splits, backend):
    sink = torch.randn(2, 8).masked_fill(torch.arange(8) == 3, -torch.inf)
    check(ragged(), backend, num_splits=splits, sink=sink)


def test_no_schedule_changes_a_bit_of_what_is_merged():
    call = ragged(lengths=(0, 65, 200))

    def function(q, k_cache, v_cache, sink):
        cache = {**call.cache, "k_cache": k_cache, "v_cache": v_cache}
        return flash_attn_with_kvcache(q, **cache, num_splits=2, sink=sink, return_softmax_lse=True)

    tensors = call.q, call.cache["k_cache"], call.cache["v_cache"], torch.randn(2, 8)
    sim.strict(function, *tensors, deterministic=True)


@pytest.mark.slow
def test_keys_of_small_pages_are_gathered_under_windows_and_trees(backend):
    tree = torch.rand(6, 5, 5) < 0.6
    for page_size, mode in ((1, "eager"), (7, "late"), (16, "random")):
        check(ragged(page_size if page_size != 16 else 8, tokens=5, heads=(2, 1)), backend, mode, mask=tree)
    check(ragged(3, tokens=5, heads=(2, 1)), backend, mask=tree[0], window_size=(66, 1))


@pytest.mark.slow
def test_scales_of_tokens_of_an_8_bit_cache(backend):
    call = ragged(cached=torch.float8_e4m3fn, scales="tokens", dims=(128, 128))
    check(call, backend, "random")
    small = {name: x * 1e-6 for name, x in call.cache.items() if name == "v_descale"}  # what fp16 would lose
    call.cache.update(small)
    values = [x * 1e-6 for x in call.values]
    call.values.clear()
    call.values.extend(values)
    out, _ = run(call, backend)
    exact, _ = plainly(call)
    assert (out.double() - exact).abs().max() < 0.02 * exact.abs().max()


@pytest.mark.parametrize("splits", [1, 2])
def test_numbers_that_are_not_finite_reach_those_that_attend_them_and_no_others(splits, backend):
    call = ragged(lengths=(65, 70, 0, 130))
    call.cache["cache_seqlens"][1] += 1  # of the rubbish behind the length, one row
    out, lse = run(call, backend, num_splits=splits, sink=torch.randn(2, 8) if splits > 1 else None)
    assert out[1].isnan().all()
    assert lse[1].isnan().all()
    assert out[[0, 2, 3]].isfinite().all()
    assert not lse[[0, 2, 3]].isnan().any()  # of the empty one it is -inf where there is no sink


def test_what_is_appended_is_attended(backend):
    call = ragged(spare=2)
    new = [torch.randn(6, 2, 2, 64).to(BF16) for _ in range(2)]
    out, _ = run(call, backend, k=new[0], v=new[1], num_splits=1, causal=True)
    keys, values = (
        [torch.cat([x, more.double()]) for x, more in zip(own, appended, strict=True)]
        for own, appended in zip((call.keys, call.values), new, strict=True)
    )
    longer = replace(call, keys=keys, values=values)
    exact, plain = plainly(longer, causal=True)[0], plainly(longer, BF16, causal=True)[0]
    assert_close("out", out, exact, allowed_error(exact, plain))


def test_one_part_has_the_same_bits_whatever_shares_the_batch(backend):
    call = ragged()
    out, lse = run(call, backend, num_splits=1)
    for i in (2, 5):
        alone = run(only(call, i), backend, num_splits=1)
        assert torch.equal(alone[0][0], out[i])
        assert torch.equal(alone[1][0], lse[i])


def test_each_key_is_read_once_for_all_heads_of_a_group():
    """Of the last piece of a sequence the rest of the page too, and beyond that nothing."""
    lengths = (0, 1, 64, 200)
    with bytes_read() as read:
        run(ragged(64, lengths=lengths, dtype=BF16), num_splits=1)
    tokens = sum(-(-n // 64) * 64 for n in lengths)
    assert sum(read) == tokens * 2 * (64 + 64) * 2  # key heads, dims of K and of V, bytes
