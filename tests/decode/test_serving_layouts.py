"""What a serving engine keeps, as it lies there: pools of pages in its orders of dimensions, tables and lengths that
are parts of larger ones, queries of all sequences in one tensor. Nothing of it is copied on the way to a kernel."""

import pytest
import torch
from oracle import assert_close

import cute_attn.launch.decode as launch
from cute_attn import backend, flash_attn_with_kvcache

PAGES, SIZE, HEADS, DIM = 12, 16, 2, 64
LENGTHS = [40, 3, 17]
MOST_SEQUENCES, MOST_PAGES = 8, 20


def pools(order, dtype):
    """K and V of a layer, `(pages, page size, heads, head_dim)` each, in one tensor of an engine's own order."""
    sizes = {"two": 2, "pages": PAGES, "size": SIZE, "heads": HEADS, "dim": DIM}
    names = order.split()
    whole = torch.randn([sizes[name] for name in names]).to(dtype)
    view = whole.permute([names.index(name) for name in ("two", "pages", "size", "heads", "dim")])
    return whole, view[0], view[1]


def state(tokens, dtype):
    """A batch: queries, the table of pages and lengths, each the beginning of a larger buffer."""
    batch = len(LENGTHS)
    queries = torch.randn(MOST_SEQUENCES * tokens, 4 * HEADS, DIM).to(dtype)
    table = torch.full((MOST_SEQUENCES, MOST_PAGES), -1, dtype=torch.int32)
    free = iter(torch.randperm(PAGES).tolist())
    for row, length in zip(table, LENGTHS, strict=False):
        for page in range(-(-length // SIZE)):
            row[page] = next(free)
    lengths = torch.full((MOST_SEQUENCES,), 10**6, dtype=torch.int32)
    lengths[:batch] = torch.tensor(LENGTHS, dtype=torch.int32)
    return queries[: batch * tokens].view(batch, tokens, 4 * HEADS, DIM), table[:batch], lengths[:batch]


ORDERS = {
    "NHD": "two pages size heads dim",
    "HND": "two pages heads size dim",
    "pages first, NHD": "pages two size heads dim",
    "pages first, HND": "pages two heads size dim",
    "K and V side by side": "pages size heads two dim",
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_pools_tables_lengths_and_queries_reach_the_kernel_where_they_lie(order, dtype, monkeypatch):
    launched = []
    monkeypatch.setattr(launch, "run", lambda spec, arguments, *rest: launched.append(arguments))
    whole, k_cache, v_cache = pools(order, dtype)
    q, table, lengths = state(2, torch.bfloat16)
    with backend("sim"):
        flash_attn_with_kvcache(q, k_cache, v_cache, cache_seqlens=lengths, page_table=table, causal=True)
    (tensors, _), *others = launched
    assert not others
    for kernel, mine in zip(tensors, (q, k_cache, v_cache, table, lengths), strict=False):
        assert kernel.data_ptr() == mine.data_ptr()
        assert kernel.stride() == mine.stride()
    assert whole.data_ptr() <= tensors[2].data_ptr() < whole.data_ptr() + whole.nbytes


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_they_mean_what_the_engine_means(order):
    _, k_cache, v_cache = pools(order, torch.float64)
    q, table, lengths = state(1, torch.float64)
    out = flash_attn_with_kvcache(q, k_cache, v_cache, cache_seqlens=lengths, page_table=table, causal=True)
    for i, length in enumerate(LENGTHS):
        pages = table[i, : -(-length // SIZE)].long()
        k, v = (pool[pages].flatten(0, 1)[:length].repeat_interleave(4, 1) for pool in (k_cache, v_cache))
        scores = torch.einsum("hd,khd->hk", q[i, 0], k) * DIM**-0.5
        assert_close("out", out[i, 0], torch.einsum("hk,khd->hd", scores.softmax(1), v), 1e-12)
