"""Calls that fail half-way on one rank: nobody computes a wrong sum, and every rank learns of it in time."""

import os
import tempfile
import time

import pytest
import torch
import torch.distributed as dist
from problems import Problem, check, config, results
from ranks import error_of, join_world, run_ranks

from cute_attn import mask as masks
from cute_attn.dist import (
    DistAttnConfig,
    calc_attn,
    clear_cache,
    compute_pad_size,
    dispatch,
    get_most_recent_key,
    magi_attn_flex_key,
    roll,
    undispatch,
)
from cute_attn.dist import runtime as runtime_module

LENGTH, CHUNK, TIMEOUT = 96, 4, 5
BROKEN = 1  # the rank whose memory runs out


def make_key(settings):
    pad_size = compute_pad_size(LENGTH, dist.get_world_size(), CHUNK)
    return magi_attn_flex_key(
        masks.causal(LENGTH), None, None, LENGTH, LENGTH, pad_size, CHUNK, dist.group.WORLD, settings
    )


def failing(rank, name, call=0):
    """Makes `attend` or `attend_backward` raise at its n-th call on the broken rank, once; returns how to undo it."""
    original, calls = getattr(runtime_module, name), []

    def function(*arguments):
        calls.append(1)
        if rank == BROKEN and len(calls) == call + 1:
            raise torch.OutOfMemoryError("no memory is left")
        return original(*arguments)

    setattr(runtime_module, name, function)


def inputs(key):
    torch.manual_seed(0)
    return [dispatch(torch.randn(LENGTH, heads, 8).double(), key).requires_grad_() for heads in (4, 2, 2)]


@pytest.mark.parametrize("check_ranks", [True, False])
@pytest.mark.parametrize("mover", ["group_cast", "ring", "ulysses"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_after_a_failure_every_rank_raises_until_the_group_is_made_anew(direction, mover, check_ranks, tmp_path):
    wanted = Problem(masks.causal(LENGTH))
    settings = config(mover, check_ranks)
    got = run_ranks(3 if mover != "ulysses" else 2, _fail, direction, settings, wanted, str(tmp_path), timeout=TIMEOUT)
    for rank, (first, later, seconds) in enumerate(got):
        if rank == BROKEN:
            assert first == ("OutOfMemoryError", "no memory is left")
        else:
            assert first[0] == "RuntimeError"
            assert "failed or timed out" in first[1]
            assert "destroy_process_group" in first[1]
        for error in later:
            assert error[0] == "RuntimeError", error
            assert "destroy_process_group" in error[1]
            assert "cannot be used" in error[1]
        assert seconds < 4 * TIMEOUT


def _fail(rank, direction, settings, problem, folder):
    """A training step fails on one rank and is skipped there; then everybody tries all there is."""
    key = make_key(settings)
    qkv = inputs(key)
    failing(rank, "attend" if direction == "forward" else "attend_backward")
    begun = time.monotonic()

    def step():
        out, _ = calc_attn(*qkv, key)
        undispatch(out, key).sum().backward()

    first = error_of(step)
    clear = error_of(clear_cache)
    again = error_of(make_key, settings)
    later = [
        again,
        error_of(calc_attn, *qkv, key) if clear else again,
    ]
    return first, later, time.monotonic() - begun
