"""What movers put on the wire and when: what the plan says, early enough to hide behind compute."""

import pytest
import torch
import torch.distributed as dist
from problems import Problem, config, documents
from ranks import run_ranks

from cute_attn import mask as masks
from cute_attn.dist import calc_attn, comm, compute_pad_size, dispatch, magi_attn_flex_key, plan_group_cast, plan_ring
from cute_attn.dist import runtime as runtime_module
from cute_attn.dist.movers import group_cast as cast_module
from cute_attn.dist.movers import ring as ring_module


def recorded_events(mask, settings):
    """`("send", rows, dtype)`, `("arrived",)` and `("attend",)` of one calc_attn and of its backward, and the key."""
    events = []
    rows, world = mask.seqlen_q, dist.get_world_size()
    key = magi_attn_flex_key(
        mask, None, None, rows, rows, compute_pad_size(rows, world, 4), 4, dist.group.WORLD, settings
    )
    q, k, v, _ = (None if x is None else x.bfloat16() for x in Problem(mask).inputs)
    local = [dispatch(x, key).requires_grad_() for x in (q, k, v)]

    class LoggingArrival(comm.Arrival):
        def wait(self):
            events.append(("arrived",))
            return super().wait()

    def send_rows(rows, send_splits, receive_splits, group):
        peers = list(send_splits)
        peers[group.rank()] = 0
        events.append(("send", sum(peers), rows.dtype))
        arrival = comm.send_rows(rows, send_splits, receive_splits, group)
        return LoggingArrival(arrival._rows, arrival._sent, arrival._work)

    def logging(function):
        def call(*arguments):
            events.append(("attend",))
            return function(*arguments)

        return call

    cast_module.send_rows = ring_module.send_rows = send_rows
    runtime_module.attend = logging(runtime_module.attend)
    runtime_module.attend_backward = logging(runtime_module.attend_backward)
    out, _ = calc_attn(*local, key)
    forward = list(events)
    events.clear()
    out.sum().backward()
    return forward, events, key


def names(events):
    return [event[0] for event in events]


def test_each_stage_of_a_group_cast_is_sent_before_the_stage_before_it_is_attended():
    for forward, backward in run_ranks(3, _stages):
        assert names(forward) == ["send", "attend", "arrived", "send", "attend", "arrived", "attend"]
        # Last stage first; the gradient of one stage returns while the next is attended.
        assert names(backward) == [
            "send", "arrived", "send", "attend", "send",
            "arrived", "attend", "send", "arrived",
            "attend", "arrived",
        ]  # fmt: skip


def _stages(rank):
    forward, backward, _ = recorded_events(masks.full(96), config("group_cast", degree=2))
    return forward, backward


def test_the_ring_sends_a_block_on_before_it_attends_it():
    for forward, backward in run_ranks(3, _ring_steps):
        assert names(forward) == ["send", "attend", "arrived"] * 2 + ["attend"]
        assert names(backward) == [
            "send", "attend", "arrived",
            "send", "attend", "send", "arrived",
            "attend", "arrived", "send", "arrived",
        ]  # fmt: skip


def _ring_steps(rank):
    forward, backward, _ = recorded_events(masks.full(96), config("ring"))
    return forward, backward


@pytest.mark.parametrize("mover", ["group_cast", "ring"])
def test_the_rows_sent_are_those_of_the_plan_and_their_gradients_return_in_fp32(mover):
    run_ranks(4, _bytes, mover)


def _bytes(rank, mover):
    mask = documents(70, 9, 41)
    forward, backward, key = recorded_events(mask, config(mover))
    placements = key.manager.placement("q"), key.manager.placement("k")
    if mover == "group_cast":
        plan = plan_group_cast(mask, *placements, rank, key.dist_attn_config.overlap_config)
    else:
        plan = plan_ring(mask, *placements, rank)
    sent = {
        (name, dtype): sum(event[1] for event in events if event[0] == "send" and event[2] == dtype)
        for name, events in (("forward", forward), ("backward", backward))
        for dtype in (torch.bfloat16, torch.float32)
    }
    assert sent["forward", torch.bfloat16] == sent["backward", torch.bfloat16] == plan.rows_sent
    assert sent["forward", torch.float32] == 0
    if mover == "group_cast":
        assert sent["backward", torch.float32] == plan.rows_received
    # Gradients of the ring travel on with their blocks and home at the end: as many rows, but on other ranks.
    totals = torch.tensor([sent["backward", torch.float32], plan.rows_sent])
    dist.all_reduce(totals)
    assert totals[0] == totals[1]
