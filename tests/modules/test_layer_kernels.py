"""AttentionOp on the kernels, in simulation: masks with planes of their own for batch elements and heads, blocks that
heads chose, two caches."""

from types import SimpleNamespace

import pytest
import torch
from layer_formula import attend, cached_pairs, moba_pairs, token_pairs
from oracle import assert_no_worse

from cute_attn import AttentionOp, KVQuant, backend

HEADS, HEADS_K, DIM = 4, 2, 64


def compare(op, call, q, k, v, pairs, cap=0.0, sinks=None, grads=True, scale=1.0):
    """At most twice as far from the formula in fp64 as the formula in bf16 is."""

    def results(attending, dtype):
        leaves = [x.detach().to(dtype).requires_grad_(grads) for x in (q, k, v)]
        out, largest = attending(*leaves)
        found = {"out": out.detach()} | ({} if largest is None else {"max_logits": largest})
        if grads:
            torch.manual_seed(3)
            loss = (out * torch.randn(out.shape).to(out.dtype)).sum()
            found |= dict(zip(("dq", "dk", "dv"), torch.autograd.grad(loss, leaves), strict=True))
        return found

    def formula(q, k, v):
        out, _, largest = attend(q, k, v, pairs, scale, cap, None if sinks is None else sinks.to(q.dtype))
        return out, largest

    with backend("sim"):
        got = results(call, torch.bfloat16)
    exact, rough = results(formula, torch.float64), results(formula, torch.bfloat16)
    assert_no_worse(got, got.values(), (exact[name] for name in got), (rough[name] for name in got))


def inputs(batch, rows, keys):
    q = torch.randn(batch, rows, HEADS, DIM) / 8
    k, v = (torch.randn(batch, keys, HEADS_K, DIM) for _ in range(2))
    return [x.bfloat16() for x in (q, k, v)]


@pytest.mark.slow
def test_packed_segments_with_images_run_on_the_kernels():
    rows = 150
    op = AttentionOp(HEADS, HEADS_K, attention_type="local_sliding", sliding_window_size=40, attn_logits_soft_cap=3.0)
    q, k, v = inputs(2, rows, rows)
    ids = torch.tensor([[1] * 70 + [2] * 80, [3] * 150])
    ones = torch.zeros(2, rows, dtype=torch.int64)
    ones[0, 60:100], ones[1, 20:90] = 1, 1
    sinks = torch.randn(HEADS)
    pairs = token_pairs("local_sliding", 40, 2, rows, rows, 0, ids, ones)[:, None]

    def call(q, k, v):
        return op(q, k, v, ids, bidirectional_mask=ones, sinks=sinks, record_max_logits=True)

    compare(op, call, q, k, v, pairs, cap=3.0, sinks=sinks)


@pytest.mark.slow
def test_blocks_that_each_head_chose_run_on_the_kernels():
    rows = 140
    op = AttentionOp(HEADS, HEADS_K, moba_chunk_size=16, moba_topk=3)
    q, k, v = inputs(2, rows, rows)
    keep = torch.ones(2, rows, rows, dtype=torch.bool)
    keep[:, :, 3::50] = False
    keep[1, 5] = False
    pairs = moba_pairs(q.float(), k.float(), 16, 3, 0) & keep[:, None]

    def call(q, k, v):
        return op(q, k, v, indexer_mask=keep, record_max_logits=True)

    compare(op, call, q, k, v, pairs)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3])
def test_two_caches_merge_on_the_kernels(rows):
    sizes, active, lengths = (130, 20), [0, 100, 130], [3, 0, 20]
    op = AttentionOp(HEADS, HEADS_K, attention_type="local_sliding", sliding_window_size=64)
    q, k, v = inputs(3, rows, sum(sizes))
    ids = (torch.arange(sizes[0]) < torch.tensor(active)[:, None]).int()
    sinks = torch.randn(HEADS) if rows > 1 else None
    pairs = cached_pairs("local_sliding", 64, rows, active, lengths, sizes)[:, None]

    def call(q, k, v):
        cached = [
            (k[:, : sizes[0]], v[:, : sizes[0]], ids),
            (k[:, sizes[0] :], v[:, sizes[0] :], None, torch.tensor(lengths)),
        ]
        options = {"model_mode": "autoregressive", "cached_values": cached, "sinks": sinks}
        if rows == 1:
            return op(q, None, None, **options), None
        return op(q, None, None, **options, record_max_logits=True)

    compare(op, call, q, k, v, pairs, sinks=sinks, grads=rows > 1)


@pytest.mark.parametrize("quant", [None, KVQuant("int8")], ids=["bf16", "int8"])
@pytest.mark.slow
def test_pools_of_pages_are_read_by_the_decode_kernel(quant):
    lengths, rows, dim = torch.tensor([40, 60], dtype=torch.int32), 2, DIM if quant is None else 128
    window = {"attention_type": "local_sliding", "sliding_window_size": 40}
    op = AttentionOp(HEADS, HEADS_K, **window, attn_logits_soft_cap=2.0)
    table = torch.tensor([[3, 1, 4, -1], [7, 0, 5, 2]], dtype=torch.int32)
    state = SimpleNamespace(page_map=table, sequence_lengths=lengths)
    q = (torch.randn(2, rows, HEADS, dim) / 8).bfloat16()
    pools = [torch.randn(9, 16, HEADS_K, dim).bfloat16() for _ in range(2)]
    pools = pools if quant is None else [quant.quantize(pool) for pool in pools]
    dense = pools if quant is None else [pool.dequant(torch.float64) for pool in pools]
    k, v = (pool[table].flatten(1, 2) for pool in dense)  # what page -1 brings lies behind the length
    position = lengths[:, None, None] - rows + torch.arange(rows)[:, None]
    keys = torch.arange(k.shape[1])
    pairs = ((keys <= position) & (keys > position - 40))[:, None]

    def call(q, k, v):
        cached = [(*pools, None), None]
        return op(q, None, None, model_mode="autoregressive", cached_values=cached, page_state=state), None

    compare(op, call, q, k, v, pairs, cap=2.0, grads=False)


@pytest.mark.slow
@pytest.mark.parametrize("given", [None, torch.tensor([40, 0])])
def test_a_quantised_cache_without_pages_is_read_as_it_is(given):
    op = AttentionOp(HEADS, HEADS_K, attn_logits_soft_cap=2.0, kv_quant=KVQuant("int8"))
    rows, keys, dim = 2, 60, 128
    q = (torch.randn(2, rows, HEADS, dim) / 8).bfloat16()
    small = [op.kv_quant.quantize(torch.randn(2, keys, HEADS_K, dim).bfloat16()) for _ in range(2)]
    lengths = torch.full((2,), keys) if given is None else given
    position = lengths[:, None, None] - rows + torch.arange(rows)[:, None]
    pairs = (torch.arange(keys) <= position)[:, None]

    def call(q, k, v):
        if given is None:
            return op(q, *small, model_mode="autoregressive"), None
        return op.apply_attention(q, *small, model_mode="autoregressive", lengths=given)[0], None

    compare(op, call, q, *(x.dequant(torch.float64) for x in small), pairs, cap=2.0, grads=False)


def test_what_kernels_cannot_read_of_a_quantised_cache_is_refused():
    op = AttentionOp(HEADS, HEADS_K)
    q, k, _ = inputs(1, 1, 6)
    small = KVQuant("int8").quantize(k)
    ids = torch.ones(1, 6, dtype=torch.int64)
    words = "does not read a KVTensor, got one as key: .*one cache of keys and values is read as it is, without"
    for arguments in ({"decoder_segment_ids": ids}, {"record_max_logits": True}, {"model_mode": "train"}):
        with backend("sim"), pytest.raises(NotImplementedError, match=words):
            op(q, small, small, **{"model_mode": "autoregressive", **arguments})
