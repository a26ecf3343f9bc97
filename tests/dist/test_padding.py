"""Padding rows may hold anything, in tensors and in gradients: it reaches no other row, rank or sink."""

import pytest
import torch
import torch.distributed as dist
from problems import config, slices
from ranks import run_ranks

from cute_attn import IntervalMask
from cute_attn import mask as masks
from cute_attn.dist import calc_attn, compute_pad_size, magi_attn_flex_key

NAMES = ("out", "lse", "max_logits", "dq", "dk", "dv", "dsink")


@pytest.mark.parametrize("mover", ["group_cast", "ring", "ulysses"])
def test_what_padding_holds_reaches_nobody(mover):
    cases = {
        "causal": (masks.causal(41), {}),
        "without keys": (IntervalMask.from_slices([[5, 11]], [[0, 30]], "full", 45, 45), {}),
        "cross": (slices(6, 43, 33), {"is_same_source": False}),
    }
    padded = run_ranks(2, _dirty_padding, cases, mover)
    assert all(any(of_case) for of_case in zip(*padded, strict=True)), "some rank has padding in every case"


def _dirty_padding(rank, cases, mover):
    padded = []
    for name, (mask, flags) in cases.items():
        rows, keys, group = mask.seqlen_q, mask.seqlen_k, dist.group.WORLD
        pad_size = compute_pad_size(rows, group.size(), 4)
        key = magi_attn_flex_key(mask, None, None, rows, keys, pad_size, 4, group, config(mover), **flags)
        sides = [key.manager.placement(side) for side in "qk"]
        padding = [x.positions(rank) >= x.length for x in sides]
        padded.append(any(x.any() for x in padding))
        for sinks in (0, 2):
            clean = attended(key, padding, sinks, None)
            for rubbish in (torch.nan, torch.inf):
                dirty = attended(key, padding, sinks, rubbish)
                for part, a, b in zip(NAMES, clean, dirty, strict=True):
                    if a is not None:
                        assert torch.equal(a, b), (name, part, rubbish)
                        assert not b.isnan().any(), (name, part, rubbish)
            for x, side in zip((clean[0], *clean[3:6]), (0, 0, 1, 1), strict=True):
                assert (x[padding[side]] == 0).all()
    return padded


@pytest.mark.parametrize("mover", ["group_cast", "ulysses"])
def test_gradients_of_rows_without_keys_do_not_reach_the_sinks_through_their_output(mover):
    run_ranks(2, _rows_without_keys, mover)


def _rows_without_keys(rank, mover):
    mask = IntervalMask.from_slices([[5, 11]], [[0, 30]], "full", 48, 48)
    key = magi_attn_flex_key(mask, None, None, 48, 48, 0, 4, dist.group.WORLD, config(mover))
    rows = key.manager.placement("q").positions(rank)
    empty = (rows < 5) | (rows >= 11)
    torch.manual_seed(rank)
    q = torch.randn(24, 2, 8).double()
    dout, dlse = torch.randn(24, 2, 8).double(), torch.randn(2, 24).double()
    grads = []
    for rubbish in (0.0, torch.nan):
        sink = torch.zeros(1, 2).double().requires_grad_()
        out, lse = calc_attn(q, q, q, key, sink)
        torch.autograd.backward([out, lse], [filled(dout.clone(), empty, rubbish), dlse])
        grads.append(sink.grad)
    assert torch.equal(*grads)
    assert (grads[0] != 0).all()


def attended(key, padding, sinks, rubbish):
    """NAMES, of inputs and gradients of calc_attn in which padding holds zeros, or rubbish."""
    torch.manual_seed(dist.get_rank())
    of_rows, of_keys = padding

    def draw(where, heads):
        return filled(torch.randn(len(where), heads, 8).double(), where, 0.0 if rubbish is None else rubbish)

    q, k, v = (draw(where, heads).requires_grad_() for where, heads in ((of_rows, 4), (of_keys, 2), (of_keys, 2)))
    sink = torch.arange(4.0 * sinks).reshape(sinks, 4).double().requires_grad_() if sinks else None
    out, lse, most = calc_attn(q, k, v, key, sink, return_max_logits=True)
    torch.autograd.backward([out, lse], [draw(of_rows, 4), draw(of_rows, 4)[..., 0].T])
    return out.detach(), lse.detach(), most, q.grad, k.grad, v.grad, None if sink is None else sink.grad


def filled(x, where, value):
    x[where] = value
    return x
