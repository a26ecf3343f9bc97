"""A CUDA graph of a call reads lengths, pages and scales when it is replayed."""

import pytest
import torch
from caching import make

from cute_attn import flash_attn_with_kvcache

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("cached", [None, torch.int8])
@pytest.mark.parametrize(("tokens", "num_splits"), [(1, 0), (1, 1), (1, 3), (70, 0)])
def test_a_graph_replays_with_other_lengths_and_pages(cached, tokens, num_splits):
    scales = "tokens" if cached else "none"
    call = make(tokens=tokens, page_size=16, dtype=torch.bfloat16, cached=cached, scales=scales, spare=8)
    cache = {name: x.cuda() for name, x in call.cache.items()}
    q, k, v = call.q.cuda(), *(torch.randn(6, 1, 2, 64, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    arguments = {**cache, "k": k, "v": v, "num_splits": num_splits, "causal": True}
    flash_attn_with_kvcache(q, **arguments)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = flash_attn_with_kvcache(q, **arguments)
    for shift in (1, 2):
        cache["cache_seqlens"].copy_(torch.tensor([0, 1, 63, 64, 65, 999]) + shift)
        cache["page_table"].copy_(cache["page_table"].roll(shift, 0))
        graph.replay()
        assert torch.equal(out.nan_to_num(7.0), flash_attn_with_kvcache(q, **arguments).nan_to_num(7.0))
