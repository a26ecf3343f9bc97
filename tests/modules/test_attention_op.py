"""AttentionOp over what it can be asked for, forward and gradients, against the dense formula in fp64."""

import itertools
import random

import pytest
import torch
from layer_formula import active_pairs, attend, moba_pairs, token_pairs
from oracle import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from cute_attn import AttentionOp, AttentionType, IntervalMask
from cute_attn.ops import chosen

KINDS = [kind.value for kind in AttentionType]
MODES = ["train", "prefill", "autoregressive"]
EXACT = 1e-11


def check(op, q, k, v, pairs, call, sinks=None, cap=0.0, scale=1.0, asks=False):
    """`call` on leaves of q, k, v and sinks against the formula: out, max_logits and all gradients."""

    def results(function):
        leaves = [x.detach().clone().requires_grad_() for x in (q, k, v, sinks) if x is not None]
        out, largest = function(*leaves[:3], leaves[3] if sinks is not None else None)
        torch.manual_seed(1)
        grads = torch.autograd.grad((out * torch.randn(out.shape, dtype=out.dtype)).sum(), leaves)
        return [out.detach(), *grads], largest

    def ours(q, k, v, sinks):
        found = call(q, k, v, sinks=sinks, record_max_logits=asks)
        return found if asks else (found, None)

    def formula(q, k, v, sinks):
        out, _, largest = attend(q, k, v, pairs if pairs.ndim == 4 else pairs[:, None], scale, cap, sinks)
        return out, largest

    got, largest = results(ours)
    wanted, right = results(formula)
    for name, x, y in zip(("out", "dq", "dk", "dv", "dsinks"), got, wanted, strict=False):
        assert_close(name, x, y, EXACT)
    if asks:
        assert_close("max_logits", largest, right, EXACT)
        assert not largest.requires_grad


def segments(draw, batch, keys):
    """Some ids that come back after others."""
    return (
        torch.tensor([[draw.choice([1, 1, 1, 2, 5]) for _ in range(keys)] for _ in range(batch)])
        .sort(1)[0]
        .roll(draw.randrange(3), 1)
    )


def one_case(kind, mode, has_ids, has_moba, has_indexer, seed):
    draw = random.Random(f"{kind} {mode} {has_ids} {has_moba} {has_indexer} {seed}")
    batch, rows = draw.choice([1, 2]), draw.choice([1, 5, 9])
    heads_k = draw.choice([1, 2])
    heads = heads_k * draw.choice([1, 2, 3])
    size = draw.choice([1, 3, 4, 50])
    cap, scale = draw.choice([0.0, 1.5]), draw.choice([1.0, 0.3])
    moba = (draw.choice([1, 3, 4]), draw.choice([1, 2, 9])) if has_moba else (None, None)
    first = 0 if mode == "autoregressive" else draw.choice([0, 0, 3])
    keys = first + rows + (draw.choice([0, 6]) if mode == "autoregressive" else 0)
    op = AttentionOp(
        heads,
        heads_k,
        attention_type=kind,
        attn_logits_soft_cap=draw.choice([cap, cap or None]),
        sliding_window_size=size,
        chunk_attn_window_size=size,
        moba_chunk_size=moba[0],
        moba_topk=moba[1],
        scale=scale,
    )
    q = torch.randn(batch, rows, heads, 8, dtype=torch.float64)
    k, v = (torch.randn(batch, keys, heads_k, d, dtype=torch.float64) for d in (8, 5))
    ids = segments(draw, batch, keys) if has_ids else None
    options = {"model_mode": mode, "decoder_segment_ids": ids}
    if mode == "autoregressive":
        pairs = active_pairs(kind, size, batch, rows, keys, ids)
        first = keys - rows
    else:
        ones = torch.randint(0, 2, (batch, keys)) if draw.random() < 0.5 else None
        previous = draw.choice([first, torch.zeros(batch, first, 3)]) if first else draw.choice([None, 0])
        pairs = token_pairs(kind, size, batch, rows, keys, first, ids, ones)
        options |= {"bidirectional_mask": draw.choice([ones, ones if ones is None else ones.bool()])}
        options |= {"previous_chunk": previous}
    pairs = pairs[:, None]
    if has_moba:
        pairs = pairs & moba_pairs(q, k, *moba, first)
    if has_indexer:
        keep = torch.rand(batch, rows, keys) < 0.7
        low = -torch.rand(batch, rows, keys) - 1.01
        numbers = torch.where(keep, -torch.randint(0, 2, keep.shape).float(), draw.choice([low, low * 1e30]))
        options["indexer_mask"] = draw.choice([keep, numbers])
        pairs = pairs & keep[:, None]
    sinks = torch.randn(heads) if draw.random() < 0.5 else None
    asks = draw.random() < 0.5

    def call(q, k, v, **more):
        return op(q, k, v, **options, **more)

    if sinks is not None:
        sinks = sinks.double()
    check(op, q, k, v, pairs, call, sinks, cap, scale, asks)


CROSS = list(itertools.product(KINDS, MODES, [False, True], [False, True], [False, True]))


@pytest.mark.parametrize(("kind", "mode", "has_ids", "has_moba", "has_indexer"), CROSS)
def test_every_kind_in_every_mode_is_the_formula(kind, mode, has_ids, has_moba, has_indexer):
    for seed in range(2):
        one_case(kind, mode, has_ids, has_moba, has_indexer, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 8))
def test_every_kind_in_every_mode_is_the_formula_in_more_draws(seed):
    for case in CROSS:
        one_case(*case, seed)


def test_a_sliding_window_keeps_as_many_keys_as_it_says():
    op = AttentionOp(1, 1, attention_type="local_sliding", sliding_window_size=3)
    v = torch.eye(8, dtype=torch.float64)[None, :, None]
    out = op(torch.zeros_like(v), torch.zeros_like(v), v)[0, :, 0]
    assert (out > 0).sum(1).tolist() == [1, 2, 3, 3, 3, 3, 3, 3]


@pytest.mark.parametrize("kind", KINDS)
def test_speculated_rows_are_the_last_positions(kind):
    """t rows in mode autoregressive are the last t of one long attention."""
    op = AttentionOp(4, 2, attention_type=kind, sliding_window_size=4, chunk_attn_window_size=4)
    q = torch.randn(2, 11, 4, 8, dtype=torch.float64)
    k, v = (torch.randn(2, 11, 2, 8, dtype=torch.float64) for _ in range(2))
    whole = op(q, k, v)
    for rows in (1, 3):
        part = op(q[:, -rows:], k, v, model_mode="autoregressive")
        assert_close("out", part, whole[:, -rows:], 1e-13)


def test_chunks_of_a_prefill_are_the_whole():
    op = AttentionOp(2, 1, attention_type="local_sliding", sliding_window_size=5)
    q = torch.randn(1, 12, 2, 8, dtype=torch.float64)
    k, v = (torch.randn(1, 12, 1, 8, dtype=torch.float64) for _ in range(2))
    ids, ones = torch.tensor([[1] * 7 + [2] * 5]), torch.tensor([[0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 1]])
    whole = op(q, k, v, ids, bidirectional_mask=ones)
    for begin, end in ((0, 4), (4, 9), (9, 12)):
        part = op(q[:, begin:end], k, v, ids, model_mode="prefill", previous_chunk=begin, bidirectional_mask=ones)
        assert_close("out", part, whole[:, begin:end], 1e-13)


def test_runs_of_ones_that_touch_across_segments_are_cut_there():
    ids, ones = torch.tensor([[1, 1, 1, 2, 2, 2]]), torch.tensor([[0, 1, 1, 1, 1, 0]])
    v = torch.eye(6, dtype=torch.float64)[None, :, None]
    out = AttentionOp(1, 1)(torch.zeros_like(v), torch.zeros_like(v), v, ids, bidirectional_mask=ones)[0, :, 0]
    assert (out[1] > 0).tolist() == [True, True, True, False, False, False]
    assert (out[3] > 0).tolist() == [False, False, False, True, True, False]


def test_blocks_of_equal_gates_are_taken_from_the_first_on():
    op = AttentionOp(1, 1, attention_type="full", moba_chunk_size=2, moba_topk=3)
    v = torch.eye(10, dtype=torch.float64)[None, :, None]
    out = op(torch.zeros_like(v), torch.zeros_like(v), v)[0, :, 0]
    assert (out[9] > 0).nonzero().flatten().tolist() == [0, 1, 2, 3, 8, 9]  # and so causal under "full" too
    assert (out[8] > 0).nonzero().flatten().tolist() == [0, 1, 2, 3, 8]


def test_blocks_are_chosen_a_few_rows_at_a_time_and_nothing_of_rows_times_blocks_is_made(monkeypatch):
    sizes = []

    class Noted(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            results = result if isinstance(result, (tuple, list)) else [result]
            sizes.extend(x.numel() for x in results if isinstance(x, torch.Tensor))
            return result

    q, k = torch.randn(2, 90, 4, 8), torch.randn(2, 90, 2, 8)
    whole = chosen._moba(q, k, 1, 3, 0)
    monkeypatch.setattr(chosen, "AT_ONCE", 10_000)
    with Noted():
        assert chosen._moba(q, k, 1, 3, 0).equals(whole)
    pairs = 2 * 4 * 90 * 90
    assert max(sizes) < pairs / 5


@pytest.mark.parametrize("autocast", [False, True])
def test_gates_are_taken_in_fp32_at_least(autocast):
    """Means that differ by less than bf16 tells apart choose the right block."""
    op = AttentionOp(1, 1, moba_chunk_size=2, moba_topk=2)
    k = torch.zeros(1, 6, 1, 8, dtype=torch.bfloat16)
    k[0, :2, 0, 0], k[0, 2, 0, 0], k[0, 3, 0, 0] = 1.0, 1.0, 1.0078125  # a mean of 1.00390625, which rounds to 1
    v = torch.eye(6, dtype=torch.bfloat16)[None, :, None]
    q = torch.zeros(1, 6, 1, 8, dtype=torch.bfloat16)
    q[..., 0] = 1.0
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out = op(q, k, v)[0, 5, 0]
    assert (out > 0).tolist() == [False, False, True, True, True, True]


@pytest.mark.parametrize("options", [{}, {"moba_chunk_size": 4, "moba_topk": 2}])
def test_a_row_that_attends_nothing_gives_zero_and_no_gradient(options):
    op = AttentionOp(2, 1, **options)
    q, k, v = (torch.randn(1, 6, h, 8, dtype=torch.float64, requires_grad=True) for h in (2, 1, 1))
    keep = torch.ones(1, 6, 6, dtype=torch.bool)
    keep[0, 3] = False
    out, largest = op(q, k, v, indexer_mask=keep, record_max_logits=True)
    assert (out[0, 3] == 0).all()
    out.sum().backward()
    assert (q.grad[0, 3] == 0).all()
    assert largest.isfinite().all()
    *_, m, total = op.apply_attention(q, k, v, indexer_mask=keep)
    assert (m[0, 3] == -torch.inf).all()
    assert (total[0, 3] == 0).all()


def test_a_head_that_attends_nothing_has_minus_infinite_max_logits():
    q, k, v = (torch.randn(2, 4, 1, 8) for _ in range(3))
    keep = torch.zeros(2, 4, 4, dtype=torch.bool)
    keep[1] = True
    out, largest = AttentionOp(1, 1)(q, k, v, indexer_mask=keep, record_max_logits=True)
    assert largest[0, 0] == -torch.inf
    assert largest[1, 0].isfinite()
    assert (out[0] == 0).all()


@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0, 0), (2, 0, 4), (2, 3, 0)])
@pytest.mark.parametrize("mode", MODES)
def test_empty_tensors_are_valid(shape, mode):
    batch, rows, keys = shape
    q = torch.randn(batch, rows, 4, 8, requires_grad=True)
    k, v = (torch.randn(batch, keys, 2, 8, requires_grad=True) for _ in range(2))
    ids = torch.ones(batch, keys, dtype=torch.int64) if keys >= rows else None
    plain = AttentionOp(4, 2)(q, k, v, ids, model_mode=mode)
    assert plain.shape == (batch, rows, 4, 8)
    op = AttentionOp(4, 2, moba_chunk_size=3, moba_topk=2)
    keep = torch.ones(batch, rows, keys, dtype=torch.bool)
    out, largest = op(q, k, v, ids, model_mode=mode, indexer_mask=keep, record_max_logits=True)
    assert out.shape == (batch, rows, 4, 8)
    assert largest.shape == (batch, 4)
    out.sum().backward()
    assert (q.grad.shape, k.grad.shape) == (q.shape, k.shape)


def test_equal_masks_are_made_once(monkeypatch):
    """Other tensors that hold the same find the mask of the first call; other numbers do not."""
    made = []
    build = IntervalMask.from_intervals.__func__

    def counted(cls, *args):
        made.append(args)
        return build(cls, *args)

    monkeypatch.setattr(IntervalMask, "from_intervals", classmethod(counted))
    op, other = (AttentionOp(1, 1, attention_type="local_sliding", sliding_window_size=w) for w in (4, 5))
    x = torch.randn(2, 37, 1, 8)
    ids = torch.randint(1, 3, (2, 37)).sort(1)[0]
    ones = torch.randint(0, 2, (2, 37))
    results = []
    for layer, first, second in ((op, ones, None), (op, None, ones), (op, ids, ones), (other, ids, ones)):
        before = len(made)
        results.append(layer(x, x, x, first, bidirectional_mask=second))
        assert len(made) > before
        after = len(made)
        copies = [t if t is None else t.clone().int() for t in (first, second)]
        assert torch.equal(layer(x, x, x, copies[0], bidirectional_mask=copies[1]), results[-1])
        assert len(made) == after
    assert not torch.equal(results[0], results[1])


def test_deterministic_algorithms_make_the_backward_deterministic(monkeypatch):
    from cute_attn.modules import attention_op

    asked = []

    def attention(q, k, v, sink, mask, scale, cap, deterministic, margin, asks):
        asked.append(deterministic)
        return q, q[..., 0], q

    monkeypatch.setattr(attention_op, "attention", attention)
    x = torch.randn(1, 3, 1, 8)
    AttentionOp(1, 1)(x, x, x)
    torch.use_deterministic_algorithms(True)
    try:
        AttentionOp(1, 1)(x, x, x)
    finally:
        torch.use_deterministic_algorithms(False)
    assert asked == [False, True]


def test_autocast_changes_nothing():
    op = AttentionOp(2, 1, moba_chunk_size=4, moba_topk=2)
    q, k, v = (torch.randn(1, 12, h, 8) for h in (2, 1, 1))
    plain = op(q, k, v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(op(q, k, v), plain)
