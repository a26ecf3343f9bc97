"""AttentionOp over caches: what was decoded after a prompt, quantised keys, partial results."""

import itertools
import random
from types import SimpleNamespace

import pytest
import torch
from layer_formula import active_pairs, attend, cached_pairs
from oracle import assert_close

from cute_attn import AttentionOp, AttentionType, KVQuant, KVTensor, normalize_attention, normalize_cudnn_attention

KINDS = [kind.value for kind in AttentionType]
EXACT = 1e-11


def ones_first(counts, length):
    return (torch.arange(length) < torch.tensor(counts)[:, None]).int()


def two_caches(kind, rows, has_ids, has_lengths, has_indexer, seed):
    draw = random.Random(f"{kind} {rows} {has_ids} {has_lengths} {has_indexer} {seed}")
    batch, size = 3, draw.choice([1, 3, 4, 50])
    sizes = draw.choice([(7, 5), (1, 9), (6, 1)])
    heads_k = draw.choice([1, 2])
    heads = heads_k * draw.choice([1, 3])
    cap, scale = draw.choice([0.0, 1.5]), draw.choice([1.0, 0.3])
    op = AttentionOp(
        heads,
        heads_k,
        attention_type=kind,
        attn_logits_soft_cap=cap,
        sliding_window_size=size,
        chunk_attn_window_size=size,
        scale=scale,
        use_ragged_attention=draw.random() < 0.5,
    )
    active = [draw.randint(0, sizes[0]) for _ in range(batch)] if has_ids else [sizes[0]] * batch
    lengths = [draw.randint(0, sizes[1]) for _ in range(batch)] if has_lengths else [sizes[1]] * batch
    prefill_ids = ones_first(active, sizes[0]) if has_ids else None
    decode_ids = None
    if has_ids and has_lengths:
        decode_ids = torch.randint(1, 3, (batch, sizes[1]))  # holes among what the lengths say is there
    elif has_ids:
        lengths = [draw.randint(0, sizes[1]) for _ in range(batch)]
        decode_ids = ones_first(lengths, sizes[1])
    pairs = cached_pairs(kind, size, rows, active, lengths, sizes, decode_ids)[:, None]
    options = {}
    if has_indexer:
        keep = torch.rand(batch, rows, sum(sizes)) < 0.7
        options["indexer_mask"] = torch.where(keep, 0.0, -torch.inf)
        pairs = pairs & keep[:, None]
    sinks = torch.randn(heads, dtype=torch.float64) if draw.random() < 0.5 else None
    q = torch.randn(batch, rows, heads, 8, dtype=torch.float64)
    k, v = (torch.randn(batch, sum(sizes), heads_k, d, dtype=torch.float64) for d in (8, 5))
    leaves = [x.requires_grad_() for x in (q, k, v, sinks) if x is not None]
    given = draw.choice([torch.tensor(lengths), torch.tensor(lengths, dtype=torch.int32)]) if has_lengths else None
    out, largest = op(
        q,
        None,
        None,
        model_mode="autoregressive",
        cached_values=[
            (k[:, : sizes[0]], v[:, : sizes[0]], prefill_ids),
            (k[:, sizes[0] :], v[:, sizes[0] :], decode_ids, given),
        ],
        sinks=sinks,
        record_max_logits=True,
        **options,
    )
    wanted, _, right = attend(q, k, v, pairs, scale, cap, sinks)
    assert_close("out", out, wanted, EXACT)
    assert_close("max_logits", largest, right, EXACT)
    dout = torch.randn(out.shape, dtype=torch.float64)
    grads, right_grads = (torch.autograd.grad((x * dout).sum(), leaves) for x in (out, wanted))
    for name, x, y in zip(("dq", "dk", "dv", "dsinks"), grads, right_grads, strict=False):
        assert_close(name, x, y, EXACT)


CROSS = list(itertools.product(KINDS, [1, 3], [False, True], [False, True], [False, True]))


@pytest.mark.parametrize(("kind", "rows", "has_ids", "has_lengths", "has_indexer"), CROSS)
def test_two_caches_are_one_attention_over_what_they_hold(kind, rows, has_ids, has_lengths, has_indexer):
    two_caches(kind, rows, has_ids, has_lengths, has_indexer, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_two_caches_are_one_attention_over_what_they_hold_in_more_draws(seed):
    for case in CROSS:
        two_caches(*case, seed)


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_step_by_step_is_one_long_attention(kind):
    """A prompt of ragged length and tokens decoded after it, one at a time and several, with NaN where nothing is."""
    prompts, room, steps = [4, 7], 7, 6
    op = AttentionOp(4, 2, attention_type=kind, sliding_window_size=5, chunk_attn_window_size=4)
    sinks = torch.randn(4)
    for n in prompts:
        total = n + steps
        q = torch.randn(1, total, 4, 8, dtype=torch.float64)
        k, v = (torch.randn(1, total, 2, 8, dtype=torch.float64) for _ in range(2))
        prompt = [torch.full((1, room, 2, 8), torch.nan, dtype=torch.float64) for _ in range(2)]
        decoded = [torch.full((1, steps + 2, 2, 8), torch.nan, dtype=torch.float64) for _ in range(2)]
        for cache, x in zip(prompt, (k, v), strict=True):
            cache[:, :n] = x[:, :n]
        ids = ones_first([n], room)
        for step in range(1, steps + 1):
            for cache, x in zip(decoded, (k, v), strict=True):
                cache[:, step - 1] = x[:, n + step - 1]
            for rows in {1, min(step, 3)}:
                here = slice(n + step - rows, n + step)
                got = op(
                    q[:, here],
                    None,
                    None,
                    model_mode="autoregressive",
                    cached_values=[(*prompt, ids), (*decoded, None, torch.tensor([step]))],
                    sinks=sinks,
                )
                seen = slice(0, n + step)  # "full" attends what is there so far
                whole = op(q[:, seen], k[:, seen], v[:, seen], sinks=sinks)
                assert_close("out", got, whole[:, here], 1e-12)


def test_one_cache_holds_all_keys():
    op = AttentionOp(2, 2, attention_type="chunk", chunk_attn_window_size=4)
    q, (k, v) = torch.randn(2, 1, 2, 8).double(), torch.randn(2, 2, 9, 2, 8).double()
    ids = torch.tensor([[1] * 9, [1, 1, 0, 1, 2, 1, 1, 0, 1]])
    out = op(q, None, None, model_mode="autoregressive", cached_values=[(k, v, ids), None])
    assert_close("out", out, attend(q, k, v, active_pairs("chunk", 4, 2, 1, 9, ids)[:, None])[0], EXACT)


@pytest.mark.parametrize("kind", ["global", "full", "local_sliding", "mla"])
@pytest.mark.parametrize("quant", [None, KVQuant("int8"), KVQuant("fp8", "heads_and_dkv")])
@pytest.mark.parametrize("rows", [1, 3])
def test_pools_of_pages_hold_what_a_cache_with_lengths_would(kind, quant, rows):
    """Shuffled pages, ragged lengths, rubbish in what is not there."""
    op = AttentionOp(4, 2, attention_type=kind, sliding_window_size=4, attn_logits_soft_cap=2.0, scale=0.3)
    q, sinks = torch.randn(3, rows, 4, 8, dtype=torch.float64), torch.randn(4)
    pools = torch.randn(2, 9, 4, 2, 8, dtype=torch.float64)
    pools[:, 8] = torch.nan
    pages = torch.tensor([[3, 0, -1], [7, 8, 8], [2, 5, 1]])
    lengths = torch.tensor([6, 4, 11])
    caches = [x if quant is None else quant.quantize(x) for x in pools]
    state = SimpleNamespace(page_map=pages, sequence_lengths=lengths)
    options = {"model_mode": "autoregressive", "sinks": sinks}
    got = op(q, None, None, cached_values=[(*caches, None), None], page_state=state, **options)
    plain = [x if quant is None else x.dequant(torch.float64) for x in caches]
    gathered = [x[pages].flatten(1, 2) for x in plain]
    o, m, total = op.apply_attention(q, *gathered, lengths=lengths, **options)
    assert_close("out", got, normalize_attention([o], [m], [total]), EXACT)


def test_a_prefill_reads_its_cache_and_the_segment_ids_that_it_has():
    op = AttentionOp(2, 2)
    q, (k, v) = torch.randn(1, 5, 2, 8).double(), torch.randn(2, 1, 5, 2, 8).double()
    ids = torch.tensor([[1, 1, 2, 2, 2]])
    rubbish = torch.full_like(k, torch.nan)
    got = op(q, rubbish, rubbish, ids * 0, model_mode="prefill", cached_values=[(k, v, ids), None])
    assert torch.equal(got, op(q, k, v, ids))


@pytest.mark.parametrize("rows", [1, 4])
def test_lengths_of_a_partial_result_say_where_its_keys_end(rows):
    op = AttentionOp(4, 2, attention_type="local_sliding", sliding_window_size=3)
    q = torch.randn(3, rows, 4, 8).double()
    k, v = torch.randn(2, 3, 6, 2, 8).double()
    lengths = [0, 2, 6]
    for b, length in enumerate(lengths):
        k[b, length:], v[b, length:] = torch.nan, torch.inf
    o, m, total = op.apply_attention(q, k, v, None, None, torch.tensor(lengths), "autoregressive")
    clean = [x.nan_to_num(0.0, 0.0, 0.0) for x in (k, v)]
    pairs = cached_pairs("local_sliding", 3, rows, [0] * 3, lengths, (0, 6))
    wanted, lse, _ = attend(q, *clean, pairs[:, None])
    assert_close("out", normalize_attention([o], [m], [total]), wanted, EXACT)
    assert_close("lse", (m + total.log())[..., 0].transpose(1, 2), lse, EXACT)
    same = op.apply_attention(q[:1], k[:1], v[:1], lengths=0, model_mode="autoregressive")
    assert_close("out", same[0], o[:1], 0.0)


# ---------------------------------------------------------------- partial results


def parts_of(q, k, v, cuts, shift=0.0):
    """Partial results (o, m, l) over pieces of the keys, o and l with a level m that is not their maximum."""
    found = []
    for begin, end in itertools.pairwise(cuts):
        scores = torch.einsum("bthd,bshd->bths", q, k[:, begin:end]) + shift
        level = scores.amax(-1, keepdim=True) - 0.5 if begin < end else scores.new_full((*q.shape[:3], 1), -torch.inf)
        weights = (scores - level).exp()
        found.append((torch.einsum("bths,bshd->bthd", weights, v[:, begin:end]), level, weights.sum(-1, keepdim=True)))
    return [list(part) for part in zip(*found, strict=True)]


@pytest.mark.parametrize("cuts", [[0, 9], [0, 4, 9], [0, 0, 5, 5, 9], [0, 1, 2, 9, 9]])
def test_parts_of_the_keys_merge_into_the_whole(cuts):
    leaves = [torch.randn(2, n, 3, 8, dtype=torch.float64, requires_grad=True) for n in (4, 9, 9)]
    pairs = torch.ones(2, 1, 4, 9, dtype=torch.bool)
    wanted, _, _ = attend(*leaves, pairs)
    outs, maxes, sums = parts_of(*leaves, cuts)
    stats = [(m + total.log())[..., 0].transpose(1, 2) for m, total in zip(maxes, sums, strict=True)]
    normal = [(o / total.masked_fill(total == 0, 1.0)) for o, total in zip(outs, sums, strict=True)]
    for got in (normalize_attention(outs, maxes, sums), normalize_cudnn_attention(normal, stats)):
        assert_close("out", got, wanted, 1e-13)
        dout = torch.randn(got.shape, dtype=torch.float64)
        ours, right = (torch.autograd.grad((x * dout).sum(), leaves, retain_graph=True) for x in (got, wanted))
        for name, x, y in zip(("dq", "dk", "dv"), ours, right, strict=True):
            assert_close(name, x, y, 1e-12)


@pytest.mark.parametrize("level", [1e4, -1e4])
def test_merges_hold_at_large_levels(level):
    """fp32, where e^1e4 is infinite: as exact as fp32 tells such levels apart."""
    outs = [torch.full((1, 1, 1, 2), x) for x in (1.0, 3.0)]
    stats = [torch.full((1, 1, 1), level + x) for x in (0.0, 1.0)]
    weight = torch.sigmoid(torch.tensor(1.0)).item()
    wanted = torch.full((1, 1, 1, 2), 1 + 2 * weight)
    assert_close("cudnn", normalize_cudnn_attention(outs, stats), wanted, 1e-6)
    maxes, sums = [x[..., None] for x in stats], [torch.ones(1, 1, 1, 1)] * 2
    assert_close("parts", normalize_attention(outs, maxes, sums), wanted, 1e-6)


def test_empty_parts_count_for_nothing_whatever_they_hold():
    out = torch.randn(1, 2, 1, 4)
    for rubbish in (0.0, torch.nan, torch.inf):
        bad = torch.full_like(out, rubbish)
        empty = torch.full((1, 1, 2), -torch.inf)
        got = normalize_cudnn_attention([out, bad], [torch.zeros(1, 1, 2), empty])
        assert torch.equal(got, out)
        assert (normalize_cudnn_attention([bad, bad], [empty, empty]) == 0).all()
        level, full, none = torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)
        for high in (1e4, -torch.inf):
            got = normalize_attention([bad, out], [torch.full_like(level, high), level], [none, full])
            assert torch.equal(got, out)
        assert (normalize_attention([bad], [level], [none]) == 0).all()


def test_gradients_of_merges_with_empty_parts_are_finite():
    outs = [torch.randn(1, 2, 1, 4, requires_grad=True) for _ in range(2)]
    stats = [torch.tensor([[[0.0, -torch.inf]]], requires_grad=True), torch.full((1, 1, 2), -torch.inf)]
    stats[1].requires_grad_()
    normalize_cudnn_attention(outs, stats).sum().backward()
    for x in (*outs, *stats):
        assert x.grad.isfinite().all()
    assert (outs[0].grad[0, 0] == 1).all()
    assert (outs[1].grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_merges_keep_the_dtype_of_the_outs(dtype):
    outs = [torch.randn(1, 2, 1, 4, dtype=dtype)] * 2
    assert normalize_cudnn_attention(outs, [torch.zeros(1, 1, 2)] * 2).dtype == dtype
    assert normalize_attention(outs, [torch.zeros(1, 2, 1, 1)] * 2, [torch.ones(1, 2, 1, 1)] * 2).dtype == dtype
    assert AttentionOp.normalize_attention is normalize_attention


BAD_MERGES = [
    (lambda x, m, s: normalize_attention([], [], []), TypeError, "local_outs must be a list of one tensor or more"),
    (lambda x, m, s: normalize_attention(x, [m], [m]), TypeError, "local_outs must be a list of one tensor or more"),
    (lambda x, m, s: normalize_attention([x, x[:, :1]], [m, m], [m, m]), ValueError, "local_outs must all have one"),
    (lambda x, m, s: normalize_attention([x], [m, m], [m]), ValueError, "local_maxes must be one for each"),
    (lambda x, m, s: normalize_attention([x], [m], [s]), ValueError, "local_sums must be one for each"),
    (lambda x, m, s: normalize_cudnn_attention([x], [m]), ValueError, "local_stats must be one for each"),
    (lambda x, m, s: normalize_cudnn_attention([x.int()], [s]), TypeError, "local_outs must hold floating tensors"),
]


@pytest.mark.parametrize(("call", "error", "words"), BAD_MERGES)
def test_bad_partial_results_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call(torch.randn(1, 2, 3, 4), torch.zeros(1, 2, 3, 1), torch.zeros(1, 3, 2))


# ---------------------------------------------------------------- quantised keys


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
@pytest.mark.parametrize("axis", ["dkv", "heads_and_dkv"])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32, torch.float64])
def test_quantising_is_near_and_scales_belong_to_what_shares_them(dtype, axis, kind):
    quant = KVQuant(dtype, axis)
    kv = torch.randn(2, 5, 3, 16).to(kind)
    kv[0, 1] = 0.0
    kv[1, 2, 1] = 1e-3 * kv[1, 2, 1]
    small = quant.quantize(kv)
    assert small.qvalue.dtype == {"int8": torch.int8, "fp8": torch.float8_e4m3fn}[dtype]
    assert small.scale.shape == (2, 5, 3 if axis == "dkv" else 1, 1)
    assert small.shape == kv.shape
    back = small.dequant(kind)
    assert back.dtype == kind
    assert (back[0, 1] == 0).all()
    largest = kv.double().abs().amax(3 if axis == "dkv" else (2, 3), keepdim=True)
    step = largest / 127 / 2 if dtype == "int8" else kv.double().abs() / 16 + largest / 448 / 2**7
    rounded = torch.finfo(kind).eps * kv.double().abs()
    assert ((back.double() - kv.double()).abs() <= step * (1 + 1e-6) + rounded).all()


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_what_is_not_finite_saturates_or_stays_nan(dtype):
    kv = torch.tensor([[1.0, torch.inf, -torch.inf, 2.0], [1.0, torch.nan, 0.0, 2.0], [0.0] * 4])[None, :, None]
    back = KVQuant(dtype).quantize(kv).dequant()[0, :, 0]
    assert back[0].tolist()[1:] == pytest.approx([2.0, -2.0, 2.0])
    assert back[1].isnan().all()
    assert (back[2] == 0).all()


@pytest.mark.parametrize("quant", [KVQuant("int8"), KVQuant("fp8", "heads_and_dkv")])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_a_quantised_cache_is_attended_as_what_it_means(quant, kind):
    op = AttentionOp(4, 2, kv_quant=quant)
    q = torch.randn(2, 1, 4, 8).to(kind)
    k, v = torch.randn(2, 2, 9, 2, 8).to(kind)
    small = [quant.quantize(x) for x in (k, v)]
    plain = [x.dequant(kind) for x in small]
    modes = {"model_mode": "autoregressive"}
    ids, lengths = torch.ones(2, 9, dtype=torch.int64), torch.tensor([3, 9])
    got, wanted = (
        op(q, None, None, cached_values=[(*pair, ids), (*pair, None, lengths)], **modes) for pair in (small, plain)
    )
    assert torch.equal(got, wanted)
    assert torch.equal(op(q, *small, **modes), op(q, *plain, **modes))


BAD_QUANTS = [
    (lambda: KVQuant("int4"), ValueError, "dtype of a KVQuant must be 'int8' or 'fp8', got 'int4'"),
    (lambda: KVQuant("int8", axis=""), ValueError, "axis must be 'dkv' or 'heads_and_dkv', got ''"),
    (lambda: KVQuant("int8").quantize(torch.zeros(3)), ValueError, "kv must have shape"),
    (lambda: KVQuant("int8").quantize(torch.zeros(1, 2, 3, 4).int()), TypeError, "kv must be bfloat16"),
    (lambda: KVQuant("int8").quantize([1.0]), TypeError, "kv must be a torch.Tensor"),
    (lambda: KVTensor(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 1)), TypeError, "qvalue must be int8"),
    (lambda: KVTensor(torch.zeros(2, 3, 4).char(), torch.zeros(2, 3, 1)), ValueError, "qvalue must have shape"),
    (lambda: KVTensor(torch.zeros(1, 2, 3, 4).char(), torch.zeros(1, 2, 3)), ValueError, "scale must have shape"),
    (lambda: KVTensor(torch.zeros(1, 2, 3, 4).char(), torch.zeros(1, 2, 1, 1).int()), TypeError, "scale must be"),
    (lambda: KVTensor(torch.zeros(1, 2, 3, 4).char(), 1.0), TypeError, "scale must be a torch.Tensor"),
]


@pytest.mark.parametrize(("call", "error", "words"), BAD_QUANTS)
def test_bad_quantisation_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
