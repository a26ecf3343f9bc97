"""AttentionOp inside torch.compile, without a graph break, and its op of masks as torch.library wants it."""

import pytest
import torch

from cute_attn import AttentionOp, IntervalMask, KVQuant
from cute_attn.mask.source import MaskSource


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch._dynamo.reset()


KINDS = {"global": {}, "window": {"attention_type": "local_sliding", "sliding_window_size": 4}}
CHOICES = {"plain": {}, "moba": {"moba_chunk_size": 3, "moba_topk": 2}}
CALLS = ["plain", "ids", "ids and runs", "indexer", "previous", "speculation"]


def arguments(call, batch, rows):
    ids = torch.randint(1, 4, (batch, rows)).sort(1)[0]
    ones = torch.randint(0, 2, (batch, rows))
    keep = torch.rand(batch, rows, rows) < 0.7
    return {
        "plain": {},
        "ids": {"decoder_segment_ids": ids},
        "ids and runs": {"decoder_segment_ids": ids, "bidirectional_mask": ones},
        "indexer": {"decoder_segment_ids": ids, "indexer_mask": keep},
        "previous": {"previous_chunk": 2, "model_mode": "prefill"},
        "speculation": {"model_mode": "autoregressive", "decoder_segment_ids": (ids == 1).int()},
    }[call]


def results(op, q, k, v, options):
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out, largest = op(*leaves, record_max_logits=True, **options)
    return [out.detach(), largest, *torch.autograd.grad(out.square().sum(), leaves)]


def agree(op, compiled, call, batch, rows):
    q = torch.randn(batch, rows, 4, 8, dtype=torch.float64)
    k, v = (torch.randn(batch, rows, 2, 8, dtype=torch.float64) for _ in range(2))
    options = arguments(call, batch, rows)
    for got, wanted in zip(results(compiled, q, k, v, options), results(op, q, k, v, options), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def compiled_agrees(kind, choice, call):
    """Without a graph break, and again for other values and lengths."""
    op = AttentionOp(4, 2, **KINDS[kind], **CHOICES[choice])
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    for batch, rows in ((2, 12), (2, 12), (3, 9)):
        agree(op, compiled, call, batch, rows)


@pytest.mark.slow
def test_a_compiled_module_gives_what_it_gives():
    compiled_agrees("window", "moba", "ids and runs")


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_module_gives_what_it_gives_for_every_call(kind, choice, call):
    compiled_agrees(kind, choice, call)


@pytest.mark.parametrize("quant", [None, pytest.param(KVQuant("int8"), marks=pytest.mark.slow)])
def test_a_compiled_step_of_decoding_takes_other_lengths_without_a_new_graph(quant):
    op = AttentionOp(4, 2, attention_type="local_sliding", sliding_window_size=5)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(op, fullgraph=True, backend=counter)
    k, v = torch.randn(2, 2, 7, 2, 8)
    more = torch.randn(2, 2, 6, 2, 8)
    ids = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    for lengths in ([1, 2], [3, 6], [0, 4]):
        q = torch.randn(2, 1, 4, 8)
        caches = [x if quant is None else quant.quantize(x) for x in (k, v, *more)]
        cached = [(*caches[:2], ids), (*caches[2:], None, torch.tensor(lengths))]
        options = {"model_mode": "autoregressive", "cached_values": cached}
        torch.testing.assert_close(compiled(q, None, None, **options), op(q, None, None, **options))
    assert counter.frame_count == 1


ROWS = 12
IDS = torch.tensor([[1] * 7 + [2] * 5, [1] * 12])
SOURCES = {
    "tokens": MaskSource("tokens", IDS, IDS - 1, None, 3, 0, offset=0),
    "runs alone": MaskSource("tokens", None, IDS - 1, None, -1, 0),
    "nothing": MaskSource("tokens", None, None, None, -1, 0, chunk=4),
    "active": MaskSource("active", IDS, None, None, -1, 0),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("by", [*(pytest.param(by, marks=pytest.mark.slow) for by in ("moba", "indexer")), "both"])
def test_the_op_that_chooses_passes_opcheck(source, by):
    query, key = torch.randn(2, ROWS, 4, 8), torch.randn(2, ROWS, 2, 8)
    choosing = (query, key, 3, 2) if by != "indexer" else (None, None, 0, 0)
    keep = torch.rand(2, ROWS, ROWS) < 0.5 if by != "moba" else None
    arguments = (*SOURCES[source], ROWS, ROWS, torch.device("cpu"), *choosing, keep)
    op = torch.ops.cute_attn.chosen_mask.default
    torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"))
    lo, hi = op(*arguments)
    IntervalMask(lo, hi, ROWS, heads=1 if by == "indexer" else 4)  # checks that they are intervals


def test_a_choice_is_not_kept():
    """The masks of 40 calls would push all others out of what is kept."""
    from cute_attn.ops import mask_cache

    op = AttentionOp(1, 1, moba_chunk_size=3, moba_topk=2)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 12, 1, 8)
    mask_cache.clear_masks()
    for _ in range(3):
        compiled(torch.randn_like(x), torch.randn_like(x), x)
        op(torch.randn_like(x), torch.randn_like(x), x)
    assert len(mask_cache._recent._entries) == 1
