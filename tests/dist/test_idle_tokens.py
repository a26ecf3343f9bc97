"""Padding, rows without keys and keys without rows may hold anything on every rank."""

import pytest
import torch
import torch.distributed as dist
from poison import idle, poisoned, zeroed
from problems import config, draw
from ranks import run_ranks

from cute_attn import IntervalMask
from cute_attn.dist import calc_attn, compute_pad_size, dispatch, magi_attn_flex_key

MASK = IntervalMask.from_slices([[3, 20], [30, 31], [40, 60]], [[5, 30], [0, 3], [33, 50]], [1, 0, 0], 75, 75)


@pytest.mark.parametrize("mover", ["group_cast", "ring", "ulysses"])
@pytest.mark.parametrize("sinks", [0, 2])
def test_padding_of_every_rank_may_hold_anything(mover, sinks):
    run_ranks(2, check, config(mover), sinks)


def check(rank, settings, sinks):
    torch.manual_seed(0)
    pad_size = compute_pad_size(75, 2, 4)
    key = magi_attn_flex_key(MASK, None, None, 75, 75, pad_size, 4, dist.group.WORLD, settings)
    q, k, v, dout = (draw(75, 4, 8) for _ in range(4))
    sink, dlse = draw(sinks, 4) if sinks else None, draw(75, 4)
    local = {"q": dispatch(q, key), "k": dispatch(k, key, side="k"), "v": dispatch(v, key, side="k")}
    local |= {"dout": dispatch(dout, key), "dlse": dispatch(dlse, key)}
    used = [(~x[0])[:, None].double() for x in idle(MASK)]
    rows, keys = dispatch(used[0], key)[:, 0] == 0, dispatch(used[1], key, side="k")[:, 0] == 0
    assert rows.any()

    def results(fill):
        places = {"q": rows, "dout": rows, "k": keys, "v": keys} | ({} if sinks else {"dlse": rows})
        x = local | {name: fill(local[name][None], at[None])[0] for name, at in places.items()}
        leaves = [x[name].clone().requires_grad_() for name in "qkv"] + ([] if sink is None else [sink.clone()])
        leaves = [leaf.requires_grad_() for leaf in leaves]
        out, lse = calc_attn(*leaves[:3], key, leaves[3] if sinks else None)
        torch.autograd.backward([out, lse], [x["dout"], x["dlse"].T])
        return out.detach(), lse.detach(), *(leaf.grad for leaf in leaves)

    for got, wanted in zip(results(poisoned), results(zeroed), strict=True):
        assert torch.equal(got, wanted)
        assert not got.isnan().any()
