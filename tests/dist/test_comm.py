"""The collectives: what is sent returns, sums have a fixed order, heads and rows change places and back."""

import torch
import torch.distributed as dist
from oracle import assert_close
from problems import config, documents, small_masks
from ranks import run_ranks

from cute_attn.dist import CostModel, compute_pad_size, magi_attn_flex_key
from cute_attn.dist.comm import (
    add_returned,
    gather_rows,
    heads_to_rows,
    max_over_ranks,
    rows_to_heads,
    send_rows,
    sum_over_ranks,
    sum_rows_of_ranks,
)


def test_rows_arrive_in_the_order_of_peers_also_where_nothing_is_sent():
    run_ranks(3, _uneven_splits)


def _uneven_splits(rank):
    """Rank r sends `(r + peer) % 3` rows, each holding 10 r + peer."""
    group = dist.group.WORLD
    sends = [(rank + peer) % 3 for peer in range(3)]
    rows = torch.tensor([10 * rank + peer for peer in range(3)]).repeat_interleave(torch.tensor(sends))
    received = send_rows(rows[:, None].expand(-1, 2), sends, sends, group).wait()
    wanted = torch.tensor([10 * peer + rank for peer in range(3)]).repeat_interleave(torch.tensor(sends))
    assert torch.equal(received, wanted[:, None].expand(-1, 2))


def test_heads_and_rows_change_places_and_back():
    run_ranks(4, _heads_and_rows)


def _heads_and_rows(rank):
    group = dist.group.WORLD
    x = torch.randn(4 * 5, 8, 3)  # equal on all ranks
    mine = x[5 * rank : 5 * rank + 5]
    there = heads_to_rows(mine, group).wait()
    assert torch.equal(there, x[:, 2 * rank : 2 * rank + 2])
    assert torch.equal(rows_to_heads(there, group), mine)


def test_sums_over_ranks_are_taken_in_order_and_in_fp32():
    run_ranks(4, _sums)


def _sums(rank):
    group = dist.group.WORLD
    parts = torch.randn(4, 8, 3) * torch.logspace(0, 6, 4)[:, None, None]  # order matters
    wanted = ((parts[0] + parts[1]) + parts[2]) + parts[3]
    assert torch.equal(sum_over_ranks(parts[rank], group), wanted)
    assert torch.equal(sum_rows_of_ranks(parts[rank], group), wanted[2 * rank : 2 * rank + 2])
    low = torch.full((4, 1), 256.0 if rank == 0 else 2.0).bfloat16()  # in bf16, 256 + 2 + 2 + 2 is 264
    assert sum_rows_of_ranks(low, group).item() == 262.0
    assert torch.equal(max_over_ranks(parts[rank], group), parts.amax(0))
    assert torch.equal(gather_rows(parts[rank], group), parts.flatten(0, 1))


def test_returned_rows_are_added_peer_after_peer():
    total = torch.zeros(3, 1)
    returned = torch.tensor([[1.0], [2.0], [1e8], [1.0], [-1e8]])
    index, splits = torch.tensor([0, 2, 2, 1, 2]), [2, 0, 2, 1]
    assert add_returned(total, returned, index, splits).flatten().tolist() == [1.0, 1.0, 0.0]  # 2 is lost in 1e8


def test_group_cast_and_group_reduce_are_adjoint():
    run_ranks(3, _adjoint, "group_cast")


def test_the_ring_and_its_return_are_adjoint():
    run_ranks(4, _adjoint, "ring")


def _adjoint(rank, mover):
    """Over all ranks, sum <received keys, y> == sum <own keys, returned y>."""
    group = dist.group.WORLD
    for name, mask in {**small_masks(), "more": documents(60, 61)}.items():
        rows = mask.seqlen_q
        pad_size = compute_pad_size(rows, group.size(), 4)
        key = magi_attn_flex_key(mask, None, None, rows, rows, pad_size, 4, group, config(mover))
        way = key.manager.route(CostModel(2, 2, 2, 2, 8), torch.device("cpu")).mover
        torch.manual_seed(rank)
        local = torch.randn(key.manager.placement("k").rows_per_rank, 2, 4).double()
        gradients, dot = way.collect(local, torch.float64), torch.zeros(1).double()
        for block in way.backward(local):
            y = torch.randn_like(block.kv)
            dot += (block.kv * y).sum()
            gradients.add(block.number, y)
        back = (local * gradients.finish()).sum()[None]
        assert_close(name, sum_over_ranks(back, group), sum_over_ranks(dot, group), 1e-10)
        assert [b.number for b in way.forward(local)] == sorted(b.number for b in way.backward(local))
